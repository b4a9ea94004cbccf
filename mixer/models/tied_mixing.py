"""The type of a way of mixing tokens, and the MLP that the paper mixes them by.

This is all that a training step of the paper's Mixer needs; the table of all
ways is in `models.token_mixing`.

Axes, in the paper's letters: B batch, S tokens, C channels.
"""
from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.models import blocks
from mixer.models import products

# Parameters of one block's token mixing, NumPy arrays in a nested dict.
Params = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]
Grid = tuple[int, int]   # rows and columns of patches


@dataclasses.dataclass(frozen=True)
class Mixing:
  """How one block mixes tokens, and what decides the cost of it.

  Attributes:
    name: of a row of `token_mixing.TABLE`.
    grid: rows and columns of patches of the block's input.
    c: C, the number of channels.
    d: D_S, the hidden width.
    n: the number in a setting such as 'grouped:4'; 1 without one.
  """
  name: str
  grid: Grid
  c: int
  d: int
  n: int = 1

  @property
  def s(self) -> int:
    """S, the number of tokens of the block's input."""
    return self.grid[0] * self.grid[1]

  @property
  def after(self) -> 'Mixing':
    """The paper's mixing on the tokens that come out of the block."""
    by = self.n if row(self.name).shrink else 1
    return dataclasses.replace(self, name='tied', n=1, grid=(
        -(-self.grid[0] // by), -(-self.grid[1] // by)))

  def layers(self) -> list[tuple[str, int]]:
    """Returns (name, multiply-adds for one image) of its modules."""
    count = row(self.name).multiply_adds(self)
    return [(f'token_mixing/{name}', n) for name, n in count.items()
            ] if isinstance(count, dict) else [('token_mixing', count)]


@dataclasses.dataclass(frozen=True)
class TokenMixing:
  """A way of mixing tokens.

  Attributes:
    mix: (block, x_BSC, drop, train=...) -> [B, S, C], which the block adds to
      its input.
    parameters: `Mixing` -> number of parameters of one block.
    multiply_adds: `Mixing` -> multiply-adds of one block for one image; or
      those of each module in 'token_mixing', by name, if they differ.
    tokens: parameters -> the S that they are tied to; None if any number of
      tokens fits them.
    number: C -> the number that a setting without one gets; None if the way
      takes no number.
    divides: whether the number has to divide C.
    shrink: (block, x_BSC) -> [B, S', C], what the block's skip path holds, for
      a way that makes S' tokens of S, an `n`-th of each side of the grid. Only
      the middle block then mixes in this way, the others as the paper does.
      None if there are as many tokens as before.
    shown: shapes of the parameters in 'token_mixing', by name -> what they show
      of `n` and `d`; it raises KeyError, IndexError or ValueError for those of
      another way. None if they show nothing.
    resize: {method: (parameters, old grid, new grid) -> parameters}, for other
      numbers of tokens; see `pretrained.resize`.
    widens: whether the method 'block' multiplies D_S by the number of parts.
  """
  mix: Callable[..., jax.Array]
  parameters: Callable[[Mixing], int]
  multiply_adds: Callable[[Mixing], int | dict[str, int]]
  tokens: Callable[[Params], int] | None = None
  number: Callable[[int], int] | None = None
  divides: bool = False
  shrink: Callable[[Any, jax.Array], jax.Array] | None = None
  shown: Callable[[Shapes], dict[str, int]] | None = None
  resize: Mapping[str, Callable[[Params, Grid, Grid], Params]] = (
      dataclasses.field(default_factory=dict))
  widens: bool = False

  @property
  def has_width(self) -> bool:
    """Returns whether the hidden width D_S has an effect."""
    one = Mixing('tied', (1, 1), 1, 1)
    return self.parameters(one) != self.parameters(
        dataclasses.replace(one, d=2))


def tied(block: nn.Module, x_BSC: jax.Array, drop: blocks.Masks, *,
         train: bool) -> jax.Array:
  """Mixes tokens as the paper does: one MLP, shared by all channels (equation
  1)."""
  mlp = blocks.MlpBlock(
      block.tokens_mlp_dim, block.dropout_rate, block.approximate_gelu,
      block.dtype, name='token_mixing')
  y_BCS = mlp(jnp.swapaxes(x_BSC, 1, 2), drop,
              forms=products.token_mlp(block.platform, train=train))
  return jnp.swapaxes(y_BCS, 1, 2)


# `token_mixing.TABLE` adds what only loading and resizing need.
TIED = TokenMixing(
    tied, parameters=lambda z: 2 * z.s * z.d + z.d + z.s,
    multiply_adds=lambda z: 2 * z.c * z.s * z.d,
    tokens=lambda mlp: mlp['Dense_0']['kernel'].shape[0], widens=True)


def row(name: str) -> TokenMixing:
  """Returns the row `name` of `token_mixing.TABLE`."""
  if name == 'tied':
    return TIED
  from mixer.models import token_mixing
  return token_mixing.TABLE[name]


def stack(setting: str, first: Mixing, count: int) -> list[Mixing]:
  """Returns how each block of a network mixes tokens.

  Args:
    setting: as `token_mixing.checked` returns it.
    first: with the sizes of the first block.
    count: number of blocks.
  """
  name, _, number = setting.partition(':')
  own = dataclasses.replace(first, name=name, n=int(number or 1))
  if row(name).shrink is None:
    return [own] * count
  return [*[first] * (count // 2), own, *[own.after] * count][:count]
