"""Ways of mixing tokens: one table, with the cost of each beside it.

A way of mixing is a function, called inside `MixerBlock.__call__`. It gets the
block for its settings (`tokens_mlp_dim`, `dtype`, `platform`, `grid`, ...), the
normalised tokens and the masks of the step. A module that it makes with
name='token_mixing' holds its parameters.

Axes, in the paper's letters: B batch, S tokens, C channels, D_S hidden width.
"""
from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixer.models import activations
from mixer.models import blocks
from mixer.models import grid
from mixer.models import masks
from mixer.models import products

# Parameters of one block's token mixing, NumPy arrays in a nested dict.
Params = Mapping[str, Any]
Grid = tuple[int, int]   # rows and columns of patches


@dataclasses.dataclass(frozen=True)
class TokenMixing:
  """A way of mixing tokens.

  Attributes:
    mix: (block, x_BSC, drop, train=...) -> [B, S, C], which the block adds to
      its input.
    parameters: (S, C, D_S) -> number of parameters of one block.
    multiply_adds: (S, C, D_S) -> multiply-adds of one block for one image.
    tokens: parameters -> the S that they are tied to; None if any number of
      tokens fits them.
    resize: {method: (parameters, old grid, new grid) -> parameters}, for other
      numbers of tokens; see `pretrained.resize`.
  """
  mix: Callable[..., jax.Array]
  parameters: Callable[[int, int, int], int]
  multiply_adds: Callable[[int, int, int], int]
  tokens: Callable[[Params], int] | None = None
  resize: Mapping[str, Callable[[Params, Grid, Grid], Params]] = (
      dataclasses.field(default_factory=dict))


def tied(block: nn.Module, x_BSC: jax.Array, drop: masks.Masks, *,
         train: bool) -> jax.Array:
  """Mixes tokens as the paper does: one MLP, shared by all channels (equation
  1)."""
  mlp = blocks.MlpBlock(
      block.tokens_mlp_dim, block.dropout_rate, block.approximate_gelu,
      block.dtype, name='token_mixing')
  y_BCS = mlp(jnp.swapaxes(x_BSC, 1, 2), drop,
              dot=products.over_tokens(block.platform, train=train),
              gelu=activations.gelu(block.platform, train=train,
                                    approximate=block.approximate_gelu))
  return jnp.swapaxes(y_BCS, 1, 2)


def _tied_tokens(mlp: Params) -> int:
  return mlp['Dense_0']['kernel'].shape[0]


def _block_diagonal(mlp: Params, old: Grid, new: Grid) -> Params:
  """Returns the paper's weights for parts of a larger image (appendix C).

  Tokens are in raster order, so the tokens of a part are not next to each
  other, and the blocks lie scattered over the matrices.
  """
  (h, w), parts = old, (new[0] // old[0], new[1] // old[1])
  place = np.arange(new[0] * new[1]).reshape(parts[0], h, parts[1], w)
  place_KS = place.transpose(0, 2, 1, 3).reshape(-1, h * w)
  first_SD, second_DS = mlp['Dense_0']['kernel'], mlp['Dense_1']['kernel']
  count, hidden = len(place_KS), first_SD.shape[1]
  first = np.zeros((place.size, count * hidden), first_SD.dtype)
  second = np.zeros((count * hidden, place.size), second_DS.dtype)
  bias = np.zeros(place.size, second_DS.dtype)
  for k, tokens_S in enumerate(place_KS):
    units = slice(k * hidden, (k + 1) * hidden)
    first[tokens_S, units] = first_SD
    second[units, tokens_S] = second_DS
    bias[tokens_S] = mlp['Dense_1']['bias']
  return {'Dense_0': dict(kernel=first,
                          bias=np.tile(mlp['Dense_0']['bias'], count)),
          'Dense_1': dict(kernel=second, bias=bias)}


def _resampled(mlp: Params, old: Grid, new: Grid) -> Params:
  """Returns up W2 gelu(W1 down x): `down` takes new tokens to the old grid,
  `up` takes them back."""
  down = np.kron(grid.resampling(new[0], old[0]),
                 grid.resampling(new[1], old[1]))
  up = np.kron(grid.resampling(old[0], new[0]),
               grid.resampling(old[1], new[1]))
  fold = lambda x, like: x.astype(like.dtype)
  first, second = mlp['Dense_0'], mlp['Dense_1']
  return {
      'Dense_0': dict(first, kernel=fold(
          down.T @ first['kernel'], first['kernel'])),
      'Dense_1': dict(
          kernel=fold(second['kernel'] @ up.T, second['kernel']),
          bias=fold(up @ second['bias'], second['bias']))}


TABLE = {
    'tied': TokenMixing(
        tied, parameters=lambda s, c, d: 2 * s * d + d + s,
        multiply_adds=lambda s, c, d: 2 * c * s * d, tokens=_tied_tokens,
        resize=dict(block=_block_diagonal, resample=_resampled)),
}
