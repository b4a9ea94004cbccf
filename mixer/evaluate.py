"""Evaluates a network: top-1, top-5, ReaL, ImageNet-V2, few-shot, confusion.

  python -m mixer.evaluate --checkpoint=runs/photos
  python -m mixer.evaluate --checkpoint=Mixer-B/16-imagenet1k \\
    --config=configs/mixer_b16.py --config.data.dir=DIR --real=real.json --v2
  python -m mixer.evaluate --checkpoint=Mixer-B/16-imagenet21k \\
    --config=configs/finetune.py:b16,cifar10 --config.data.dir=DIR \\
    --fewshot='train[:5000]' --json=scores.json

The checkpoint is a workdir, WORKDIR/checkpoints/STEP, a file, an address or the
name of a release. The splits are the config's `evals`, by default those of the
run itself. A run is shown images as the config says, any other network as its
own card does. Every example is counted once.
"""
import json
import os
import sys

from absl import flags
from ml_collections import config_flags

from mixer.core import command
from mixer.core import errors
from mixer.core import processes

_CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'The network; see above.')
_BEST = flags.DEFINE_bool('best', False, 'Of a workdir, the best checkpoint '
                          'instead of the latest.')
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, "Whose `evals` and `fewshot` are asked; by default the "
    "run's own.", lock_config=True)
_BATCH = flags.DEFINE_integer('batch_size', 128, 'Images at a time, over all '
                              'devices.', 1)
_REAL = flags.DEFINE_string('real', None, 'real.json of reassessed-imagenet: '
                            "every evaluation of ImageNet's validation set (or "
                            'of a folder or manifest of its files) is asked '
                            'for its labels too.')
_V2 = flags.DEFINE_bool('v2', False, 'Also ImageNet-V2 '
                        '(imagenet_v2/matched-frequency, by TFDS).')
_FEWSHOT = flags.DEFINE_string('fewshot', None, 'A split, such as '
                               "'train[:65000]': 1, 5, 10 and 25 of its "
                               'examples a class fit a linear model, for every '
                               'evaluation.')
_JSON = flags.DEFINE_string('json', None, 'File for the results.')
_PREDICTIONS = flags.DEFINE_string(
    'predictions', None, 'File for the five likeliest classes of each image, '
    'one JSON object a line.')
_WORST = flags.DEFINE_integer('worst', 10, 'Classes and pairs to list.', 0)


def main(argv):
  del argv
  if _CHECKPOINT.value is None:
    raise errors.UserError('--checkpoint is required, such as '
                           '--checkpoint=runs/digits')
  for flag in (_JSON, _PREDICTIONS):
    folder = os.path.dirname(os.path.abspath(flag.value or ''))
    if flag.value and (not os.path.isdir(folder) or os.path.isdir(flag.value)):
      raise errors.UserError(f'--{flag.name}: {flag.value!r}: expected a file '
                             'in a folder that is there')
  command.join()
  from mixer import pretrained
  from mixer.analysis import scoring
  network = pretrained.open_network(_CHECKPOINT.value, best=_BEST.value)
  config = _CONFIG.value or scoring.config_of(network)
  config = scoring.asked(config, network, real=_REAL.value, v2=_V2.value,
                         fewshot=_FEWSHOT.value)
  result, details = scoring.evaluate(network, config, batch_size=_BATCH.value,
                                     worst=_WORST.value)
  if not processes.first():
    return
  _show(result)
  if _JSON.value:
    with open(_JSON.value, 'w') as f:
      f.write(json.dumps(result, indent=2) + '\n')
  if _PREDICTIONS.value:
    with open(_PREDICTIONS.value, 'w') as f:
      f.writelines(json.dumps(row) + '\n' for row in details)


def _show(result):
  """Tables for people."""
  from rich import box
  from rich import console
  from rich import table
  from rich import text
  out = console.Console(width=None if sys.stdout.isatty() else 100)

  def show(title, columns, rows):
    made = table.Table(box=box.SIMPLE_HEAD, title=title, title_justify='left')
    for i, column in enumerate(columns):
      made.add_column(column, justify='right' if i else 'left', overflow='fold')
    for row in rows:
      made.add_row(*(text.Text(str(x)) for x in row))
    if rows:
      out.print(made)

  share = '{:.2%}'.format
  show(f'{result["model"]}, {result["checkpoint"]}',
       ('split', 'examples', 'top-1', 'top-5', 'loss', 'left out'),
       [(name, f'{e["examples"]:,}', share(e['accuracy']),
         share(e['accuracy_top5']), f'{e["loss"]:.4f}',
         e['bad'] + e.get('unlabelled', 0))
        for name, e in result['evals'].items()])
  shots = list(dict.fromkeys(s for e in result['fewshot'].values() for s in e))
  show('few-shot, ridge regression on pre-logits, mean over seeds',
       ('split', *(f'{s}-shot' for s in shots)),
       [(name, *(share(e[s]) if s in e else '' for s in shots))
        for name, e in result['fewshot'].items()])
  for name, e in result['evals'].items():
    show(f'{name}: worst classes',
         ('class', 'examples', 'top-1', 'taken for', 'share'),
         [(r['name'], r['examples'], share(r['accuracy']),
           r['taken_for_name'] or '', share(r['share']))
          for r in e['worst_classes'] if r['accuracy'] < 1])


if __name__ == '__main__':
  command.run(main, several=True)
