"""Sizes of images in pixels and in patches."""
from collections.abc import Sequence

import numpy as np

from mixer.core import errors

# The side of a square, or (height, width).
Size = int | Sequence[int]


def pair(size: Size) -> tuple[int, int]:
  """Returns a size as (height, width)."""
  if isinstance(size, int):
    return size, size
  height, width = size
  return height, width


def patches(image_size: Size, patch_size: Size) -> tuple[int, int]:
  """Returns how many (rows, columns) of patches an image has.

  Raises:
    UserError: if a side of the image is not a multiple of the patch's.
  """
  (height, width), (p_h, p_w) = pair(image_size), pair(patch_size)
  if height < p_h or width < p_w or height % p_h or width % p_w:
    raise errors.UserError(
        f'image_size: {height}x{width} is not a multiple of the patch size '
        f'{p_h}x{p_w}; the nearest sizes that fit are '
        f'{_multiples(height, p_h)} by {_multiples(width, p_w)}')
  return height // p_h, width // p_w


def tokens(image_size: Size, patch_size: Size) -> int:
  """Returns S, the number of patches of an image; raises as `patches` does."""
  rows, columns = patches(image_size, patch_size)
  return rows * columns


def square(tokens: int) -> tuple[int, int] | None:
  """Returns the (rows, columns) of a square of so many patches, if it is one.
  """
  side = round(tokens ** 0.5)
  return (side, side) if side * side == tokens else None


def resampling(old: int, new: int) -> np.ndarray:
  """Returns the weights of linear, antialiased resampling of one side.

  Args:
    old: number of points before.
    new: number of points after.

  Returns:
    float64 [new, old] whose rows sum to 1. Point i is at (i + 1/2) / side, as
    the centre of a pixel is.
  """
  stretch = max(1.0, old / new)
  at = (np.arange(new) + 0.5) * old / new - 0.5
  weight = np.maximum(0, 1 - np.abs(
      at[:, None] - np.arange(old)[None, :]) / stretch)
  return weight / weight.sum(axis=1, keepdims=True)


def _multiples(side: int, patch: int) -> str:
  below = side // patch * patch
  return ' or '.join(str(s) for s in dict.fromkeys(
      (below, below + patch if side % patch else below)) if s)
