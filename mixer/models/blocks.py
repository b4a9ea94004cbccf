"""Layers of several networks: patch projection, head, MLP, stack of blocks.

Axes: B batch, T any axis, F features.
"""
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.models import grid
from mixer.models import masks
from mixer.models import products

# What the backward pass of a block does not have to compute again.
_REMAT = dict(block=jax.checkpoint_policies.nothing_saveable,
              dots=jax.checkpoint_policies.dots_saveable)
REMAT = tuple(_REMAT)


class MlpBlock(nn.Module):
  """W2 gelu(W1 x) over the last axis, with biases (equation 1 of the paper).

  Attributes:
    mlp_dim: hidden width, D_S or D_C.
    dropout_rate: of the hidden units and of the output.
    approximate_gelu: the tanh form, as in the official code; False is the exact
      erf form, as in PyTorch ports. They differ by at most 4.8e-4.
    dtype: of the computation.
    kernel_init, bias_init: initial values; flax's own by default.
    out_dim: width of the output; None for that of the input.
  """
  mlp_dim: int
  dropout_rate: float = 0.0
  approximate_gelu: bool = True
  dtype: Any = jnp.float32
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros
  out_dim: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array, drop: masks.Masks, *,
               forms: products.Forms) -> jax.Array:
    """Returns [B, T, out_dim] for x [B, T, F].

    Args:
      x: features.
      drop: the masks of this block.
      forms: of both products and of GELU.
    """
    dense = lambda width: nn.Dense(
        width, dtype=self.dtype, dot_general=forms.dot,
        kernel_init=self.kernel_init, bias_init=self.bias_init)
    h = forms.gelu(self.approximate_gelu)(dense(self.mlp_dim)(x))
    h = drop.units(h, f'{self.name}/hidden', self.dropout_rate)
    y = dense(self.out_dim or x.shape[-1])(h)
    return drop.units(y, f'{self.name}/output', self.dropout_rate)


def patch_projection(network: nn.Module, images: jax.Array) -> jax.Array:
  """Returns [B, rows, columns, C], a linear projection of each patch.

  Args:
    network: whose fields `hidden_dim` and `patch_size` decide the shape; inside
      its `__call__`.
    images: [B, height, width, channels].
  """
  patch = grid.pair(network.patch_size)
  return nn.Conv(network.hidden_dim, patch, strides=patch, padding='VALID',
                 dtype=network.dtype, name='stem',
                 conv_general_dilated=products.patch_dot)(images)


def classify(network: nn.Module, x_BC: jax.Array, out: dict[str, jax.Array]
             ) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns (logits, out), with both of the head's ends in `out`.

  Args:
    network: whose fields `num_classes` and `head_bias` decide the head; without
      classes, x_BC takes the place of the logits. Inside its `__call__`.
    x_BC: float32 [B, C]; in bfloat16 the head would lose accuracy.
    out: the intermediates so far.
  """
  out['pre_logits'] = x_BC
  if not network.num_classes:
    return x_BC, out
  logits = out['logits'] = nn.Dense(
      network.num_classes, kernel_init=nn.initializers.zeros,
      bias_init=nn.initializers.constant(network.head_bias), name='head')(x_BC)
  return logits, out


def run(network: nn.Module, make: Callable[..., nn.Module], x: jax.Array,
        drop: masks.Masks, *, names: Sequence[str], train: bool,
        remat: str | None = None,
        scan: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Runs a stack of blocks, inside the `__call__` of a network.

  Args:
    network: whose parameters hold those of each block.
    make: makes a block from its number in the stack and flax's `name` or
      `parent`. A block is called as block(x, drop, train=train).
    x: [B, ...], input of the first block.
    drop: the masks of all blocks.
    names: of the blocks among the network's parameters, in order.
    train: whether masks act, and `remat` and `scan` with them.
    remat: what the backward pass computes again instead of keeping it: None
      for nothing; 'block' for all inside a block, of which only the input is
      kept; 'dots' for all but the results of matrix products.
    scan: whether to run the blocks as one loop over their stacked parameters,
      which is less to compile and, with `remat`, less to hold. The blocks
      have to be equal, and to keep the shape of x.

  Returns:
    (output of the last block, {'block_{i}': output of each block}); the dict
    is empty after a scan.
  """
  if not train or not (remat or scan) or network.is_initializing():
    apply = lambda i, x: make(i, name=names[i])(
        x, drop.of_block(i) if train else masks.NONE, train=train)
    return _in_turn(apply, x, len(names))
  # Blocks as functions of their parameters, because flax's own remat and scan
  # would change the parameters' names and shapes.
  def function(block) -> Callable[..., Any]:
    once = lambda x, params, drop: block.apply(
        {'params': params}, x, drop, train=True)
    # A loop keeps its steps apart by itself.
    return jax.checkpoint(once, policy=_REMAT[remat],
                          prevent_cse=not scan) if remat else once

  params = [network.variables['params'][name] for name in names]
  if not scan:
    blocks = [make(i, parent=None) for i in range(len(names))]
    once = {block: function(block) for block in set(blocks)}   # traced once
    return _in_turn(lambda i, x: once[blocks[i]](
        x, params[i], drop.of_block(i)), x, len(names))
  block = function(make(0, parent=None))
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)

  def body(x, of_block):
    params, dropout, depth, kept = of_block
    return block(
        x, params, masks.Masks(dropout, depth, kept, drop.rows_B)), None

  return jax.lax.scan(
      body, x, (stacked, drop.dropout, drop.depth, drop.kept))[0], {}


def _in_turn(apply: Callable[[int, jax.Array], jax.Array], x: jax.Array,
             count: int) -> tuple[jax.Array, dict[str, jax.Array]]:
  out = {}
  for i in range(count):
    x = out[f'block_{i}'] = apply(i, x)
  return x, out
