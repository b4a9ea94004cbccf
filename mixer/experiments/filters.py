"""Experiment: what do the first layers of a network look at?

The hidden units of token-mixing MLPs are drawn as images on the grid of patches
(figures 5 and 6 of the paper), and the filters of the stem as images of a patch
(figure 7). Nothing is trained.
"""
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer.analysis import figures
from mixer.analysis import units as hidden
from mixer.core import errors
from mixer.core import tables
from mixer.core.log import log
from mixer.pretrained import network

_FIRST = 3   # layers that the paper shows
_COLUMNS = 16   # units in a line of the figure
_QUARTERS = (0.25, 0.5, 0.75)
_LEVELS = 127   # of a weight in result.json
_COLOURS = 'RdBu_r'   # diverging, and safe for people with colour blindness


def run(config: None, path: str, *,
        checkpoint: str | None = None,
        layers: Sequence[int | str] | None = None,
        units: int = 64) -> dict[str, Any]:
  """Measures and collects the units of a network.

  Args:
    config: unused.
    path: unused; the caller writes there.
    checkpoint: a run, a file of weights or a release, see `open_network`.
    layers: numbers of blocks, from 0; by default the first three. A network
      without token-mixing units has none by default.
    units: how many units to draw of each layer, and of the stem. They are
      spread evenly over the frequencies; the measures are those of all units.

  Returns:
    {'network', 'checkpoint', 'layers', 'stem'}. A layer has 'layer', 'units',
    'opposition' and its baselines (see `analysis.units`), and, as the stem
    has, the quartiles 'frequencies', 'shape' of an image and 'images': in
    hexadecimal, an int8 for each weight, 127 for the unit's largest.

  Raises:
    UserError: if there is no such checkpoint, or a layer has no such units.
  """
  del config, path
  if not checkpoint:
    raise errors.UserError('--checkpoint: expected a run, a file of weights or '
                           'the name of a release, got none')
  found = network.open_network(checkpoint)
  rows = [dict(layer=layer, units=len(one), opposition=hidden.opposition(one),
               **hidden.baselines(one),
               **_drawn(one, hidden.sort_and_pair(one), units))
          for layer, one in _layers(found, layers).items()]
  stem = hidden.stem_units(found.params)
  if hidden.stem_is_moved(found.model, stem):
    log.warning('model.pixel_order=%s: the stem is shown for pixels in that '
                "order, not in the image's", found.model.pixel_order)
  if stem.shape[-1] not in (1, 3):   # only these can be shown as colours
    stem = stem.mean(-1, keepdims=True)
  order = np.argsort(hidden.frequencies(stem), kind='stable')
  return dict(network=found.title, checkpoint=checkpoint, layers=rows,
              stem=dict(units=len(stem), **_drawn(stem, order, units)))


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  stem = found['stem']
  tables.show(tables.make(
      [(row['layer'], row['units'],
        *(f'{row[key]:.3f}' for key in ('opposition', 'smooth', 'random',
                                        'alike')),
        _quartiles(row)) for row in found['layers']],
      ('layer', 'units', 'opposition', 'smooth', 'random', 'alike',
       'cycles per image'),
      title=f'token-mixing units of {found["network"]}',
      caption='opposition: minus the mean cosine of the units and their '
      'closest inverses. smooth: the opposition of random units with the same '
      'frequencies. random: that of independent weights. alike: the mean '
      'cosine if each unit is paired with the most similar one instead. '
      'Cycles: lower quartile / median / upper quartile. '
      f'The {stem["units"]} stem units have '
      f'{_quartiles(stem)} cycles per patch'))


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns the figure of what `run` returned: a panel for each layer, with
  pairs side by side at rising frequencies, and one for the stem."""
  panels = [(f'block {row["layer"]}: opposition {row["opposition"]:.2f} '
             f'(random {row["random"]:.2f}, smooth {row["smooth"]:.2f})',
             hidden.mosaic(_images(row), _COLUMNS)) for row in found['layers']]
  panels.append((f'stem of {found["network"].partition(",")[0]}', hidden.mosaic(
      _images(found['stem']), _COLUMNS, pairs=False)))
  sizes = [image.shape[0] / image.shape[1] for _, image in panels]
  figure, axes = figures.grid(
      len(panels), 1, height=sum(figures.COLUMN * s + 0.22 for s in sizes),
      height_ratios=sizes)
  for (title, image), place in zip(panels, axes.flat):
    if image.shape[2:] == (3,):
      place.imshow(np.nan_to_num((image + 1) / 2, nan=1.0))
    else:
      place.imshow(image.reshape(image.shape[:2]), cmap=_COLOURS, vmin=-1,
                   vmax=1)
    place.set_title(title, pad=3)
    place.set_axis_off()
  return figure


def _layers(found: network.Network, layers: Sequence[int | str] | None
            ) -> dict[int, np.ndarray]:
  """Returns {layer: units}."""
  units = lambda layer: hidden.token_units(
      found.model, found.params, layer, found.image_size)
  if layers is not None:
    if not layers or not all(str(layer).isdigit() for layer in layers):
      raise errors.UserError(
          '--layers: expected numbers of blocks from 0, such as --layers=0,1, '
          f'got {",".join(map(str, layers))!r}')
    return {layer: units(layer) for layer in map(int, layers)}
  out, left_out = {}, []
  blocks = getattr(found.model, 'num_blocks', 1)
  for layer in range(min(_FIRST, max(1, blocks))):
    try:
      out[layer] = units(layer)
    except errors.UserError as e:
      left_out.append(e)
  for why in left_out if out else left_out[:1]:   # of a ViT all are alike
    log.warning('%s; %s', why, 'it is left out' if out else
                'only the stem is shown')
  return out


def _drawn(units: np.ndarray, order: np.ndarray, count: int) -> dict[str, Any]:
  """Returns quartiles of frequencies, and images of `count` units, in whole
  pairs that are spread evenly over the order."""
  pairs = order[:len(order) // 2 * 2].reshape(-1, 2)
  if count < len(order):
    order = pairs[np.linspace(0, len(pairs) - 1, max(1, count // 2)
                              ).round().astype(int)].ravel()
  top = np.abs(units).max(axis=tuple(range(1, units.ndim)), keepdims=True)
  levels = np.rint(_LEVELS * units / np.where(top > 0, top, 1))[order]
  return dict(
      frequencies=np.quantile(hidden.frequencies(units), _QUARTERS).tolist(),
      shape=list(units.shape[1:]),
      images=[unit.tobytes().hex() for unit in levels.astype(np.int8)])


def _images(row: Mapping[str, Any]) -> np.ndarray:
  """Returns int8 [units, *shape] of what `_drawn` returned."""
  return np.frombuffer(bytes.fromhex(''.join(row['images'])), np.int8).reshape(
      -1, *row['shape']).astype(np.float32)


def _quartiles(row: Mapping[str, Any]) -> str:
  return ' / '.join(f'{value:.1f}' for value in row['frequencies'])
