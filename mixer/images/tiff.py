"""Checks the bands of TIFF images, and reads samples of 16 bits in colour."""
import functools
import io
import sys

import numpy as np
from PIL import Image
from PIL import TiffImagePlugin

from mixer.core.log import log
from mixer.images import deep_samples

_BITS, _BANDS, _PLANAR = 258, 277, 284   # tags


def check_bands(image: Image.Image) -> None:
  """Warns if a band that may be a mask of the photo is not read.

  Args:
    image: a TIFF, as Pillow opened it.

  Raises:
    BadImage: if other bands would not be read, or would be read wrongly.
  """
  assert isinstance(image, TiffImagePlugin.TiffImageFile)
  tags, shown = image.tag_v2, len(image.getbands())
  try:
    bands, planar = int(tags.get(_BANDS, 1)), int(tags.get(_PLANAR, 1))
    bits = max(map(int, tags.get(_BITS, (1,))))
  except (TypeError, ValueError) as e:   # a tag of another type
    raise deep_samples.BadImage(deep_samples.one_line(e)) from e
  if bands > shown + 1:
    raise deep_samples.BadImage(
        f'{bands} bands, of which {shown} would be read; convert it to RGB, or '
        'give images of more than 3 channels as arrays:PATH.npz')
  if bands > shown:
    _say_once(f'images of {bands} bands: {shown} are read, because the file '
              'does not say that the last one is transparency')
  if shown > 1 and planar == 2 and bits > 8:
    raise deep_samples.BadImage(
        'a TIFF image of more than 8 bits that stores its bands one after the '
        'other, which cannot be read here; convert it to JPEG or PNG')


def is_deep(image: Image.Image) -> bool:
  """Returns whether a TIFF in colour has samples of 16 bits.

  Args:
    image: as Pillow opened it.
  """
  # The colours of 'RGBa' are multiplied with alpha; Pillow divides them.
  return image.mode in ('RGB', 'RGBA') and all(
      isinstance(tile.args, tuple) and tile.args[0].startswith(
          ('RGB;16', 'RGBX;16', 'RGBA;16'))
      for tile in getattr(image, 'tile', ()))


def in_colour(file: bytes) -> np.ndarray:
  """Returns the samples of a TIFF that `is_deep`: uint16 [H, W, 3 or 4].

  Pillow gives the high byte only. Read in the other byte order, the high byte
  is the low one.

  Args:
    file: the bytes of the file.
  """
  def load(order):
    with Image.open(io.BytesIO(file), formats=('TIFF',)) as again:
      assert isinstance(again, TiffImagePlugin.TiffImageFile)
      for i, tile in enumerate(again.tile):
        assert isinstance(tile.args, tuple)
        mode, *rest = tile.args
        again.tile[i] = tile._replace(
            args=(mode[:-1] + order[mode[-1]], *rest))
      return np.asarray(again).astype(np.uint16)

  # 'N' is the order of this machine, which libtiff gives.
  swapped = 'B' if sys.byteorder == 'little' else 'L'
  return load(dict(L='L', B='B', N='N')) << 8 | load(
      dict(L='B', B='L', N=swapped))


@functools.cache
def _say_once(line: str) -> None:
  log.warning('%s', line)
