"""MLP-Mixer (https://arxiv.org/abs/2105.01601, section 2).

Axes, in the paper's letters: B batch, S tokens (sequence), C channels (hidden
width), P patch side; D_S and D_C are the widths of the two MLPs. Module names
are those of the released checkpoints: a layer without an explicit `name` gets
its published one from the order of construction, so that order is fixed.
"""
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixer.core.errors import UserError
from mixer.models import products

# What is kept of a block for its backward pass.
_REMAT = dict(block=jax.checkpoint_policies.nothing_saveable,
              dots=jax.checkpoint_policies.dots_saveable)
REMAT = tuple(_REMAT)


class MlpBlock(nn.Module):
  """W2 gelu(W1 x) over the last axis, biases included (equation 1).

  Attributes:
    mlp_dim: hidden width, D_S or D_C.
    dropout_rate: of the hidden units and of the output.
    approximate_gelu: the tanh form of the official code; False is the exact
      erf form of PyTorch ports. They differ by at most 4.8e-4.
    dtype: of the computation.
  """
  mlp_dim: int
  dropout_rate: float = 0.0
  approximate_gelu: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, draws, *, dot):
    """x [B, T, F] -> [B, T, F]; draws as in `MixerBlock`, dot as flax's
    `dot_general`."""
    dense = lambda width: nn.Dense(width, dtype=self.dtype, dot_general=dot)
    h = dense(self.mlp_dim)(x)
    h = nn.gelu(h, approximate=self.approximate_gelu)
    h = self._dropout(h, draws, 'hidden')
    y = dense(x.shape[-1])(h)
    return self._dropout(y, draws, 'output')

  def _dropout(self, x, draws, where):
    if draws is None or not self.dropout_rate:
      return x
    keep = draws.keep(f'{self.name}/{where}', self.dropout_rate, x.shape[1:])
    return jnp.where(keep, x / (1 - self.dropout_rate), jnp.zeros_like(x))


class MixerBlock(nn.Module):
  """Token mixing, then channel mixing, each with LayerNorm and a skip.

      U = X + W2 gelu(W1 LayerNorm(X)),  over tokens, shared by all channels
      Y = U + W4 gelu(W3 LayerNorm(U)),  over channels, shared by all tokens

  Attributes:
    tokens_mlp_dim: D_S.
    channels_mlp_dim: D_C.
  """
  tokens_mlp_dim: int
  channels_mlp_dim: int
  dropout_rate: float = 0.0
  approximate_gelu: bool = True
  dtype: Any = jnp.float32
  platform: str | None = None

  @nn.compact
  def __call__(self, x_BSC, draws=None, *, train):
    """x [B, S, C] -> [B, S, C].

    Args:
      x_BSC: tokens.
      draws: `layers.Draws` of this block in training, whose `kept` is the
        probability, for each example and branch, of keeping the branch. It is
        not rescaled then, as in the official training code (timm and scenic
        divide it by `kept`). None for no dropout of either kind.
      train: which form the matrix products take, see `layers.training_dot`.
    """
    mlp = lambda width, name: MlpBlock(
        width, self.dropout_rate, self.approximate_gelu, self.dtype, name=name)
    drop = lambda branch_BSC, name: branch_BSC if draws is None else (
        draws.drop_path(name, branch_BSC))
    dot = products.training_dot if train else None
    platform = self.platform or jax.default_backend()
    token_dot = products.token_dot if platform == 'gpu' else dot
    y_BCS = jnp.swapaxes(nn.LayerNorm(dtype=self.dtype)(x_BSC), 1, 2)
    y_BCS = mlp(self.tokens_mlp_dim, 'token_mixing')(
        y_BCS, draws, dot=token_dot)
    u_BSC = x_BSC + drop(jnp.swapaxes(y_BCS, 1, 2), 'token_mixing')
    y_BSC = nn.LayerNorm(dtype=self.dtype)(u_BSC)
    y_BSC = mlp(self.channels_mlp_dim, 'channel_mixing')(
        y_BSC, draws, dot=dot)
    return u_BSC + drop(y_BSC, 'channel_mixing')


class MlpMixer(nn.Module):
  """The network of table 1; see `mixer.models.create` for its scales.

  LayerNorm's epsilon is 1e-6, kernels start lecun-normal, biases and the head
  at zero, as flax's defaults and the official code have them.

  Attributes:
    patch_size: P, or (height, width) of a patch in pixels.
    hidden_dim: C.
    num_blocks: number of layers.
    tokens_mlp_dim: D_S.
    channels_mlp_dim: D_C.
    num_classes: width of the head; None or 0 leaves the head out.
    head_bias: initial value of the head's biases; -log(classes) suits the
      sigmoid loss, whose first steps would else only push all logits down.
    in_channels: of the images.
    dropout_rate: in both MLPs (0.0 in all the paper's chosen settings).
    stochastic_depth: drop probability of the last block; block i of n has
      i / (n - 1) of it.
    approximate_gelu: tanh form (the released weights') or exact erf.
    dtype: of the computation; parameters are float32.
    remat: what training computes again in the backward pass instead of keeping
      it: None for nothing; 'block' for all inside a block, of which only the
      input is kept; 'dots' for all but the matrix products.
    scan: whether training runs the blocks as one loop over their parameters,
      stacked for the step: less to compile, and to hold with `remat`. Names and
      results are the same; `out` then lacks the blocks' outputs in training.
    platform: 'cpu', 'gpu' or 'tpu', which the program is for and which decides
      the form of matrix products; None for the platform of the caller.
  """
  # (pattern for the end of a parameter's name, mesh axes of each array axis);
  # the first that matches holds. See `training.sharding`.
  SHARDING_RULES = (
      ('stem/kernel', (None, None, None, 'fsdp')),
      ('token_mixing/Dense_0/kernel', (None, ('model', 'fsdp'))),
      ('token_mixing/Dense_1/kernel', (('model', 'fsdp'), None)),
      ('channel_mixing/Dense_0/kernel', ('fsdp', 'model')),
      ('channel_mixing/Dense_1/kernel', ('model', 'fsdp')),
      ('head/kernel', ('fsdp', None)),
      ('(token|channel)_mixing/Dense_0/bias', (('model', 'fsdp'),)),
      ('.*', ('fsdp',)),
  )
  patch_size: Any
  hidden_dim: int
  num_blocks: int
  tokens_mlp_dim: int
  channels_mlp_dim: int
  num_classes: int | None = 1000
  head_bias: float = 0.0
  in_channels: int = 3
  dropout_rate: float = 0.0
  stochastic_depth: float = 0.0
  approximate_gelu: bool = True
  dtype: Any = jnp.float32
  remat: str | None = None
  scan: bool = False
  platform: str | None = None

  @nn.compact
  def __call__(self, images, *, train=False, rows=None):
    """Class logits, and every named intermediate.

    Args:
      images: float [B, height, width, in_channels].
      train: whether dropout and stochastic depth act; they then need the rngs
        'dropout' and 'stochastic_depth'.
      rows: int32 [B], the row of each example in the global batch, which keys
        its masks; by default 0 .. B - 1.

    Returns:
      (logits, out): logits float32 [B, num_classes], or pre_logits [B, C]
      without a head; out, a dict with 'stem' [B, h, w, C], 'input_tokens'
      [B, S, C], 'block_{i}' [B, S, C], 'pre_logits' [B, C] and 'logits'.

    Raises:
      UserError: if the images do not fit the patches or the parameters.
    """
    patch = pair(self.patch_size)
    self._check(images, patch)
    rows_B = jnp.arange(images.shape[0]) if rows is None else rows
    out = {}
    x = out['stem'] = nn.Conv(
        self.hidden_dim, patch, strides=patch, padding='VALID',
        dtype=self.dtype, name='stem',
        conv_general_dilated=products.patch_dot)(images)
    x_BSC = out['input_tokens'] = x.reshape(x.shape[0], -1, self.hidden_dim)
    draws = self._draws(rows_B) if train else None
    if train and (self.remat or self.scan) and not self.is_initializing():
      x_BSC = self._cheaper_blocks(x_BSC, draws, out)
    else:
      for i in range(self.num_blocks):
        x_BSC = out[f'block_{i}'] = self._block(name=f'MixerBlock_{i}')(
            x_BSC, draws and draws.of_block(i), train=train)
    x_BSC = nn.LayerNorm(dtype=self.dtype, name='pre_head_layer_norm')(x_BSC)
    x_BC = out['pre_logits'] = jnp.mean(x_BSC, axis=1, dtype=jnp.float32)
    if not self.num_classes:
      return x_BC, out
    logits = out['logits'] = nn.Dense(
        self.num_classes, kernel_init=nn.initializers.zeros,
        bias_init=nn.initializers.constant(self.head_bias), name='head')(x_BC)
    return logits, out

  def _block(self, **where):
    return MixerBlock(self.tokens_mlp_dim, self.channels_mlp_dim,
                      self.dropout_rate, self.approximate_gelu, self.dtype,
                      self.platform, **where)

  def _draws(self, rows_B):
    """`layers.Draws` of all blocks."""
    n = self.num_blocks
    keys = lambda name, rate: jax.vmap(jax.random.fold_in, (None, 0))(
        self.make_rng(name), jnp.arange(n)) if rate else None
    keep = [1 - i / max(n - 1, 1) * self.stochastic_depth for i in range(n)]
    return products.Draws(
        dropout=keys('dropout', self.dropout_rate), rows_B=rows_B,
        depth=keys('stochastic_depth', self.stochastic_depth),
        kept=np.array(keep, np.float32))

  def _cheaper_blocks(self, x_BSC, draws, out):
    """All blocks, with `remat` and `scan`: functions of their parameters."""
    block = self._block(parent=None)
    run = lambda x_BSC, params, draws: block.apply(
        {'params': params}, x_BSC, draws, train=True)
    if self.remat:   # a loop keeps its steps apart by itself
      run = jax.checkpoint(run, policy=_REMAT[self.remat],
                           prevent_cse=not self.scan)
    blocks = [self.variables['params'][f'MixerBlock_{i}']
              for i in range(self.num_blocks)]
    if not self.scan:
      for i, params in enumerate(blocks):
        x_BSC = out[f'block_{i}'] = run(x_BSC, params, draws.of_block(i))
      return x_BSC
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)

    def body(x_BSC, of_block):
      params, drawn = of_block
      return run(x_BSC, params, drawn.replace(rows_B=draws.rows_B)), None

    return jax.lax.scan(
        body, x_BSC, (stacked, draws.replace(rows_B=None)))[0]

  def _check(self, images, patch):
    if images.ndim != 4:
      raise UserError('images: expected [batch, height, width, channels], got '
                      f'shape {images.shape}')
    _, height, width, channels = images.shape
    if channels != self.in_channels:
      raise UserError(f'images have {channels} channels, the model takes '
                      f'in_channels={self.in_channels}')
    if height % patch[0] or width % patch[1]:
      raise UserError(
          f'image size {height}x{width} is not a multiple of the patch size '
          f'{patch[0]}x{patch[1]}; the nearest that fit are '
          f'{_multiples(height, patch[0])} by {_multiples(width, patch[1])}')
    made = self._tokens_of_parameters()
    tokens = (height // patch[0]) * (width // patch[1])
    if made not in (None, tokens):
      raise UserError(
          f'image size {height}x{width} gives {tokens} tokens, but the token-'
          f'mixing weights are for {made}: a Mixer is tied to the resolution '
          'it was made for; give it images of that size')

  def _tokens_of_parameters(self):
    if self.is_initializing() or not self.num_blocks:
      return None
    block = self.variables['params']['MixerBlock_0']
    return block['token_mixing']['Dense_0']['kernel'].shape[0]


def pair(size):
  """An int, or a (height, width), as (height, width)."""
  return (size, size) if isinstance(size, int) else tuple(size)


def _multiples(side, patch):
  below = side // patch * patch
  return ' or '.join(str(s) for s in (below, below + patch) if s)
