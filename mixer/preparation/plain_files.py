"""Image files as `prepare build` stores them: any decoder reads them alike.

Colour profiles are not applied, as in training, and a file that is encoded
again has none.
"""
import functools
import io

import numpy as np
from PIL import Image

from mixer.images import decode_pillow
from mixer.images import decode_tf

JPEG_QUALITY = 95
_LOSSY_SIGNATURES = (b'\xff\xd8', b'RIFF')   # first bytes of JPEG and of WebP


def plain_file(file: bytes, max_pixels: int, shorter_side: int | None = None
               ) -> tuple[bytes, bool]:
  """Returns an image file that any decoder reads the same way.

  That is the file itself if it is plain (8-bit RGB or grey, JPEG or PNG, and
  upright) and not resized. Other images are encoded again, upright and as RGB
  or, if they are resized and grey, as grey: JPEG and WebP as JPEG of quality 95
  without chroma subsampling, the others as PNG, without loss.

  Args:
    file: an encoded image.
    max_pixels: height times width at most.
    shorter_side: an image whose shorter side has more pixels is resized to so
      many, with antialiasing, and keeps its aspect ratio; None to resize none.

  Returns:
    (the file to store, whether the image is resized).

  Raises:
    BadImage: if any part of the image cannot be decoded, or it is too large.
  """
  pixels, resized = decode_pillow.pixels(
      file, max_pixels=max_pixels,
      then=functools.partial(_reduced, shorter_side=shorter_side))
  if decode_pillow.is_plain(file, max_pixels=max_pixels):
    decode_tf.check(file)   # as training would; it refuses more than Pillow
    if not resized:
      return file, False
  if resized and np.all(pixels == pixels[..., :1]):
    pixels = pixels[..., 0]
  out = io.BytesIO()
  if file.startswith(_LOSSY_SIGNATURES):
    Image.fromarray(pixels).save(out, 'JPEG', quality=JPEG_QUALITY,
                                 subsampling=0)
  else:
    Image.fromarray(pixels).save(out, 'PNG')
  return out.getvalue(), resized


def _reduced(pixels: np.ndarray, shorter_side: int | None
             ) -> tuple[np.ndarray, bool]:
  """Returns (pixels, at most so many on the shorter side; whether resized)."""
  shorter = min(pixels.shape[:2])
  if shorter_side is None or shorter <= shorter_side:
    return pixels, False
  height, width = (round(n * shorter_side / shorter) for n in pixels.shape[:2])
  return np.asarray(Image.fromarray(pixels).resize(
      (width, height), Image.Resampling.LANCZOS)), True
