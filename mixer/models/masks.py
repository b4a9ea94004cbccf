"""Dropout and stochastic depth, whose masks belong to rows of the global batch.

Axes: B batch.
"""
from collections.abc import Callable
import zlib

import flax
import jax
import jax.numpy as jnp
import numpy as np


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
NONE = Masks(dropout=None, depth=None, kept=np.ones(1, np.float32),
             rows_B=np.zeros(0, np.int32))


def draw(make_rng: Callable[[str], jax.Array], rows_B: jax.Array, *,
         num_blocks: int, dropout_rate: float,
         stochastic_depth: float) -> Masks:
  """Returns the masks of all blocks of a network.

  Args:
    make_rng: gives a key for 'dropout' and for 'stochastic_depth'; it is asked
      only for what has a rate.
    rows_B: int32 [B], the row of each example in the global batch.
    num_blocks: n.
    dropout_rate: see `Masks.units`.
    stochastic_depth: drop probability of the last block; block i of n has
      i / (n - 1) of it.
  """
  keys = lambda name, rate: jax.vmap(jax.random.fold_in, (None, 0))(
      make_rng(name), jnp.arange(num_blocks)) if rate else None
  # Python floats, rounded once to float32: runs that resume need the same bits.
  keep = [1 - i / max(num_blocks - 1, 1) * stochastic_depth
          for i in range(num_blocks)]
  return Masks(dropout=keys('dropout', dropout_rate),
               depth=keys('stochastic_depth', stochastic_depth),
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
