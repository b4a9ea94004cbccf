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
  shown, left_out = [], ''
  last = getattr(network.model, 'num_blocks', 1) - 1
  for layer in sorted({0, last}):
    try:
      found = units.token_units(network.model, network.params, layer,
                                network.image_size)
    except errors.UserError as e:   # such as any layer of a ViT
      left_out = f' Left out: {e}.'
      continue
    order = units.sort_and_pair(found)[:_UNITS]
    uri = thumbnails.of_pixels(coloured(units.mosaic(
        found[order], min(len(order), _COLUMNS))), side=4096)
    shown.append(f'<figure class=units><img alt="" src="{uri}"><figcaption>'
                 f'<b>block {layer}</b></figcaption></figure>')
  if not shown:
    return
  yield page.section('Token-mixing units', ''.join(shown), (
      f'The weights of up to {_UNITS} hidden units for the patches, each where '
      'its patch lies in the image: blue is negative, orange positive. Units '
      'stand beside their closest inverse, low frequencies first.' + left_out))


def coloured(weights: np.ndarray) -> np.ndarray:
  """Returns the colours of weights, uint8 [H, W, 4].

  Args:
    weights: [H, W] from -1 to 1; NaN, as in the gaps of a mosaic, is
      transparent.
  """
  colours = [np.interp(np.nan_to_num(weights), (-1, 0, 1), levels)
             for levels in _COLOURS.T]
  return np.stack([*colours, np.where(np.isnan(weights), 0, 255)], -1
                  ).round().astype(np.uint8)
