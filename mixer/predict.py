"""Class probabilities for photos, by any network at hand.

  python -m mixer.predict --checkpoint=runs/photos photo.jpg folder/
  python -m mixer.predict --checkpoint=Mixer-B/16-imagenet1k --format=json *.jpg

The checkpoint is a workdir, WORKDIR/checkpoints/STEP, a file (npz, safetensors,
pth), an address (https://, gs://, hf://) or the name of a release. Classes and
preprocessing come with a run; folders are searched for images. Files that
cannot be read are named and skipped, and the exit code is then 1.
"""
import csv
import json
import sys

from absl import flags

from mixer.core import command
from mixer.core import errors

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'The network; see above.')
_BEST = flags.DEFINE_bool('best', False, "Of a workdir, the best checkpoint "
                          'instead of the latest.')
_FORMAT = flags.DEFINE_enum('format', 'table', ['table', 'json', 'csv'],
                            'Of the output. json: a list of objects with path, '
                            'classes and probabilities (best first), or error; '
                            'csv: a row a class.')
_TOP = flags.DEFINE_integer('top_k', 5, 'Classes an image.', 1)
_BATCH = flags.DEFINE_integer('batch_size', 32, 'Images at a time.', 1)


def main(argv):
  if _CHECKPOINT.value is None:
    raise errors.UserError('--checkpoint is required, such as '
                           '--checkpoint=runs/digits')
  if len(argv) < 2:
    raise errors.UserError('expected image files or folders after the flags')
  from mixer.evaluation import prediction
  paths = prediction.expand(argv[1:])
  network, names, found = _found(paths)
  rows = [_row(path, x, names) for path, x in found]
  show = dict(table=_table, json=_json, csv=_csv)[_FORMAT.value]
  show(rows, network)
  bad = [row for row in rows if 'error' in row]
  if bad:
    listed = ', '.join(f'{row["path"]} ({row["error"]})' for row in bad[:10])
    raise errors.RunError(
        f'{len(bad)} of {len(rows)} files could not be read: {listed}'
        f'{" and more" if len(bad) > 10 else ""}')


def _found(paths):
  """(the network, its class names, iterator of (path, probabilities))."""
  import jax

  from mixer import pretrained
  from mixer.evaluation import classification
  from mixer.evaluation import prediction
  from mixer.images import augment
  network = pretrained.open_network(_CHECKPOINT.value, best=_BEST.value)
  model, card = network.model, network.card
  if not model.num_classes:
    raise errors.UserError(f'--checkpoint: {network.name!r} has no head, so no '
                           'classes; fine-tune it first')
  params = jax.device_put(network.params)

  @jax.jit
  def probabilities(params, images):
    logits, _ = model.apply({'params': params}, augment.normalise(images))
    return classification.probabilities(logits, card['loss'])

  names = list(card['class_names'] or [])
  names += [str(i) for i in range(len(names), model.num_classes)]
  return network, names, prediction.predict(
      paths, lambda images: probabilities(params, images),
      image_size=network.image_size, channels=model.in_channels,
      batch_size=min(_BATCH.value, len(paths)), **card['preprocessing'])


def _row(path, found, names):
  import numpy as np
  if isinstance(found, Exception):
    return dict(path=path, error=str(found))
  best = np.argsort(-found, kind='stable')[:_TOP.value]
  return dict(path=path, classes=[names[i] for i in best],
              probabilities=[float(found[i]) for i in best])


def _table(rows, network):
  from rich import box
  from rich import console
  from rich import table
  from rich import text
  size = 'x'.join(map(str, network.image_size))
  out = table.Table(box=box.SIMPLE_HEAD, title=text.Text(
      f'{network.title}, at {size}: {network.name}'))
  out.add_column('image', overflow='fold')
  out.add_column('class', overflow='fold')
  out.add_column('probability', justify='right')
  for row in rows:
    path = text.Text(row['path'])   # which may look like rich's own markup
    if 'error' in row:
      out.add_row(path, text.Text(row['error'], 'red'), '')
      continue
    for i, (name, value) in enumerate(zip(row['classes'],
                                          row['probabilities'])):
      out.add_row('' if i else path, text.Text(name), f'{value:.2%}',
                  style='dim' if i else None)
  console.Console(width=None if sys.stdout.isatty() else 100).print(out)


def _json(rows, network):
  del network
  print(json.dumps(rows, indent=2))


def _csv(rows, network):
  del network
  out = csv.writer(sys.stdout)
  out.writerow(['path', 'rank', 'class', 'probability', 'error'])
  for row in rows:
    if 'error' in row:
      out.writerow([row['path'], '', '', '', row['error']])
    for i, pair in enumerate(zip(row.get('classes', ()),
                                 row.get('probabilities', ())), 1):
      out.writerow([row['path'], i, *pair, ''])


if __name__ == '__main__':
  command.run(main, positional=None, log_to=sys.stderr)
