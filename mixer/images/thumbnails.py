"""Small pictures as data URIs, for HTML pages that need no other file."""
import base64
import io

import numpy as np
from PIL import Image

_SIDE = 200   # of the longest side, in pixels
_TINY = 64   # such pictures are kept pixel by pixel


def of_pixels(pixels_HWC: np.ndarray) -> str:
  """Returns a picture as a data URI, at most 200 pixels wide and high.

  Small ones are PNG files, which lose nothing, and others JPEG files.

  Args:
    pixels_HWC: uint8 [H, W, channels]. Four channels are colours and opacity;
      of any number but 1, 3 and 4, only the first is shown.
  """
  if pixels_HWC.shape[-1] not in (3, 4):
    pixels_HWC = pixels_HWC[..., 0]
  image = Image.fromarray(pixels_HWC)
  whole = max(image.size) <= _TINY or image.mode == 'RGBA'
  image.thumbnail((_SIDE, _SIDE))
  out = io.BytesIO()
  image.save(out, **(dict(format='PNG', optimize=True) if whole
                     else dict(format='JPEG', quality=85)))
  kind = 'png' if whole else 'jpeg'
  return (f'data:image/{kind};base64,'
          f'{base64.b64encode(out.getvalue()).decode()}')
