"""Image files as people have them, by Pillow: upright, opaque, 8 bits.

EXIF rotation is applied, transparency is laid on white, 16 bits keep their
high byte, of an animation the first frame is taken, CMYK and palettes become
RGB. None of this needs TensorFlow.
"""
import io

import numpy as np
from PIL import Image
from PIL import ImageOps

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')
MAX_PIXELS = 2**27   # more is taken for a decompression bomb
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')
_ORIENTATION = 0x0112


class BadImage(Exception):
  """An image that cannot be used; the message says why, in one line."""


def is_plain(file, *, max_pixels=MAX_PIXELS):
  """Whether any decoder gives the same upright pixels; reads the header only.

  Args:
    file: the bytes of an image file.
    max_pixels: height times width at most.

  Raises:
    BadImage: if it is no image of a known kind, or too large.
  """
  with _opened(file, max_pixels) as image:
    if image.format not in ('JPEG', 'MPO', 'PNG') or (
        image.mode not in ('L', 'RGB')
        or 'transparency' in image.info or _deep_png(file)):
      return False
    try:
      return image.getexif().get(_ORIENTATION, 1) == 1
    except Exception as e:   # of a PNG that is cut short, say
      raise BadImage(one_line(e)) from e


def pixels(file, *, channels=3, max_pixels=MAX_PIXELS, upright=True):
  """All of an image, uint8 [height, width, channels], 1 or 3 channels.

  Args:
    file: the bytes of an image file.
    channels: of the result.
    max_pixels: height times width at most.
    upright: whether EXIF rotation and transparency are minded.

  Raises:
    BadImage: if any part of it cannot be decoded, or it is too large.
  """
  with _opened(file, max_pixels) as image:
    try:
      image.load()
      image = ImageOps.exif_transpose(image) if upright else image
      if image.mode.startswith('I'):   # 16 bits
        image = Image.fromarray(
            (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
      if upright and image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image)
      image = image.convert('L' if channels == 1 else 'RGB')
    except Exception as e:   # Pillow's readers raise all kinds
      raise BadImage(one_line(e)) from e
    return np.asarray(image).reshape(image.height, image.width, channels)


def bitmap(file, *, channels=3, max_pixels=MAX_PIXELS):
  """The same pixels as the bytes of a PNG file without compression, which
  TensorFlow reads with any number of channels, as it does not BMP."""
  return _png(pixels(file, channels=channels, max_pixels=max_pixels))


def one_line(error):
  """An exception's text without line breaks, not too long."""
  return ' '.join(str(error).split())[:200] or type(error).__name__


def _png(array):
  out = io.BytesIO()
  image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
  image.save(out, 'PNG', compress_level=0)
  return out.getvalue()


def _opened(file, max_pixels):
  if not file:
    raise BadImage('the file is empty')
  Image.MAX_IMAGE_PIXELS = None   # Pillow's own limit; ours comes below
  try:
    image = Image.open(io.BytesIO(file), formats=_FORMATS)
  except Exception as e:
    raise BadImage('not an image' if isinstance(e, Image.UnidentifiedImageError)
                   else one_line(e)) from e
  if image.width * image.height > max_pixels:
    raise BadImage(f'{image.width} x {image.height} pixels, more than '
                   f'{max_pixels:,}')
  return image


def _deep_png(file):
  """Whether a PNG has 16 bits a channel, which Pillow's mode hides."""
  return file[:4] == b'\x89PNG' and file[24:25] == b'\x10'


# Stands for an image in a row that does not count: one black pixel.
BLANK = _png(np.zeros((1, 1, 3), np.uint8))
