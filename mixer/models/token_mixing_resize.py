"""Token-mixing weights for another number of tokens; see `pretrained.resize`.

Axes: K parts of a larger image, S tokens, D hidden width.
"""
import numpy as np

from mixer.models import grid
from mixer.models.tied_mixing import Grid
from mixer.models.tied_mixing import Params


def _places(old: Grid, new: Grid) -> np.ndarray:
  """Returns [K, S], the tokens of each part.

  Tokens are in raster order, so the tokens of a part are not next to each
  other, and the blocks lie scattered over the matrices.
  """
  (h, w), parts = old, (new[0] // old[0], new[1] // old[1])
  place = np.arange(new[0] * new[1]).reshape(parts[0], h, parts[1], w)
  return place.transpose(0, 2, 1, 3).reshape(-1, h * w)


def _maps(old: Grid, new: Grid) -> tuple[np.ndarray, np.ndarray]:
  """Returns (down, up): `down` takes new tokens to the old grid, `up` takes
  them back."""
  return (np.kron(grid.resampling(new[0], old[0]),
                  grid.resampling(new[1], old[1])),
          np.kron(grid.resampling(old[0], new[0]),
                  grid.resampling(old[1], new[1])))


def mlp_in_blocks(mlp: Params, old: Grid, new: Grid) -> Params:
  """Returns the paper's weights for parts of a larger image (appendix C)."""
  place_KS = _places(old, new)
  first_SD, second_DS = mlp['Dense_0']['kernel'], mlp['Dense_1']['kernel']
  count, hidden = len(place_KS), first_SD.shape[1]
  first = np.zeros((place_KS.size, count * hidden), first_SD.dtype)
  second = np.zeros((count * hidden, place_KS.size), second_DS.dtype)
  bias = np.zeros(place_KS.size, second_DS.dtype)
  for k, tokens_S in enumerate(place_KS):
    units = slice(k * hidden, (k + 1) * hidden)
    first[tokens_S, units] = first_SD
    second[units, tokens_S] = second_DS
    bias[tokens_S] = mlp['Dense_1']['bias']
  return {'Dense_0': dict(kernel=first,
                          bias=np.tile(mlp['Dense_0']['bias'], count)),
          'Dense_1': dict(kernel=second, bias=bias)}


def mlp_resampled(mlp: Params, old: Grid, new: Grid) -> Params:
  """Returns up W2 gelu(W1 down x)."""
  down, up = _maps(old, new)
  fold = lambda x, like: x.astype(like.dtype)
  first, second = mlp['Dense_0'], mlp['Dense_1']
  return {
      'Dense_0': dict(first, kernel=fold(
          down.T @ first['kernel'], first['kernel'])),
      'Dense_1': dict(
          kernel=fold(second['kernel'] @ up.T, second['kernel']),
          bias=fold(up @ second['bias'], second['bias']))}


def linear_in_blocks(dense: Params, old: Grid, new: Grid) -> Params:
  """Returns a linear map over tokens for each of the parts of a larger image.
  """
  size = new[0] * new[1]
  kernel = np.zeros((size, size), dense['kernel'].dtype)
  bias = np.zeros(size, dense['bias'].dtype)
  for tokens_S in _places(old, new):
    kernel[np.ix_(tokens_S, tokens_S)] = dense['kernel']
    bias[tokens_S] = dense['bias']
  return dict(kernel=kernel, bias=bias)


def linear_resampled(dense: Params, old: Grid, new: Grid) -> Params:
  """Returns up (W down x + b), for a linear map W x + b over tokens."""
  down, up = _maps(old, new)
  kernel, bias = down.T @ dense['kernel'] @ up.T, up @ dense['bias']
  return dict(kernel=kernel.astype(dense['kernel'].dtype),
              bias=bias.astype(dense['bias'].dtype))
