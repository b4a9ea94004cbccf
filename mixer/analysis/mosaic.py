"""The token-mixing units of a network as a mosaic of pictures, for a page."""
from collections.abc import Iterator

import numpy as np

from mixer.analysis import units
from mixer.core import errors
from mixer.core import page
from mixer.images import thumbnails
from mixer.pretrained.network import Network

STYLE = '''
.units { max-width: 40rem; margin-top: .75rem }
.units > img { aspect-ratio: auto; background: none; border-radius: 0 }
'''
_UNITS, _COLUMNS = 64, 16
# Negative, zero and positive weights: the first colours of the figures.
_COLOURS = np.array([(0, 114, 178), (247, 247, 247), (213, 94, 0)], float)


def section(network: Network) -> Iterator[str]:
  """Yields a part of a page: the units of the first and of the last block;
  nothing for a network without such units.

  Args:
    network: the network.
  """
  shown = []
  last = getattr(network.model, 'num_blocks', 1) - 1
  for layer in sorted({0, last}):
    try:
      found = units.token_units(network.model, network.params, layer,
                                network.image_size)
    except errors.UserError:   # such as a ViT
      return
    order = units.sort_and_pair(found)[:_UNITS]
    uri = thumbnails.of_pixels(_mosaic(found[order]), side=4096)
    shown.append(
        f'<figure class=units><img class=pixels alt="" src="{uri}"><figcaption>'
        f'<b>block {layer}</b></figcaption></figure>')
  yield page.section('Token-mixing units', ''.join(shown), (
      f'The weights of up to {_UNITS} hidden units for the patches, each where '
      'its patch lies in the image: blue is negative, orange positive. Units '
      'stand beside their closest inverse, low frequencies first.'))


def _mosaic(images: np.ndarray) -> np.ndarray:
  """Returns units [N, rows, columns] side by side, uint8 [H, W, 4]."""
  count, height, width = images.shape
  scale = np.abs(images).max((1, 2), keepdims=True)
  level = 1 + images / np.where(scale > 0, scale, 1)   # 0 to 2
  colours = np.stack([np.interp(level, (0, 1, 2), c) for c in _COLOURS.T], -1)
  columns = min(count, _COLUMNS)
  lines = -(-count // columns)
  gap = 1 if min(height, width) < 12 else 2
  out = np.zeros((lines * (height + gap), columns * (width + gap), 4), np.uint8)
  for i, colour in enumerate(colours):
    y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
    out[y:y + height, x:x + width, :3] = np.round(colour)
    out[y:y + height, x:x + width, 3] = 255
  return out[:-gap, :-gap]
