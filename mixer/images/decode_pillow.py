"""Decodes image files of any common kind with Pillow: upright, opaque, 8 bits.

EXIF rotation is applied, transparency is laid on white, 16-bit images keep
their high byte, an animation gives its first frame, and CMYK and palettes
become RGB. None of this needs TensorFlow.
"""
import io

import numpy as np
from PIL import Image
from PIL import ImageOps

from mixer.images import options

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')
_ORIENTATION = 0x0112   # the EXIF tag


class BadImage(Exception):
  """An image that cannot be used; the message gives the reason in one line."""


def is_plain(file: bytes, *, max_pixels: int = options.MAX_PIXELS) -> bool:
  """Returns whether every decoder gives the same upright pixels of an image.

  Only the header is read.

  Args:
    file: the bytes of an image file.
    max_pixels: largest allowed height times width.

  Raises:
    BadImage: if the file is no image of a known format, or it is too large.
  """
  with _opened(file, max_pixels) as image:
    if image.format not in ('JPEG', 'MPO', 'PNG') or (
        image.mode not in ('L', 'RGB')
        or 'transparency' in image.info or _is_16_bit_png(file)):
      return False
    try:
      return image.getexif().get(_ORIENTATION, 1) == 1
    except Exception as e:   # such as a PNG that is cut short
      raise BadImage(one_line(e)) from e


def pixels(file: bytes, *, channels: int = 3,
           max_pixels: int = options.MAX_PIXELS,
           upright: bool = True) -> np.ndarray:
  """Decodes a whole image.

  Args:
    file: the bytes of an image file.
    channels: number of channels of the result, 1 or 3.
    max_pixels: largest allowed height times width.
    upright: whether to apply EXIF rotation and to lay transparency on white.
      Otherwise both are ignored.

  Returns:
    uint8 [height, width, channels].

  Raises:
    BadImage: if any part of it cannot be decoded, or it is too large.
  """
  with _opened(file, max_pixels) as opened:
    image: Image.Image = opened
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
    except Exception as e:   # Pillow's readers raise errors of many types
      raise BadImage(one_line(e)) from e
    return np.asarray(image).reshape(image.height, image.width, channels)


def as_png(file: bytes, *, channels: int = 3,
           max_pixels: int = options.MAX_PIXELS) -> bytes:
  """Decodes a whole image and encodes its `pixels` as uncompressed PNG.

  TensorFlow then reads the same pixels with any number of channels, which it
  does not do for BMP, for example.

  Args:
    file: the bytes of an image file.
    channels: number of channels of the result, 1 or 3.
    max_pixels: largest allowed height times width.

  Raises:
    BadImage: if any part of it cannot be decoded, or it is too large.
  """
  return encode_png(pixels(file, channels=channels, max_pixels=max_pixels))


def encode_png(image: np.ndarray, compress_level: int = 0) -> bytes:
  """Encodes an image as PNG.

  Args:
    image: uint8 [height, width, 1 or 3].
    compress_level: 0 (no compression) to 9.
  """
  out = io.BytesIO()
  array = image.squeeze(-1) if image.shape[-1] == 1 else image
  Image.fromarray(array).save(out, 'PNG', compress_level=compress_level)
  return out.getvalue()


def one_line(error: Exception) -> str:
  """Returns the text of an exception in one line of at most 200 characters."""
  return ' '.join(str(error).split())[:200] or type(error).__name__


def _opened(file, max_pixels):
  if not file:
    raise BadImage('the file is empty')
  Image.MAX_IMAGE_PIXELS = None   # Pillow's own limit; ours is checked below
  try:
    image = Image.open(io.BytesIO(file), formats=_FORMATS)
  except Exception as e:
    raise BadImage('not an image' if isinstance(e, Image.UnidentifiedImageError)
                   else one_line(e)) from e
  if image.width * image.height > max_pixels:
    raise BadImage(f'{image.width} x {image.height} pixels, more than '
                   f'{max_pixels:,}')
  return image


def _is_16_bit_png(file):
  """Whether a PNG has 16 bits a channel, which Pillow's mode does not tell."""
  return file[:4] == b'\x89PNG' and file[24:25] == b'\x10'


# One black pixel: the image of rows that do not count.
BLANK = encode_png(np.zeros((1, 1, 3), np.uint8))
