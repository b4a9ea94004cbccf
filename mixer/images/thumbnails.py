"""Small pictures as data URIs, for HTML pages that need no other file."""
import base64
import io

import numpy as np
from PIL import Image

_TINY = 64   # such pictures are kept pixel by pixel


def of_pixels(pixels_HWC: np.ndarray, side: int = 200) -> str:
  """Returns a picture as a data URI.

  Small ones and those with opacity are PNG files, which lose nothing, and
  others JPEG files.

  Args:
    pixels_HWC: uint8 [H, W, channels]. Four channels are colours and opacity;
      of any number but 1, 3 and 4, only the first is shown.
    side: to which the longer side is reduced, in pixels.
  """
  if pixels_HWC.shape[-1] not in (3, 4):
    pixels_HWC = pixels_HWC[..., 0]
  image = Image.fromarray(pixels_HWC)
  kind = 'png' if max(image.size) <= _TINY or image.mode == 'RGBA' else 'jpeg'
  image.thumbnail((side, side))
  out = io.BytesIO()
  image.save(out, kind, quality=85)   # of JPEG; PNG ignores it
  return (f'data:image/{kind};base64,'
          f'{base64.b64encode(out.getvalue()).decode()}')
