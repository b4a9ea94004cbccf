"""Evaluation crops and resizing in NumPy, bit-equal to TensorFlow's.

`view` gives the pixels that `decode_tf.batches` gives for the same decoded
image, without TensorFlow or Pillow. It therefore computes in float32 and sums
in the order of TensorFlow's CPU kernels (ResizeBilinear, ResizeArea and
ScaleAndTranslate in tensorflow/core/kernels/image): the result is truncated to
whole levels, not rounded, so the last bit of a sum decides whether a white
wall is 255 or 254.
"""
from collections.abc import Callable
from collections.abc import Sequence
import functools

import numpy as np

from mixer.images import options

_STRIP = 2**17   # pixels that are computed at a time


def view(pixels: np.ndarray, *, size: Sequence[int], crop: str,
         interpolation: str) -> np.ndarray:
  """Returns the part of an image that an evaluation shows, resized.

  Args:
    pixels: uint8 [h, w, c], the whole image.
    size: (height, width) of the result.
    crop: one of `options.EVALUATION_CROPS`; `decode_tf.batches` explains them.
    interpolation: one of `options.INTERPOLATIONS`; `weights` explains them.

  Returns:
    uint8 [height, width, c]; a view of `pixels` where the size does not change.

  Raises:
    ValueError: if `crop` or `interpolation` is none of these.
  """
  kept, whole, corner = geometry(pixels.shape[:2], size=size, crop=crop)
  if interpolation not in options.INTERPOLATIONS:
    raise ValueError(f'interpolation {interpolation!r}: expected one of '
                     f'{options.INTERPOLATIONS}')
  top, left = ((h - k) // 2 for h, k in zip(pixels.shape, kept))
  pixels = pixels[top:top + kept[0], left:left + kept[1]]
  if kept == whole:
    return pixels[corner[0]:corner[0] + size[0], corner[1]:corner[1] + size[1]]
  rows, columns = ([x[first:first + n] for x in _taps(o, w, interpolation)]
                   for o, w, first, n in zip(kept, whole, corner, size))
  scale = _pixel_ratio(kept, whole) if interpolation == 'area' else None
  out = np.empty((*size, pixels.shape[2]), np.uint8)
  # A strip of rows at a time stays in the processor's cache.
  step = max(1, _STRIP * whole[0] // (
      pixels.size + pixels.shape[2] * kept[0] * size[1]))
  for i in range(0, size[0], step):
    strip = _strip(pixels, [x[i:i + step] for x in rows], columns,
                   interpolation)
    if interpolation == 'area':
      strip *= scale
    if interpolation == 'bicubic':   # which overshoots
      strip.clip(0, 255, out=strip)
    out[i:i + step] = strip
  return out


def geometry(shape: Sequence[int], *, size: Sequence[int], crop: str
             ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
  """Returns which part of an image is resized to what, and which is shown.

  Args:
    shape: (h, w) of the image.
    size: (height, width) of the result.
    crop: as in `view`.

  Returns:
    (kept, whole, corner), each (rows, columns). `kept` is the size of the
    centred part of the image that is resized; it begins at (shape - kept) // 2.
    `whole` is the size that this part is resized to. `corner` is the first row
    and column of the resized part that are shown.

  Raises:
    ValueError: if `crop` is not one of `options.EVALUATION_CROPS`.
  """
  if crop not in options.EVALUATION_CROPS:
    raise ValueError(f'crop {crop!r}: expected one of '
                     f'{options.EVALUATION_CROPS}')
  pair = lambda x: (int(x[0]), int(x[1]))
  kept = whole = np.array(shape)
  if crop == 'resize':
    return pair(kept), pair(size), (0, 0)
  larger = np.array([s * 8 // 7 for s in size])
  if crop == 'resmall':
    # An image that is one line of pixels would be enlarged to gigabytes.
    kept = np.minimum(kept, options.MAX_ASPECT * kept.min())
    whole = np.rint(kept * np.max(larger / kept)).astype(int)
    larger = np.maximum(whole, larger)
  return pair(kept), pair(larger), pair((larger - np.array(size)) // 2)


@functools.lru_cache(maxsize=128)
def weights(old: int, new: int, interpolation: str) -> np.ndarray:
  """Returns the matrix that resizes a side of `old` pixels to `new` pixels.

  An image is resized by one such matrix for each side, then clipped and
  truncated to whole levels. Summing in another order than `view` does can
  change the last bit of a value, and with it a level of a few pixels in ten
  thousand of a photo.

  Args:
    old: number of pixels of the side.
    new: number of pixels of the resized side.
    interpolation: 'bilinear': the two neighbours, without antialiasing.
      'bilinear_antialias': with antialiasing, as in Pillow and timm.
      'bicubic': Keys' kernel with a = -1/2, with antialiasing.
      'area': the mean of the old pixels that a new pixel covers.
      The centres of pixels are at halves.

  Returns:
    float32 [new, old], read-only; each row sums to 1.
  """
  index, weight = _taps(old, new, interpolation)
  out = np.zeros((new, old), np.float32)
  np.add.at(out, (np.arange(new)[:, None], index), weight)
  if interpolation == 'area':
    out *= np.float32(new / old)
  out.setflags(write=False)
  return out


def _strip(pixels, rows, columns, interpolation):
  """Some rows of the resized image, float32 [n, width, c].

  `rows` and `columns` are the indices and weights of `_taps`.
  """
  used, row = np.unique(rows[0], return_inverse=True)
  taps = row.reshape(rows[0].shape), rows[1]
  out = pixels[used].astype(np.float32)
  if interpolation == 'bilinear':
    return _lerp(0, _lerp(1, out, *columns), *taps)
  if interpolation == 'area':
    return _sum(0, _sum(1, out, *columns), *taps)
  return _sum(1, _sum(0, out, *taps), *columns)


@functools.lru_cache(maxsize=128)
def _taps(old, new, interpolation):
  """The old pixels that each new pixel is made of, and their weights.

  Returns (int [new, t], ascending; float32 [new, t]). Where a new pixel needs
  fewer than t old ones, the weight is 0. Those of 'area' are not yet scaled.
  """
  taps: dict[str, Callable] = dict(
      bilinear=_bilinear, area=_area,
      bilinear_antialias=functools.partial(_antialiased, _triangle, 1),
      bicubic=functools.partial(_antialiased, _keys, 2))
  start, weight = taps[interpolation](old, new)
  index = start.astype(int)[:, None] + np.arange(weight.shape[1])
  return np.minimum(index, old - 1), weight


def _bilinear(old, new):
  at = (np.arange(new, dtype=np.float32) + np.float32(.5)) * (
      np.float32(old) / np.float32(new)) - np.float32(.5)
  share = np.where(at < 0, 0, at - np.floor(at))
  return np.maximum(np.floor(at), 0), np.stack([1 - share, share], 1)


def _area(old, new):
  scale = np.float32(old) / np.float32(new)
  begin, end = (np.arange(i, new + i, dtype=np.float32) * scale for i in (0, 1))
  start, stop = np.floor(begin), np.ceil(end)
  begin, end, stop = begin[:, None], end[:, None], stop[:, None]
  at = start[:, None] + np.arange(int(np.max(stop[:, 0] - start)),
                                  dtype=np.float32)
  inside = at + 1 <= end
  weight = np.where(
      at < begin, np.where(inside, at + 1 - begin, scale),
      np.where(inside, np.float32(1), end - at))
  return start, np.where(at < stop, weight, np.float32(0))


def _antialiased(kernel, support, old, new):
  """The taps of a kernel that reaches `support` pixels to either side."""
  half = np.float32(.5)
  scale = np.float32(1 / (np.float32(new) / np.float32(old)))
  stretch = np.maximum(scale, np.float32(1))   # this is the antialiasing
  middle = ((np.arange(new, dtype=np.float32) + half) * scale)[:, None]
  reach = np.float32(support) * stretch
  start = np.clip(np.ceil(middle - reach - half), 0, old - 1)
  last = np.clip(np.floor(middle + reach - half), 0, old - 1)
  at = start + np.arange(int(np.max(last - start)) + 1, dtype=np.float32)
  weight = kernel(np.abs((at + half - middle) * (np.float32(1) / stretch)))
  weight = np.where(at <= last, weight, np.float32(0))
  # accumulate() adds in TensorFlow's order; sum() would add pairwise.
  total = np.add.accumulate(weight, axis=1)[:, -1:]
  return start[:, 0], weight * (np.float32(1) / total)


def _triangle(x):
  return np.maximum(np.float32(1) - x, np.float32(0))


def _keys(x):
  """Keys' cubic convolution kernel with a = -1/2 (IEEE ASSP 29(6), 1981)."""
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))


def _lerp(axis, array, index, weight):
  """Interpolates between two neighbours.

  In this form two equal neighbours give exactly their value.
  """
  low, high = (np.take(array, i, axis) for i in index.T)
  high -= low
  high *= weight[:, 1].reshape((-1, 1, 1) if axis == 0 else (-1, 1))
  high += low
  return high


def _sum(axis, array, index, weight):
  """A weighted sum that adds one pixel after the other."""
  shape = (-1, 1, 1) if axis == 0 else (-1, 1)
  out = 0
  for i, w in zip(index.T, weight.T):
    part = np.take(array, i, axis)
    part *= w.reshape(shape)
    out += part
  return out


def _pixel_ratio(old, new):
  """The area of a pixel of the old image, in pixels of the new one."""
  height, width = (np.float32(o) / np.float32(n) for o, n in zip(old, new))
  return np.float32(1 / float(height * width))
