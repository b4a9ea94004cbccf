"""A trained network for another image size, patch size or number of channels.

The patch projection changes alike for all networks, here. What else is tied to
the number of tokens S is the network's own, see `interface.Model.resized`. A
Mixer's token-mixing MLPs are, and there are two methods:

* 'block', the paper's (appendix C), for sides that grow by integer factors: the
  image is taken as K_H x K_W parts, each of which is mixed as before, by
  block-diagonal weights whose zeros are then trained. D_S grows with the number
  of parts. Before training, the network's pre-logits are exactly the mean of
  the old network's over the parts.
* 'resample', for any size: token mixing works on the tokens resampled to the
  old grid, and its result is resampled to the new one. Both are linear, so they
  fold into the weights, and D_S stays. Before training, the network sees the
  image at its own scale: tokens that are constant are mixed exactly as before.

Axes: P patch side, c image channels, C channels.
"""
from collections.abc import Mapping
import typing
from typing import Any

import jax
import numpy as np

from mixer.core import errors
from mixer.models import grid

if typing.TYPE_CHECKING:
  from mixer.models import interface

METHODS = ('block', 'resample')
_LARGEST = 2**32   # parameters


def resize(model: 'interface.Model', params: Mapping[str, Any], *,
           image_size: grid.Size, from_size: grid.Size | None = None,
           method: str | None = None, patch_size: grid.Size | None = None,
           in_channels: int | None = None) -> tuple[
               'interface.Model', Mapping[str, Any]]:
  """Returns a model and its parameters, made for other images.

  Args:
    model: as `models.create` makes it.
    params: its parameters, a nested dict.
    image_size: of the new images, an int or (height, width).
    from_size: of the old images; by default they were square.
    method: 'block' or 'resample'; by default 'block' where both sides of the
      image grow by integer factors and the patch stays, since that is the
      paper's case.
    patch_size: of the new network, by default the same. The patch projection is
      resampled so that an enlarged patch projects to what the patch did
      (FlexiViT, https://arxiv.org/abs/2212.08013, section 3.4).
    in_channels: of the new images, by default the same. For one channel, the
      projection's input channels are added up. For any other number they are
      repeated, and scaled so that a grey image projects to what it did, but for
      a BiT, which standardises the projection.

  Returns:
    (model, params), params NumPy arrays.

  Raises:
    UserError: if the sizes do not fit the patches, or the method the sizes, or
      the network would fit no memory.
  """
  if method is not None and method not in METHODS:
    raise errors.unknown('method', method, METHODS)
  params = jax.tree.map(np.asarray, params)
  old = _old_grid(model, params, from_size)
  patch = grid.pair(model.patch_size if patch_size is None else patch_size)
  new = grid.patches(image_size, patch)
  if model.pixel_order and (new, patch) != (old, grid.pair(model.patch_size)):
    raise errors.UserError(
        f'image_size: a network with pixel_order={model.pixel_order!r} is for '
        f'images of one size and patches of one size; keep both')
  fits = all(n % o == 0 for n, o in zip(new, old))
  if method == 'block' and not fits:
    raise errors.UserError(
        f'method: block is for patch grids that grow by integer factors, not '
        f'from {old[0]}x{old[1]} to {new[0]}x{new[1]}; use resample')
  if method is None:
    grown = fits and patch == grid.pair(model.patch_size)
    method = 'block' if grown else 'resample'
  channels = model.in_channels if in_channels is None else in_channels
  stem = params['stem']['kernel']
  if patch != grid.pair(model.patch_size):
    stem = _with_patch(stem, patch)
  params = dict(params, stem=dict(
      params['stem'], kernel=_with_channels(stem, channels)))
  if method == 'block':   # D_S grows with the number of parts
    _check_enlarged(model.clone(patch_size=patch, in_channels=channels),
                    image_size, (new[0] // old[0]) * (new[1] // old[1]))
  if new != old:
    model, params = model.resized(params, old, new, method)
  return model.clone(patch_size=patch if patch[0] != patch[1] else patch[0],
                     in_channels=channels), params


def _check_enlarged(model: 'interface.Model', image_size: grid.Size,
                    parts: int) -> None:
  """Raises a UserError if the enlarged network fits no memory."""
  count = model.enlarged(parts).parameters(image_size)
  if count > _LARGEST:
    raise errors.UserError(
        f'image_size: {image_size} has {parts} times the patches that the '
        f'weights are for, and the method block would make {count / 1e9:.1f} '
        'billion parameters of them; use smaller images, larger patches, or '
        'the method resample')


def _with_patch(kernel_PPcC: np.ndarray, patch: tuple[int, int]) -> np.ndarray:
  """Returns the projection w' for which <enlarged x, w'> = <x, w> for every x.
  """
  height, width = kernel_PPcC.shape[:2]
  # The pseudo-inverse gives the least squares, if the patch becomes smaller.
  y = np.linalg.pinv(grid.resampling(height, patch[0]).T)
  x = np.linalg.pinv(grid.resampling(width, patch[1]).T)
  return np.einsum('Yy,Xx,yxcC->YXcC', y, x, kernel_PPcC).astype(
      kernel_PPcC.dtype)


def _with_channels(kernel_PPcC: np.ndarray, channels: int) -> np.ndarray:
  have = kernel_PPcC.shape[2]
  if channels == have:
    return kernel_PPcC
  if channels == 1:
    return kernel_PPcC.sum(axis=2, keepdims=True)
  repeated = np.take(kernel_PPcC, np.arange(channels) % have, axis=2)
  grey = kernel_PPcC.sum(axis=2, keepdims=True)
  return repeated + (grey - repeated.sum(axis=2, keepdims=True)) / channels


def _old_grid(model: 'interface.Model', params: Mapping[str, Any],
              from_size: grid.Size | None) -> tuple[int, int]:
  """Returns the rows and columns of patches that parameters are for."""
  tokens = model.tokens(params)
  if from_size is None:
    square = None if tokens is None else grid.square(tokens)
    if square is None:
      raise errors.UserError(
          f'from_size: not given, and the weights are for {tokens or "any"} '
          'tokens, which is not a square number; give the (height, width) of '
          'the old images')
    return square
  old = grid.patches(from_size, model.patch_size)
  if tokens not in (None, old[0] * old[1]):
    raise errors.UserError(
        f'from_size: {from_size} makes {old[0]}x{old[1]} patches, but the '
        f'weights are for {tokens}')
  return old
