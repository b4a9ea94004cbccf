"""One fixed order of the pixels of every image, as section 3.4 of the paper
(https://arxiv.org/abs/2105.01601) permutes them.

A value is 'KIND[:PATCH[:SEED]]'. The kinds, for patches of PATCH x PATCH
pixels:

  within   the pixels inside each patch, by one order that all patches share
  patches  the patches, each of which stays as it is
  both     the patches and the pixels inside them (the paper's first pipeline)
  all      all pixels of the image (the paper's second pipeline)

With one seed, 'both' is 'within' after 'patches'.
"""
import jax
import jax.numpy as jnp
import numpy as np

from mixer.core import errors
from mixer.models import grid

KINDS = ('within', 'patches', 'both', 'all')
# Which random stream each of the three permutations is drawn from.
_PATCHES, _WITHIN, _ALL = range(3)


def parse(text: str, patch_size: grid.Size | None = None
          ) -> tuple[str, tuple[int, int], int]:
  """Returns (kind, height and width of a patch, seed) of a value.

  Args:
    text: 'KIND[:PATCH[:SEED]]'.
    patch_size: of the network, in pixels: the patch of a value that names none.

  Raises:
    UserError: if the value has another form.
  """
  kind, *numbers = str(text).split(':')
  if kind not in KINDS or len(numbers) > 2 or not all(
      number.isdecimal() and int(number) < 2**63 for number in numbers):
    raise errors.UserError(
        f'model.pixel_order: expected KIND[:PATCH[:SEED]] with KIND one of '
        f'{", ".join(KINDS)}, such as both:4:0, got {text!r}')
  patch = grid.pair(int(numbers[0]) if numbers else patch_size or 1)
  if kind != 'all' and patch[0] * patch[1] < 2:
    raise errors.UserError(
        f'model.pixel_order: {text!r} needs patches of at least 2 pixels, and '
        f'the network has none of its own; name their side, as in {kind}:4')
  return kind, patch, int(numbers[1]) if len(numbers) > 1 else 0


def order(text: str, height: int, width: int,
          patch_size: grid.Size | None = None) -> np.ndarray:
  """Returns int32 [height * width]: pixel i of the result is pixel order[i] of
  the image, both counted in raster order.

  The same on every machine and with every version of NumPy.

  Args:
    text: 'KIND[:PATCH[:SEED]]'.
    height, width: of the images, in pixels.
    patch_size: the patch of a value that names none.

  Raises:
    UserError: if the value is wrong, or the patches do not fit the images.
  """
  kind, patch, seed = parse(text, patch_size)
  if kind == 'all':
    return _permutation(height * width, seed, _ALL)
  patches, within = parts(text, height, width, patch_size)
  rows, columns = height // patch[0], width // patch[1]
  place = np.arange(height * width, dtype=np.int32).reshape(
      rows, patch[0], columns, patch[1]).swapaxes(1, 2)
  place = place.reshape(len(patches), len(within))[patches][:, within]
  return place.reshape(rows, columns, *patch).swapaxes(1, 2).reshape(-1)


def parts(text: str, height: int, width: int,
          patch_size: grid.Size | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Returns the two permutations that an order consists of: int32 [patches]
  and int32 [pixels of a patch].

  Patch s of the result is patch `patches[s]` of the image, and pixel k of each
  patch is its pixel `within[k]`; both are counted in raster order.

  Args:
    text: a value of another kind than 'all'.
    height, width, patch_size: see `order`.

  Raises:
    UserError: see `order`.
  """
  kind, patch, seed = parse(text, patch_size)
  if height % patch[0] or width % patch[1]:
    raise errors.UserError(
        f'model.pixel_order: {text!r} has patches of {patch[0]}x{patch[1]} '
        f'pixels, which do not fill images of {height}x{width}')
  area = patch[0] * patch[1]
  count = height * width // area
  make = lambda kinds, count, stream: (
      _permutation(count, seed, stream) if kind in kinds
      else np.arange(count, dtype=np.int32))
  return (make(('patches', 'both'), count, _PATCHES),
          make(('within', 'both'), area, _WITHIN))


def patch_places(text: str, height: int, width: int,
                 patch_size: grid.Size) -> np.ndarray:
  """Returns int [patches]: which patch of the image each patch of the result
  shows, both counted in raster order.

  Args:
    text: 'KIND[:PATCH[:SEED]]'.
    height, width: of the images, in pixels.
    patch_size: of the network, in pixels.

  Raises:
    UserError: see `order`; or if a patch of the result has pixels of several.
  """
  rows, columns = grid.patches((height, width), patch_size)
  high, wide = grid.pair(patch_size)
  number = np.arange(rows * columns).reshape(rows, columns)
  number = number.repeat(high, axis=0).repeat(wide, axis=1)
  seen = number.reshape(-1)[order(text, height, width, patch_size)].reshape(
      rows, high, columns, wide).swapaxes(1, 2).reshape(rows * columns, -1)
  if (seen != seen[:, :1]).any():
    raise errors.UserError(
        f'model.pixel_order: with {text!r} a token of {high}x{wide} pixels has '
        'pixels of several patches, so its weights have no place in the image; '
        'expected an order that keeps patches together, such as '
        f"'patches:{high}'")
  return seen[:, 0]


def apply(images: jax.Array, text: str,
          patch_size: grid.Size | None = None) -> jax.Array:
  """Returns images [B, H, W, c] with their pixels in another order; `text`,
  `patch_size` and what is raised are those of `order`."""
  _, height, width, channels = images.shape
  pixels = images.reshape(-1, height * width, channels)
  return jnp.take(pixels, order(text, height, width, patch_size), axis=1
                  ).reshape(images.shape)


def _permutation(count: int, seed: int, stream: int) -> np.ndarray:
  """Returns a random int32 permutation of `count` numbers."""
  # NumPy promises the bits of its generators, not what is made of them.
  bits = np.random.Philox(key=[seed, stream]).random_raw(count)
  return np.argsort(bits, kind='stable').astype(np.int32)
