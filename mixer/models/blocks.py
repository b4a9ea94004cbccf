"""Layers of several networks: patch projection, head, MLP, stack of blocks.

The masks of dropout and stochastic depth belong to rows of the global batch.

Axes: B batch, T any axis, F features.
"""
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any
import zlib

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixer.models import grid
from mixer.models import products

# What the backward pass of a block does not have to compute again.
_REMAT = dict(block=jax.checkpoint_policies.nothing_saveable,
              dots=jax.checkpoint_policies.dots_saveable)
REMAT = tuple(_REMAT)


@flax.struct.dataclass
class Masks:
  """Draws the masks of one training step, for all blocks or for one.

  Attributes:
    dropout: keys of dropout, one for each block, or None for no dropout.
    depth: keys of stochastic depth, likewise.
    kept: float32, the probability that a block keeps a branch.
    rows_B: int32 [B], the row of each example in the global batch.
  """
  dropout: jax.Array | None
  depth: jax.Array | None
  kept: jax.Array | np.ndarray
  rows_B: jax.Array | np.ndarray

  def of_block(self, i: int) -> 'Masks':
    """Returns the masks of block `i`, out of those of all blocks."""
    at = lambda x: None if x is None else x[i]
    return Masks(dropout=at(self.dropout), depth=at(self.depth),
                 kept=self.kept[i], rows_B=self.rows_B)

  def units(self, x: jax.Array, name: str, rate: float) -> jax.Array:
    """Returns x without the units that dropout leaves out.

    Args:
      x: [B, ...].
      name: tells the places of a block apart.
      rate: probability of leaving a unit out; the others are divided by
        1 - rate.
    """
    if self.dropout is None or not rate:
      return x
    keep = keep_mask(_named(self.dropout, name), self.rows_B, 1 - rate,
                     x.shape[1:])
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))

  def path(self, branch_BSC: jax.Array, name: str) -> jax.Array:
    """Returns a branch without the examples whose stochastic depth drops it.

    A branch that is kept is not divided by `kept`, as in the official training
    code; timm and scenic do divide it.
    """
    if self.depth is None:
      return branch_BSC
    keep_B11 = keep_mask(_named(self.depth, name), self.rows_B, self.kept,
                         (1, 1))
    return branch_BSC * keep_B11.astype(branch_BSC.dtype)


# For evaluation: nothing is left out.
NO_MASKS = Masks(dropout=None, depth=None, kept=np.ones(1, np.float32),
                 rows_B=np.zeros(0, np.int32))


def draw_masks(network: nn.Module, rows_B: jax.Array) -> Masks:
  """Returns the masks of all blocks of a network, inside its `__call__`.

  Args:
    network: whose fields `num_blocks`, `dropout_rate` (see `Masks.units`) and
      `stochastic_depth` decide them. The last is the drop probability of the
      last block; block i of n has i / (n - 1) of it. The network is asked for a
      key for 'dropout' or 'stochastic_depth' only if that has a rate.
    rows_B: int32 [B], the row of each example in the global batch.
  """
  count, depth = network.num_blocks, network.stochastic_depth
  keys = lambda name, rate: jax.vmap(jax.random.fold_in, (None, 0))(
      network.make_rng(name), jnp.arange(count)) if rate else None
  # Python floats, rounded once to float32: runs that resume need the same bits.
  keep = [1 - i / max(count - 1, 1) * depth for i in range(count)]
  return Masks(dropout=keys('dropout', network.dropout_rate),
               depth=keys('stochastic_depth', depth),
               kept=np.array(keep, np.float32), rows_B=rows_B)


def keep_mask(key: jax.Array, rows_B: jax.Array | np.ndarray,
              kept: jax.Array | np.ndarray | float,
              shape: tuple[int, ...]) -> jax.Array:
  """Returns Bernoulli(kept) draws, bool [B, *shape].

  Example b draws from fold_in(key, rows_B[b]) alone, so its mask does not
  depend on how the global batch is cut into micro-batches or over devices.
  """
  def one(row):
    return jax.random.bernoulli(jax.random.fold_in(key, row), kept, shape)
  return jax.vmap(one)(rows_B)


def _named(key: jax.Array, name: str) -> jax.Array:
  # Python's hash() of a string differs between processes.
  return jax.random.fold_in(key, zlib.crc32(name.encode()))


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
  def __call__(self, x: jax.Array, drop: Masks, *,
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
        drop: Masks, *, names: Sequence[str], train: bool,
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
        x, drop.of_block(i) if train else NO_MASKS, train=train)
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
        x, params, Masks(dropout, depth, kept, drop.rows_B)), None

  return jax.lax.scan(
      body, x, (stacked, drop.dropout, drop.depth, drop.kept))[0], {}


def _in_turn(apply: Callable[[int, jax.Array], jax.Array], x: jax.Array,
             count: int) -> tuple[jax.Array, dict[str, jax.Array]]:
  out = {}
  for i in range(count):
    x = out[f'block_{i}'] = apply(i, x)
  return x, out
