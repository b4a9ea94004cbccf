"""Prints class probabilities for photos.

  python -m mixer.predict --checkpoint=runs/photos photo.jpg folder/
  python -m mixer.predict --checkpoint=Mixer-B/16-imagenet1k --format=json *.jpg

The checkpoint is a workdir, WORKDIR/checkpoints/STEP, a file (npz, safetensors,
pth), an address (https://, gs://, hf://) or the name of a release. A run brings
its class names and its preprocessing. Folders are searched for images. If their
sub-folders have the names of classes, the accuracy is printed too. '-' stands
for paths on standard input, one a line. Files that cannot be read are named and
skipped; the exit code is then 1.
"""
from collections.abc import Iterator
from collections.abc import Sequence
import csv
import json
import sys
import typing
from typing import Any

from absl import flags

from mixer.core import command
from mixer.core import errors
from mixer.core import outputs
from mixer.core.log import log

if typing.TYPE_CHECKING:
  import numpy as np

  from mixer.images import decode_pillow
  from mixer.pretrained import network as networks

_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'The network: a workdir, WORKDIR/checkpoints/STEP, a '
    'file or address of weights, or the name of a release.')
_BEST = flags.DEFINE_bool('best', False, "Use a workdir's best checkpoint "
                          'instead of its latest.')
_AVERAGE = flags.DEFINE_bool(
    'average', False, 'Use the averaged parameters of a run with run.average.')
_FORMAT = flags.DEFINE_enum(
    'format', 'table', ['table', 'json', 'csv'], 'Output format. json: a list '
    'of objects with path, classes and probabilities (best first), or error, '
    'and the checkpoint and what it was trained with; csv: one row for each '
    'class.')
_HTML = flags.DEFINE_string(
    'html', None, 'File for a page that shows the images with their classes.')
_TOP = flags.DEFINE_integer('top_k', 5, 'Number of classes to print for each '
                            'image.', 1)
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Number of images to classify '
                              'at a time.', 1)
_MAX_PIXELS = flags.DEFINE_integer(
    'max_pixels', 2**27, 'Largest height times width of an image, less for '
    'WebP, AVIF and transparency; a larger one is named and skipped.', 1)

Row = dict[str, Any]   # 'path', and 'classes' and 'probabilities' or 'error'


def main(argv: Sequence[str]) -> None:
  """Prints the predictions for the files and folders in `argv`."""
  if _CHECKPOINT.value is None:
    raise errors.UserError('--checkpoint is required, such as '
                           '--checkpoint=runs/digits')
  outputs.check_file(_HTML.name, _HTML.value)
  from mixer.pretrained import prediction
  given = prediction.matches(argv[1:])
  if not given:
    raise errors.UserError('expected image files or folders after the flags, '
                           "or '-' and their paths on standard input")
  paths = prediction.expand(given)
  network, names, found = _predictions(_CHECKPOINT.value, paths)
  from mixer.evaluation import class_folders
  from mixer.training import watchdog
  labels = class_folders.labels(paths, given,
                                network.card['class_names'] or ())
  rows: list[Row] = []
  places = []
  with watchdog.Watch(watchdog.SECONDS, 'image', key='') as watch:
    watch.phase('predicting')
    for (path, x), label in zip(found, labels):
      rows.append(_row(path, x, names, label))
      places.append(class_folders.place(label, x))
      watch.phase('predicting', len(rows))
  scores = class_folders.scores(labels, places, len(names))
  for score in scores:
    if class_folders.trained_on(score['path'], network.card['data']):
      score['trained_on'] = True
  show = dict(table=_table, json=_json, csv=_csv)[_FORMAT.value]
  show(rows, scores, network)
  if _HTML.value:
    from mixer.analysis import prediction_page
    content = prediction_page.make(
        network, rows, max_pixels=_MAX_PIXELS.value, note=_seen(scores))
    with open(_HTML.value, 'w', encoding='utf-8') as f:
      f.write(content)
  bad = [row for row in rows if 'error' in row]
  if bad:
    listed = ', '.join(f'{row["path"]} ({row["error"]})' for row in bad[:10])
    raise errors.RunError(
        f'{len(bad)} of {len(rows)} files could not be read: {listed}'
        f'{" and more" if len(bad) > 10 else ""}')


def _predictions(checkpoint: str, paths: Sequence[str]) -> tuple[
    'networks.Network', list[str],
    Iterator[tuple[str, 'np.ndarray | decode_pillow.BadImage']]]:
  """Returns (the network, its class names, predictions by path)."""
  from mixer import pretrained
  from mixer.pretrained import prediction
  network = pretrained.open_network(checkpoint, best=_BEST.value,
                                    average=_AVERAGE.value)
  return network, prediction.class_names(network), prediction.of_network(
      network, paths, batch_size=_BATCH.value, max_pixels=_MAX_PIXELS.value)


def _row(path: str, found: 'np.ndarray | decode_pillow.BadImage',
         names: Sequence[str], label: tuple[str, int] | None) -> Row:
  import numpy as np
  row = dict(path=path) if label is None else dict(path=path,
                                                   label=names[label[1]])
  if isinstance(found, Exception):
    return dict(row, error=str(found))
  best = np.argsort(-found, kind='stable')[:_TOP.value]
  return dict(row, classes=[names[i] for i in best],
              probabilities=[float(found[i]) for i in best])


def _table(rows: Sequence[Row], scores: Sequence[Row],
           network: 'networks.Network') -> None:
  from mixer.core import tables
  cells: list[Sequence[Any]] = []
  for row in rows:
    if 'error' in row:
      cells.append((row['path'], tables.styled(row['error'], 'red'), ''))
      continue
    for i, (name, value) in enumerate(zip(row['classes'],
                                          row['probabilities'])):
      style = 'dim' if i else None
      cells.append(('' if i else row['path'], tables.styled(name, style),
                    tables.styled(f'{value:.2%}', style)))
  size = 'x'.join(map(str, network.image_size))
  tables.show(tables.make(
      cells, ('image', 'class', 'probability'), left=2,
      title=f'{network.title}, at {size}: {network.name}'))
  if scores:
    tables.show(tables.make(
        [(s['path'], f'{s["examples"]:,}', *_percents(s)) for s in scores],
        ('folder', 'images', *('top-1', 'top-5')[:len(_percents(scores[0]))]),
        title='accuracy, by the names of the folders', caption=_seen(scores)))


def _seen(scores: Sequence[Row]) -> str:
  """Returns a line on the folders that the network was trained on, or ''."""
  folders = ', '.join(s['path'] for s in scores if 'trained_on' in s)
  return (f'the network was trained on images of {folders}; on others it may '
          'be less accurate') if folders else ''


def _percents(score: Row) -> list[str]:
  return [f'{score[key]:.2%}' for key in ('accuracy', 'accuracy_top5')
          if key in score]


def _json(rows: Sequence[Row], scores: Sequence[Row],
          network: 'networks.Network') -> None:
  from mixer.core import provenance
  origin = dict(checkpoint=network.name)
  if 'provenance' in network.card:
    origin['trained_with'] = provenance.line(network.card['provenance'])
  print(json.dumps([dict(row, **origin) for row in (*rows, *scores)], indent=2))


def _csv(rows: Sequence[Row], scores: Sequence[Row],
         network: 'networks.Network') -> None:
  del network
  out = csv.writer(sys.stdout)
  out.writerow(['path', 'rank', 'class', 'probability', 'error'])
  for row in rows:
    if 'error' in row:
      out.writerow([row['path'], '', '', '', row['error']])
    for i, pair in enumerate(zip(row.get('classes', ()),
                                 row.get('probabilities', ())), 1):
      out.writerow([row['path'], i, *pair, ''])
  for score in scores:
    log.info('%s: accuracy over %d images: %s', score['path'],
             score['examples'], ', '.join(_percents(score)))
  if said := _seen(scores):
    log.warning('%s', said)


if __name__ == '__main__':
  command.run(main, positional=None, log_to=sys.stderr)
