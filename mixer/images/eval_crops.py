"""What of an image an evaluation shows, in NumPy: no TensorFlow, no Pillow.

The same pixels as `decode.batches` gives from the same decoded image. What
follows is therefore computed in float32 and summed in the order of
TensorFlow's CPU kernels (ResizeBilinear, ResizeArea and ScaleAndTranslate,
tensorflow/core/kernels/image): the result is cut, not rounded, to whole
levels, so that a last bit decides whether a white wall is 255 or 254.
"""
import functools

import numpy as np

CROPS = ('resmall', 'resize_crop', 'resize')
INTERPOLATIONS = ('bilinear', 'bilinear_antialias', 'bicubic', 'area')
LONGEST = 16   # sides of an image's middle, of which the shorter is resized
_AT_ONCE = 2**17   # pixels


def view(pixels, *, size, crop, interpolation):
  """The part of an image that an evaluation shows, at the size it asks for.

  Args:
    pixels: uint8 [h, w, c], the whole image.
    size: (height, width) of the result.
    crop: 'resmall', 'resize_crop' or 'resize', see `decode.batches`.
    interpolation: one of INTERPOLATIONS, see `weights`.

  Returns:
    uint8 [*size, c]; a view of `pixels` where the size does not change.

  Raises:
    ValueError: if crop or interpolation is none of these.
  """
  kept, whole, corner = geometry(pixels.shape[:2], size=size, crop=crop)
  if interpolation not in INTERPOLATIONS:
    raise ValueError(f'unknown interpolation {interpolation!r}')
  top, left = ((h - k) // 2 for h, k in zip(pixels.shape, kept))
  pixels = pixels[top:top + kept[0], left:left + kept[1]]
  if kept == whole:
    return pixels[corner[0]:corner[0] + size[0], corner[1]:corner[1] + size[1]]
  rows, columns = ([x[first:first + n] for x in _taps(o, w, interpolation)]
                   for o, w, first, n in zip(kept, whole, corner, size))
  scale = _share(kept, whole) if interpolation == 'area' else None
  out = np.empty((*size, pixels.shape[2]), np.uint8)
  # Some rows at a time, which stay in the processor's cache.
  step = max(1, _AT_ONCE * whole[0] // (
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


def geometry(shape, *, size, crop):
  """Which part of an image is resized to what, and where the window is.

  Args:
    shape: (h, w) of the image.
    size: (height, width) of the result.
    crop: as in `view`.

  Returns:
    (kept, whole, corner), each (rows, columns): the extent of the image's
    middle that is resized, beginning at (shape - kept) // 2; the size that it
    is resized to; and the first row and column of that which is shown.

  Raises:
    ValueError: if the crop is none of an evaluation's.
  """
  if crop not in CROPS:
    raise ValueError(f'{crop!r} is no crop of an evaluation')
  kept = whole = np.array(shape)
  if crop == 'resize':
    return tuple(map(int, kept)), tuple(size), (0, 0)
  larger = np.array([s * 8 // 7 for s in size])
  if crop == 'resmall':   # not enlarged to gigabytes, if it is a line of pixels
    kept = np.minimum(kept, LONGEST * kept.min())
    whole = np.rint(kept * np.max(larger / kept)).astype(int)
    larger = np.maximum(whole, larger)
  return tuple(tuple(map(int, x)) for x in (
      kept, larger, (larger - np.array(size)) // 2))


@functools.lru_cache(maxsize=128)
def weights(old, new, interpolation):
  """The linear map of a side of `old` pixels to one of `new`.

  Args:
    old, new: pixels.
    interpolation: 'bilinear', without antialiasing: the two neighbours;
      'bilinear_antialias', with it, as Pillow and timm do; 'bicubic', with it:
      Keys' kernel, a = -1/2; 'area', the mean of what a pixel of the result
      covers. Centres are at halves.

  Returns:
    float32 [new, old], read-only; its rows sum to 1. An image is resized by one
    such matrix a side, then clipped and cut to whole levels. In an order of
    summing other than `view`'s a last bit may differ, and so, once cut, a level
    of a few pixels in ten thousand of a photo.
  """
  index, weight = _taps(old, new, interpolation)
  out = np.zeros((new, old), np.float32)
  np.add.at(out, (np.arange(new)[:, None], index), weight)
  if interpolation == 'area':
    out *= np.float32(new / old)
  out.setflags(write=False)
  return out


def _strip(pixels, rows, columns, interpolation):
  """float32 [some rows, width, c]; rows and columns are of `_taps`."""
  used, row = np.unique(rows[0], return_inverse=True)
  row = row.reshape(rows[0].shape), rows[1]
  out = pixels[used].astype(np.float32)
  if interpolation == 'bilinear':
    return _lerp(0, _lerp(1, out, *columns), *row)
  if interpolation == 'area':
    return _sum(0, _sum(1, out, *columns), *row)
  return _sum(1, _sum(0, out, *row), *columns)


@functools.lru_cache(maxsize=128)
def _taps(old, new, interpolation):
  """(pixels of the old side, ascending, their float32 weights), both [new, t].

  Where fewer count the weight is 0. Those of 'area' are yet to be scaled.
  """
  start, weight = dict(
      bilinear=_bilinear, area=_area,
      bilinear_antialias=functools.partial(_antialiased, _triangle, 1),
      bicubic=functools.partial(_antialiased, _keys, 2))[interpolation](
          old, new)
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
  """By a kernel that reaches `support` pixels to either side."""
  half = np.float32(.5)
  scale = np.float32(1 / (np.float32(new) / np.float32(old)))
  stretch = np.maximum(scale, np.float32(1))   # the antialiasing
  middle = ((np.arange(new, dtype=np.float32) + half) * scale)[:, None]
  reach = np.float32(support) * stretch
  start = np.clip(np.ceil(middle - reach - half), 0, old - 1)
  last = np.clip(np.floor(middle + reach - half), 0, old - 1)
  at = start + np.arange(int(np.max(last - start)) + 1, dtype=np.float32)
  weight = kernel(np.abs((at + half - middle) * (np.float32(1) / stretch)))
  weight = np.where(at <= last, weight, np.float32(0))
  total = np.add.accumulate(weight, axis=1)[:, -1:]   # one after the other
  return start[:, 0], weight * (np.float32(1) / total)


def _triangle(x):
  return np.maximum(np.float32(1) - x, np.float32(0))


def _keys(x):
  """Keys' cubic convolution kernel with a = -1/2 (IEEE ASSP 29(6), 1981)."""
  near = (1.5 * x - 2.5) * x * x + 1
  far = ((-.5 * x + 2.5) * x - 4) * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, np.float32(0)))


def _lerp(axis, array, index, weight):
  """Between two neighbours, so that one colour stays that colour exactly."""
  low, high = (np.take(array, i, axis) for i in index.T)
  high -= low
  high *= weight[:, 1].reshape((-1, 1, 1) if axis == 0 else (-1, 1))
  high += low
  return high


def _sum(axis, array, index, weight):
  """Weighted, one pixel after the other."""
  shape = (-1, 1, 1) if axis == 0 else (-1, 1)
  out = 0
  for i, w in zip(index.T, weight.T):
    part = np.take(array, i, axis)
    part *= w.reshape(shape)
    out += part
  return out


def _share(old, new):
  """What a pixel of the old image is of one of the new."""
  height, width = (np.float32(o) / np.float32(n) for o, n in zip(old, new))
  return np.float32(1 / float(height * width))
