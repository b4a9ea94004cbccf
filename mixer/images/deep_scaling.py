"""Scales images whose samples have more than 8 bits to 8 bits.

Cameras, microscopes and scanners store samples of 10, 12 or 14 bits in 16, so
the high byte alone would be nearly black. The number of bits comes from the
file if it says it, else from the largest sample of the image. It does not
depend on other images, so a file has the same pixels in training, evaluation
and prediction.
"""
import functools
import io

import numpy as np
from PIL import Image

from mixer.core.log import log
from mixer.images.deep_samples import BadImage
from mixer.images.deep_samples import png_depth

_DEPTHS = (8, 10, 12, 14, 16, 24, 32)   # bits that samples may use
# TIFF tags.
_BITS, _PHOTOMETRIC, _MAX_SAMPLE = 258, 262, 281


def as_8_bits(image: Image.Image, file: bytes) -> Image.Image:
  """Returns an image with 8 bits a sample; it keeps the EXIF data.

  Args:
    image: as Pillow opened it, not loaded yet.
    file: the bytes of the image file.

  Raises:
    BadImage: if the samples have no scale that can be known.
  """
  exif = image.info.get('exif')
  if image.mode not in ('RGB', 'RGBA'):
    samples = np.asarray(image)
  elif image.format == 'TIFF':
    from mixer.images import tiff
    samples = tiff.in_colour(file)
  else:
    samples = _png_in_colour(image, file)
  tags = getattr(image, 'tag_v2', {})
  scale = lambda x: scaled(
      x, _stated_bits(file, tags), tags.get(_PHOTOMETRIC) == 0)
  if samples.ndim == 3 and samples.shape[2] == 4:   # colours and alpha
    samples = np.dstack([scale(samples[..., :3]), scale(samples[..., 3])])
  else:
    samples = scale(samples)
  out = Image.fromarray(samples)
  if exif:
    out.info['exif'] = exif
  return out


def scaled(samples: np.ndarray, stated: int | None = None,
           inverted: bool = False) -> np.ndarray:
  """Scales samples to 8 bits.

  Args:
    samples: integers, or floats from 0 to 1 or from 0 to 255.
    stated: the number of bits of integers if the file says it.
    inverted: whether 0 is white.

  Returns:
    uint8 of the same shape.

  Raises:
    BadImage: if there are other values.
  """
  low, high = samples.min(), samples.max()
  if samples.dtype.kind == 'f':
    if not 0 <= low <= high <= 255:   # false for NaN too
      raise BadImage(f'samples from {low:g} to {high:g}; expected floats from '
                     '0 to 1 or from 0 to 255')
    white = 1 if high <= 1 else 255
    out = (samples * np.float32(255 / white) + np.float32(.5)).astype(np.uint8)
  else:
    if low < 0:
      raise BadImage(f'samples from {low} to {high}; expected none below 0')
    depths = (stated, *_DEPTHS) if stated and stated >= 8 else _DEPTHS
    bits = next(b for b in depths if int(high) < 1 << b)
    white = (1 << bits) - 1
    out = (samples >> (bits - 8)).astype(np.uint8)
  _say_once(white)
  return 255 - out if inverted else out


@functools.cache
def _say_once(white: int) -> None:
  log.info('images with samples of more than 8 bits: in some, %d is taken for '
           'white, by what the file says or by its largest sample', white)


def _stated_bits(file, tags):
  """The number of bits that a PNG or a TIFF says its samples use, or None."""
  if png_depth(file) == 16:
    at = file.find(b'sBIT', 33, max(file.find(b'IDAT'), 0))
    return max(file[at + 4:at + 4 + file[at - 1]], default=None) if (
        at > 0) else None
  most = tags.get(_MAX_SAMPLE)
  if most:
    return int(np.max(most)).bit_length()
  bits = max(tags.get(_BITS, (16,)))
  return bits if bits < 16 else None


def _png_in_colour(image, file):
  """The samples of a PNG of 16 bits in colour: uint16 [H, W, 3 or 4].

  Pillow gives the high byte only. Read in the other byte order, the high byte
  is the low one.
  """
  def load(rawmode):
    with Image.open(io.BytesIO(file), formats=('PNG',)) as again:
      again.tile = [again.tile[0]._replace(args=rawmode)]
      return np.asarray(again).astype(np.uint16)

  if image.tile[0].args == 'LA;16B':   # 4 bytes a pixel, as RGBA has
    grey, low, alpha, low_alpha = np.moveaxis(load('RGBA'), -1, 0)
    return np.stack([grey << 8 | low] * 3 + [alpha << 8 | low_alpha], -1)
  return load(f'{image.mode};16B') << 8 | load(f'{image.mode};16L')
