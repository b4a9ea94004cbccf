"""Decodes image files of any common kind with Pillow: upright, opaque, 8 bits.

EXIF rotation is applied, transparency is laid on white, samples of more than 8
bits are scaled to 8 (see `deep_scaling`), an animation gives its first frame,
and CMYK and palettes become RGB. None of this needs TensorFlow.
"""
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import io
import math
import os
import threading
from typing import Any

import numpy as np
from PIL import features
from PIL import Image
from PIL import ImageOps

from mixer.images import deep_samples
from mixer.images import options
from mixer.images.deep_samples import BadImage
from mixer.images.deep_samples import one_line

SUFFIXES = ('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp', '.gif',
            '.tif', '.tiff', '.avif')
_FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF')
_ORIENTATION = 0x0112   # the EXIF tag
# Bytes for a pixel of all copies while an image is decoded: with transparency,
# or in a format whose decoder keeps several frames; and of other images.
_DEEP, _PLAIN = 24, 12
_FRAMES = ('WEBP', 'AVIF')
# How many times the memory of other formats these need at the peak of decoding
# a very large image. They may have as many times fewer pixels, so that no image
# takes more than 1 GiB.
_HEAVY = dict(WEBP=2.2, AVIF=1.5)
_HEAVY_IF_TRANSPARENT = 1.1


def is_plain(file: bytes, *, max_pixels: int = options.MAX_PIXELS,
             upright: bool = True) -> bool:
  """Returns whether every decoder gives the same pixels of an image.

  Only the header is read.

  Args:
    file: the bytes of an image file.
    max_pixels: largest allowed height times width.
    upright: as for `pixels`. If False, only samples of more than 8 bits make
      an image not plain.

  Raises:
    BadImage: if the file is no image of a known format, or it is too large.
  """
  with _opened(file, max_pixels, decode=False) as image:
    if _shrink(image) > 1:
      return False
    if deep_samples.are_in(image, file):
      return False
    if not upright:
      return True
    if image.format not in ('JPEG', 'MPO', 'PNG') or (
        image.mode not in ('L', 'RGB') or 'transparency' in image.info):
      return False
    try:
      return image.getexif().get(_ORIENTATION, 1) == 1
    except Exception as e:   # such as a PNG that is cut short
      raise BadImage(one_line(e)) from e


def pixels(file: bytes, *, channels: int = 3,
           max_pixels: int = options.MAX_PIXELS, upright: bool = True,
           then: Callable[[np.ndarray], Any] = lambda pixels: pixels) -> Any:
  """Decodes a whole image.

  Threads share a budget of memory, and wait until there is enough of it.

  Args:
    file: the bytes of an image file.
    channels: number of channels of the result, 1 or 3.
    max_pixels: largest allowed height times width.
    upright: whether to apply EXIF rotation and to lay transparency on white.
      Otherwise both are ignored.
    then: called with the result, before other threads can have the memory;
      what it returns is returned instead.

  Returns:
    uint8 [height, width, channels]; an image of more than `options.LARGE`
    pixels is averaged over squares of pixels down to `options.SHRUNK`.

  Raises:
    BadImage: if any part of it cannot be decoded, or it is too large.
  """
  with _opened(file, max_pixels) as opened:
    image: Image.Image = opened
    try:
      times, whole = _shrink(opened), opened.size
      if times > 1 and opened.format in ('JPEG', 'MPO'):
        # Most of the decoding and of the memory is saved.
        opened.draft(opened.mode, (whole[0] // times, whole[1] // times))
      if deep_samples.are_in(opened, file):
        from mixer.images import deep_scaling  # few runs read one
        image = deep_scaling.as_8_bits(opened, file)
      image.load()
      times = math.ceil(times / round(whole[0] / image.width))
      if times > 1:
        if image.mode in ('1', 'P', 'PA'):   # levels, not colours
          image = image.convert('RGBA' if image.has_transparency_data
                                else 'RGB')
        image = image.reduce(times)
      if (opened.format == 'BMP' and image.mode == 'RGBA'
          and not image.getchannel('A').getbbox()):
        image = image.convert('RGB')   # an unused byte is not transparency
      if upright:
        ImageOps.exif_transpose(image, in_place=True)
      if upright and image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGBA', image.size, 'white')
        image = Image.alpha_composite(white, image)
      mode = 'L' if channels == 1 else 'RGB'
      image = image if image.mode == mode else image.convert(mode)
    except BadImage:
      raise
    except Exception as e:   # Pillow's readers raise errors of many types
      raise BadImage(one_line(e)) from e
    return then(
        np.asarray(image).reshape(image.height, image.width, channels))


def as_png(file: bytes, *, channels: int = 3,
           max_pixels: int = options.MAX_PIXELS,
           upright: bool = True) -> bytes:
  """Decodes a whole image and encodes its `pixels` as uncompressed PNG.

  TensorFlow then reads the same pixels with any number of channels, which it
  does not do for BMP, for example.

  Args:
    file: the bytes of an image file.
    channels: number of channels of the result, 1 or 3.
    max_pixels: largest allowed height times width.
    upright: as for `pixels`.

  Raises:
    BadImage: if any part of it cannot be decoded, or it is too large.
  """
  return pixels(file, channels=channels, max_pixels=max_pixels,
                upright=upright, then=encode_png)


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


class Budget:
  """A number of bytes that threads take parts of.

  Args:
    size: how many; a thread that asks for more gets all of them, alone.
  """

  def __init__(self, size: int):
    self._size = self._free = size
    self._change = threading.Condition()

  @contextlib.contextmanager
  def taken(self, count: int) -> Iterator[None]:
    """Waits until `count` bytes are free, and holds them while it is entered.

    A thread that holds some must not ask for more.
    """
    count = min(count, self._size)
    with self._change:
      self._change.wait_for(lambda: self._free >= count)
      self._free -= count
    try:
      yield
    finally:
      with self._change:
        self._free += count
        self._change.notify_all()


# 128 MiB for each core: all of them decode photos of 11 megapixels at once.
_BUDGET = Budget(max(3 * 2**28, 2**27 * (os.cpu_count() or 1)))


@contextlib.contextmanager
def _opened(file: bytes, max_pixels: int, decode: bool = True
            ) -> Iterator[Image.Image]:
  """Opens an image, once there is memory for it.

  Args:
    file: the bytes of an image file.
    max_pixels: largest allowed height times width.
    decode: whether more than the header will be read.
  """
  # Pillow allocates all of a WebP image when it opens it.
  width, height = _webp_size(file)
  webp = width * height
  with contextlib.ExitStack() as stack:
    if webp:
      _check_size('WEBP', width, height, max_pixels)
      stack.enter_context(_BUDGET.taken(_DEEP * webp))
    image = stack.enter_context(_open(file, max_pixels))
    if decode and not webp:
      deep = image.format in _FRAMES or image.has_transparency_data
      stack.enter_context(_BUDGET.taken(
          (_DEEP if deep else _PLAIN) * image.width * image.height))
    if _shrink(image) > 1:
      # malloc keeps freed blocks of up to 32 MiB, in each thread.
      Image.core.set_block_size(2**26)
    yield image


def _webp_size(file: bytes) -> tuple[int, int]:
  """Returns width and height by the header of a WebP file; else zeros."""
  number = lambda start, stop: int.from_bytes(file[start:stop], 'little')
  kind = file[12:16] if file[:4] == b'RIFF' and file[8:12] == b'WEBP' else b''
  if kind == b'VP8X':
    return 1 + number(24, 27), 1 + number(27, 30)
  if kind == b'VP8L':
    bits = number(21, 25)
    return 1 + bits % 2**14, 1 + (bits >> 14) % 2**14
  if kind == b'VP8 ':
    return number(26, 28) % 2**14, number(28, 30) % 2**14
  return 0, 0


def _check_size(kind, width, height, max_pixels, transparent=False):
  """Raises BadImage if an image is too large for its format."""
  times = _HEAVY.get(kind, _HEAVY_IF_TRANSPARENT if transparent else 1)
  most = int(max_pixels / times)
  if width * height > most:
    raise BadImage(f'{width} x {height} pixels, more than {most:,}' + (
        f' for {kind}' if kind in _HEAVY else
        ' with transparency' if transparent else ''))


def _shrink(image):
  """The side of the squares of pixels that are averaged: 1 for most images."""
  count = image.width * image.height
  return (1 if count <= options.LARGE
          else math.ceil(math.sqrt(count / options.SHRUNK)))


def _open(file, max_pixels):
  if not file:
    raise BadImage('the file is empty')
  Image.MAX_IMAGE_PIXELS = None   # Pillow's own limit; ours is checked below
  formats = _FORMATS + (('AVIF',) if features.check('avif') else ())
  try:
    image = Image.open(io.BytesIO(file), formats=formats)
    transparent = image.has_transparency_data   # fails without a palette
  except Image.UnidentifiedImageError as e:
    from mixer.images import unknown_files  # few runs meet one
    raise BadImage(unknown_files.describe(file)) from e
  except Exception as e:
    raise BadImage(one_line(e)) from e
  _check_size(image.format, *image.size, max_pixels, transparent)
  if image.format == 'TIFF':
    from mixer.images import tiff  # few runs read one
    tiff.check_bands(image)
  return image


# One black pixel: the image of rows that do not count.
BLANK = encode_png(np.zeros((1, 1, 3), np.uint8))
