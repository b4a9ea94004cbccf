"""A page that shows images with the classes that a network predicts."""
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TYPE_CHECKING

from mixer.analysis import mistakes
from mixer.core import files
from mixer.core import page
from mixer.images import decode_pillow

if TYPE_CHECKING:
  from mixer.pretrained.network import Network

_MOST = 1000   # images
_CLASSES = 5   # of an image


def make(network: 'Network', rows: Sequence[Mapping[str, Any]], *,
         max_pixels: int, note: str = '') -> str:
  """Returns the page, which needs no other file.

  Args:
    network: the network.
    rows: of each image 'path', 'classes' and 'probabilities', best first, and
      perhaps its 'label'; or 'path' and 'error'.
    max_pixels: largest height times width of an image.
    note: what to say about the accuracy.
  """
  good = [row for row in rows if 'error' not in row]
  figures = [_figure(row, max_pixels) for row in good[:_MOST]]
  parts = [page.section('Images', page.grid(figures, small=True), (
      f'The first {_MOST:,} of {len(good):,} images.'
      if len(good) > _MOST else ''))] if figures else []
  if len(good) < len(rows):
    parts.append(page.section('Files that cannot be read', page.table(
        [(row['path'], row['error']) for row in rows if 'error' in row],
        ('file', 'reason'), text=True)))
  labelled = [row for row in good if 'label' in row]
  right = sum(row['label'] == row['classes'][0] for row in labelled)
  facts = [page.fact(f'{len(good):,}', 'images')] + (
      [page.fact(f'{right / len(labelled):.2%}', '; '.join(filter(None, (
          'accuracy, by folder names', note))))] if labelled else [])
  return page.make('Predicted classes', f'{network.title}: {network.name}',
                   facts, parts, mistakes.STYLE)


def _figure(row: Mapping[str, Any], max_pixels: int) -> str:
  try:
    with files.open_regular(row['path']) as f:
      image = decode_pillow.pixels(f.read(), max_pixels=max_pixels)
  except (OSError, decode_pillow.BadImage) as e:   # it has changed meanwhile
    return (f'<figure><figcaption>{page.escape(row["path"])}: {page.escape(e)}'
            '</figcaption></figure>')
  label = row.get('label')
  return mistakes.example(
      image, row['path'],
      list(zip(row['classes'], row['probabilities']))[:_CLASSES],
      heading=row['path'].rpartition('/')[2],
      wrong=0 if label not in (None, row['classes'][0]) else None)
