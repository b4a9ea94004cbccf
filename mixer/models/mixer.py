"""MLP-Mixer (https://arxiv.org/abs/2105.01601, section 2).

Axes, in the paper's letters: B batch, S tokens (sequence), C channels (hidden
width), P patch side; D_S and D_C are the widths of the two MLPs. Module names
are those of the released checkpoints: a layer without an explicit `name` gets
its published one from the order of construction, so that order is fixed.
"""
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.core import errors
from mixer.models import blocks
from mixer.models import grid
from mixer.models import interface
from mixer.models import products
from mixer.models import tied_mixing

# Table 1 of https://arxiv.org/abs/2105.01601: layers, C, D_S, D_C.
_SCALES = {'S': (8, 512, 256, 2048), 'B': (12, 768, 384, 3072),
           'L': (24, 1024, 512, 4096), 'H': (32, 1280, 640, 5120)}
_SCALED = ('num_blocks', 'hidden_dim', 'tokens_mlp_dim', 'channels_mlp_dim')
# The settings that decide which function a network computes.
_FUNCTION = ('patch_size', 'hidden_dim', 'num_blocks', 'tokens_mlp_dim',
             'channels_mlp_dim', 'num_classes', 'in_channels',
             'approximate_gelu')


class MixerBlock(nn.Module):
  """Token mixing, then channel mixing, each with LayerNorm and a skip.

      U = X + W2 gelu(W1 LayerNorm(X)),  over tokens, shared by all channels
      Y = U + W4 gelu(W3 LayerNorm(U)),  over channels, shared by all tokens

  Attributes:
    tokens_mlp_dim: D_S.
    channels_mlp_dim: D_C.
    mixing: the row of `token_mixing.TABLE` that takes the place of W2 gelu(W1).
    grid: rows and columns of patches.
    number: of a way of mixing that takes one, such as the 4 of 'grouped:4'.
  """
  tokens_mlp_dim: int
  channels_mlp_dim: int
  dropout_rate: float = 0.0
  approximate_gelu: bool = True
  dtype: Any = jnp.float32
  platform: str | None = None
  mixing: str = 'tied'
  grid: tuple[int, int] | None = None
  number: int = 1

  @nn.compact
  def __call__(self, x_BSC: jax.Array, drop: blocks.Masks = blocks.NO_MASKS, *,
               train: bool) -> jax.Array:
    """Returns [B, S, C] for tokens [B, S, C].

    Args:
      x_BSC: tokens.
      drop: the masks of this block.
      train: whether there is a backward pass, which the products suit then.
    """
    # The first LayerNorm that is made is LayerNorm_0, the second LayerNorm_1.
    row = tied_mixing.row(self.mixing)
    y_BSC = row.mix(
        self, nn.LayerNorm(dtype=self.dtype)(x_BSC), drop, train=train)
    if row.shrink is not None:
      x_BSC = row.shrink(self, x_BSC)
    u_BSC = x_BSC + drop.path(y_BSC, 'token_mixing')
    y_BSC = nn.LayerNorm(dtype=self.dtype)(u_BSC)
    y_BSC = blocks.MlpBlock(
        self.channels_mlp_dim, self.dropout_rate, self.approximate_gelu,
        self.dtype, name='channel_mixing')(
            y_BSC, drop,
            forms=products.channel_mlp(self.platform, train=train))
    return u_BSC + drop.path(y_BSC, 'channel_mixing')


class MlpMixer(interface.Model):
  """The network of table 1; `mixer.models.create` makes it by its name.

  As in the official code, LayerNorm's epsilon is 1e-6, kernels start
  lecun-normal, and biases and the head start at zero.

  Attributes:
    patch_size: P, or (height, width) of a patch in pixels.
    hidden_dim: C.
    num_blocks: number of layers.
    tokens_mlp_dim: D_S.
    channels_mlp_dim: D_C.
    num_classes: width of the head; None or 0 leaves the head out.
    head_bias: initial value of the head's biases; -log(classes) suits the
      sigmoid loss, whose first steps would else only push all logits down.
    in_channels: number of channels of the images.
    dropout_rate: in both MLPs (0.0 in all settings that the paper chose).
    stochastic_depth: drop probability of the last block; block i of n has
      i / (n - 1) of it.
    approximate_gelu: tanh form (the released weights'), or the exact erf form.
    dtype: of the computation; parameters are float32.
    remat, scan: how training trades time for memory, see `blocks.run`. Names
      and results stay the same. With `scan`, `out` lacks the blocks' outputs
      in training.
    platform: 'cpu', 'gpu' or 'tpu', which the program is for and which decides
      the form of matrix products; None decides where the program is lowered.
    token_mixing: how tokens are mixed: the name of a row of
      `token_mixing.TABLE`, and for some ':' and a number, as in 'grouped:4'.
    pixel_order: 'KIND[:PATCH[:SEED]]', one order of the pixels of all images,
      see `models.pixel_order`; None leaves them as they are.
  """
  NAMES = ('Mixer-S/32', 'Mixer-S/16', 'Mixer-B/32', 'Mixer-B/16',
           'Mixer-L/32', 'Mixer-L/16', 'Mixer-H/14')
  CHOICES = dict(remat=blocks.REMAT, platform=products.PLATFORMS)
  SHARDING_RULES = (
      ('token_mixing/(.+/)?Dense_0/kernel', (None, ('model', 'fsdp'))),
      ('(token|channel)_mixing/(.+/)?Dense_1/kernel', (('model', 'fsdp'),)),
      ('token_mixing/SeparateDense_./.*', (('model', 'fsdp'),)),
      ('token_mixing/(query|key|value)/kernel', ('fsdp', 'model', None)),
      ('token_mixing/out/kernel', ('model', None, 'fsdp')),
      ('channel_mixing/Dense_0/kernel', ('fsdp', 'model')),
      ('(token|channel)_mixing/Dense_0/bias', (('model', 'fsdp'),)),
      ('.*', ('fsdp',)),
  )
  OWN_PARAMETER = re.compile(r'MixerBlock_(\d+)/.*')
  WIDTHS = ('hidden_dim', 'num_blocks', 'channels_mlp_dim', 'token_mixing',
            'pixel_order')
  TIED_TO_SIZE = ('tokens_mlp_dim',)
  TAKEN_FROM_WEIGHTS = ('approximate_gelu',)

  patch_size: grid.Size
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
  token_mixing: str = 'tied'
  pixel_order: str | None = None

  def __post_init__(self) -> None:
    if self.token_mixing != 'tied':
      from mixer.models import token_mixing
      self.token_mixing = token_mixing.checked(
          self.token_mixing, self.hidden_dim, self.scan)
    super().__post_init__()

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False,
               rows: jax.Array | None = None) -> tuple[
                   jax.Array, dict[str, jax.Array]]:
    """Returns class logits, and every named intermediate.

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
    patches, images = self.patches(images), self.ordered(images)
    rows_B = jnp.arange(images.shape[0]) if rows is None else rows
    out = {}
    x = out['stem'] = blocks.patch_projection(self, images)
    x_BSC = out['input_tokens'] = x.reshape(x.shape[0], -1, self.hidden_dim)
    drop = blocks.draw_masks(self, rows_B) if train else blocks.NO_MASKS
    stack = self._stack(patches)
    make = lambda i, **where: MixerBlock(
        self.tokens_mlp_dim, self.channels_mlp_dim, self.dropout_rate,
        self.approximate_gelu, self.dtype, self.platform, stack[i].name,
        stack[i].grid, stack[i].n, **where)
    x_BSC, outputs = blocks.run(
        self, make, x_BSC, drop, train=train, remat=self.remat, scan=self.scan,
        names=[f'MixerBlock_{i}' for i in range(self.num_blocks)])
    out.update(outputs)
    x_BSC = nn.LayerNorm(dtype=self.dtype, name='pre_head_layer_norm')(x_BSC)
    # In bfloat16 the mean of many tokens, and the head, would lose accuracy.
    x_BC = jnp.mean(x_BSC, axis=1, dtype=jnp.float32)
    return blocks.classify(self, x_BC, out)

  @classmethod
  def settings(cls, name: str) -> dict[str, Any]:
    """See `interface.Model`; the patch size may be any, as in 'Mixer-S/8'."""
    match = re.fullmatch(r'Mixer-([A-Z])/(\d+)', name)
    if match is None or match[1] not in _SCALES:
      raise errors.unknown('model.name', name, cls.NAMES)
    return dict(zip(_SCALED, _SCALES[match[1]]), patch_size=int(match[2]))

  @classmethod
  def infer(cls, shapes: interface.Shapes) -> 'MlpMixer':
    """See `interface.Model`."""
    from mixer.models import mixer_weights
    return cls(**mixer_weights.settings(shapes))

  @classmethod
  def widths(cls, shapes: interface.Shapes) -> dict[str, Any]:
    """See `interface.Model`."""
    from mixer.models import mixer_weights
    return mixer_weights.widths(shapes)

  @nn.nowrap
  def describe(self) -> dict[str, Any]:
    """See `interface.Model`."""
    letter = next((letter for letter, (_, hidden, *_) in _SCALES.items()
                   if hidden == self.hidden_dim), 'S')
    out = dict(name=f'Mixer-{letter}/{grid.pair(self.patch_size)[0]}',
               **{key: getattr(self, key) for key in _FUNCTION})
    # Runs that were saved before there was a choice have no such key.
    if self.token_mixing != 'tied':
      out['token_mixing'] = self.token_mixing
    return out

  def _stack(self, patches):
    """Returns how each block mixes tokens."""
    return tied_mixing.stack(self.token_mixing, tied_mixing.Mixing(
        'tied', patches, self.hidden_dim, self.tokens_mlp_dim), self.num_blocks)

  @nn.nowrap
  def parameters(self, image_size: grid.Size) -> int:
    """Returns (P^2 c C + C) + L [4C + mixing + (2 C D_C + D_C + C)] + 2C
    + (C K + K), for c input channels, L blocks and K classes."""
    c, d_c = self.hidden_dim, self.channels_mlp_dim
    stack = self._stack(grid.patches(image_size, self.patch_size))
    block = 4 * c + 2 * c * d_c + d_c + c
    return ((self._inputs() + 1) * c + self.num_blocks * block
            + sum(tied_mixing.row(z.name).parameters(z) for z in stack)
            + 2 * c + (c + 1) * (self.num_classes or 0))

  @nn.nowrap
  def layers(self, image_size: grid.Size) -> list[tuple[str, int]]:
    """Returns the terms of S P^2 c C + L (mixing + 2 S C D_C) + C K."""
    stack = self._stack(grid.patches(image_size, self.patch_size))
    s, c = grid.tokens(image_size, self.patch_size), self.hidden_dim
    d_c = self.channels_mlp_dim
    return [('stem', s * self._inputs() * c),
            *((f'MixerBlock_{i}/{name}', count)
              for i, z in enumerate(stack) for name, count in (
                  ('LayerNorm_0', 0), *z.layers(), ('LayerNorm_1', 0),
                  ('channel_mixing', 2 * z.after.s * c * d_c))),
            ('pre_head_layer_norm', 0), ('head', c * (self.num_classes or 0))]

  def _inputs(self):
    height, width = grid.pair(self.patch_size)
    return height * width * self.in_channels

  @property
  def _row(self):
    return tied_mixing.row(self.token_mixing.partition(':')[0])

  @property
  def unused(self) -> dict[str, str]:
    """See `interface.Model`."""
    return {} if self._row.has_width else {
        'tokens_mlp_dim': f'model.token_mixing={self.token_mixing}'}

  @nn.nowrap
  def tokens(self, params: interface.Params) -> int | None:
    """Returns the S that the token-mixing weights are tied to, if they are."""
    if self._row.tokens is None or not self.num_blocks:
      return None
    return self._row.tokens(params['MixerBlock_0']['token_mixing'])

  @nn.nowrap
  def enlarged(self, parts: int) -> 'MlpMixer':
    """Returns the network whose D_S has grown with the number of parts."""
    by = parts if self._row.widens else 1
    return self.clone(tokens_mlp_dim=self.tokens_mlp_dim * by)

  @nn.nowrap
  def resized(self, params: interface.Params, old: tuple[int, int],
              new: tuple[int, int], method: str) -> tuple[
                  'MlpMixer', interface.Params]:
    """Returns the network whose token-mixing weights fit another grid."""
    from mixer.models import mixer_weights
    grown = (new[0] * new[1]) // (old[0] * old[1])
    return self.enlarged(grown) if method == 'block' else self, (
        mixer_weights.resized(self.token_mixing, params, old, new, method))
