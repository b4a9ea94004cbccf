"""Evaluates a network: top-1, top-5, ReaL, ImageNet-V2, few-shot, confusion.

  python -m mixer.evaluate --checkpoint=runs/photos
  python -m mixer.evaluate --checkpoint=Mixer-B/16-imagenet1k \\
    --config=configs/mixer_b16.py --config.data.dir=DIR --real=real.json --v2
  python -m mixer.evaluate --checkpoint=Mixer-B/16-imagenet21k \\
    --config=configs/finetune.py:b16,cifar10 --config.data.dir=DIR \\
    --fewshot='train[:5000]' --json=scores.json

The checkpoint is a workdir, WORKDIR/checkpoints/STEP, a file, a URL or the name
of released weights. The splits are those of the config's `evals`, by default of
the config that the run was trained with. Released weights use the preprocessing
they were trained with; your own runs use their config's. Every example is
counted once.
"""
import json
from typing import Any

from absl import flags
from ml_collections import config_flags

from mixer.core import command
from mixer.core import errors
from mixer.core import outputs
from mixer.core import processes
from mixer.core import tables

_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'The network: a workdir, a file, an address or the '
    'name of a release.')
_BEST = flags.DEFINE_bool('best', False, "Use a workdir's best checkpoint "
                          'instead of its latest.')
_AVERAGE = flags.DEFINE_bool(
    'average', False, 'Use the averaged parameters of a run with run.average.')
_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config with the `evals` and `fewshot` to compute; by '
    "default the run's own.", lock_config=True)
_DATA = flags.DEFINE_string(
    'data', None, 'A data set to evaluate, all of it, in place of those of the '
    'config: folder:PATH, manifest:PATH, arrays:PATH.npz or a TFDS name.')
_BATCH = flags.DEFINE_integer('batch_size', 128, 'Images in a batch, over all '
                              'devices.', 1)
_REAL = flags.DEFINE_string('real', None, 'The file real.json of '
                            'github.com/google-research/reassessed-imagenet. '
                            "Every evaluation on ImageNet's validation set, or "
                            'on a folder or manifest of its files, is repeated '
                            'with the labels in it.')
_V2 = flags.DEFINE_bool('v2', False, 'Evaluate on ImageNet-V2 too (TFDS '
                        'imagenet_v2/matched-frequency).')
_FEWSHOT = flags.DEFINE_string('fewshot', None, 'A training split, such as '
                               "'train[:65000]'. For every evaluation, linear "
                               'models are fitted to 1, 5, 10 and 25 of its '
                               'examples per class.')
_JSON = flags.DEFINE_string('json', None, 'File for the results, as JSON.')
_PREDICTIONS = flags.DEFINE_string(
    'predictions', None, 'File for the five most likely classes of each image, '
    'one JSON object per line.')
_HTML = flags.DEFINE_string(
    'html', None, 'File for a page with the results, a confusion matrix and '
    'the worst-classified examples.')
_WORST = flags.DEFINE_integer('worst', 10, 'How many of the worst classes, and '
                              'of the most confused pairs, to list.', 0)


def main(argv: list[str]) -> None:
  """Evaluates --checkpoint and prints and writes the results."""
  del argv
  if _CHECKPOINT.value is None:
    raise errors.UserError('--checkpoint is required, such as '
                           '--checkpoint=runs/digits')
  command.join()
  if not processes.several() or processes.first():   # the one that writes
    for flag in (_JSON, _PREDICTIONS, _HTML):
      outputs.check_file(flag.name, flag.value)
  # Loading JAX takes seconds; mistakes in the flags are reported before.
  from mixer import pretrained
  from mixer.analysis import overrides
  from mixer.analysis import scoring
  network = pretrained.open_network(_CHECKPOINT.value, best=_BEST.value,
                                    average=_AVERAGE.value)
  if _CONFIG.value:
    given = config_flags.get_override_values(flags.FLAGS['config'])
    for key, value in given.items():
      overrides.check(key, value, network, _DATA.value, bool(
          _FEWSHOT.value or _CONFIG.value.get('fewshot')))
  config = (_CONFIG.value.to_dict() if _CONFIG.value
            else scoring.config_of(network, _DATA.value))
  try:
    config = scoring.requested(config, network, real=_REAL.value, v2=_V2.value,
                               fewshot=_FEWSHOT.value, data=_DATA.value)
  except errors.UserError as e:
    raise errors.UserError(str(e).replace('data.name', '--data')
                           if _DATA.value else str(e)) from e
  kept: dict[str, Any] = {}
  results, predictions = scoring.evaluate(
      network, config, batch_size=_BATCH.value, worst=_WORST.value,
      kept=kept)
  if not processes.first():
    return
  _show(results)
  if _JSON.value:
    with open(_JSON.value, 'w') as f:
      f.write(json.dumps(results, indent=2) + '\n')
  if _PREDICTIONS.value:
    with open(_PREDICTIONS.value, 'w') as f:
      f.writelines(json.dumps(row) + '\n' for row in predictions)
  if _HTML.value:
    from mixer.analysis import mistakes
    with open(_HTML.value, 'w', encoding='utf-8') as f:
      f.write(mistakes.make_page(network, results, kept))
  for flag in (_JSON, _PREDICTIONS, _HTML):
    if flag.value:
      print(f'Written: {flag.value}')


def _show(results: dict[str, Any]) -> None:
  """Prints the results as tables, and what the network was trained with."""
  from mixer.core import provenance  # loads JAX

  def show(title: str, columns: tuple[str, ...],
           rows: list[tuple[Any, ...]]) -> None:
    if rows:
      full = [i for i in range(len(columns)) if any(r[i] != '' for r in rows)]
      tables.show(tables.make([[row[i] for i in full] for row in rows],
                              [columns[i] for i in full], title=title))

  percent = '{:.2%}'.format
  size = 'x'.join(map(str, results['image_size']))
  show(f'{results["model"]}, at {size}: {results["checkpoint"]}',
       ('split', 'examples', 'classes', 'top-1', 'top-5', 'loss',
        'unreadable', 'no label'),
       [(name, f'{e["examples"]:,}', f'{e["classes"]:,}',
         percent(e['accuracy']),
         # Of five classes or fewer, it is always 100%.
         percent(e['accuracy_top5']) if e['classes'] > 5 else '',
         f'{e["loss"]:.4f}', e['bad'], e.get('unlabelled', 0))
        for name, e in results['evals'].items()])
  if results['provenance']:
    made = provenance.line(results['provenance'], data=True)
    tables.show(tables.styled(f'  trained with {made}', 'dim'))
  shots = list(dict.fromkeys(s for e in results['fewshot'].values() for s in e))
  show('few-shot, ridge regression on the features, mean over seeds',
       ('split', *(f'{s}-shot' for s in shots)),
       [(name, *(percent(e[s]) if s in e else '' for s in shots))
        for name, e in results['fewshot'].items()])
  for name, e in results['evals'].items():
    show(f'{name}: worst classes',
         ('class', 'examples', 'top-1', 'taken for', 'share'),
         [(r['name'], r['examples'], percent(r['accuracy']),
           r['taken_for_name'] or '', percent(r['share']))
          for r in e['worst_classes'] if r['accuracy'] < 1])
  for name, e in results['evals'].items():
    show(f'{name}: each class on its own, worst first',
         ('class', 'examples', 'average precision', 'precision', 'recall',
          'F1'), _each_class(e) if 'several_labels' in e else [])


def _each_class(e: dict[str, Any]) -> list[tuple[Any, ...]]:
  """Returns the rows of an evaluation of images with several labels."""
  kinds = 'precision', 'recall', 'f1'
  rows = [(label, '', e[f'mAP{end}'], *(e[kind + end] for kind in kinds))
          for label, end in (('mean of the classes', ''),
                             ('all classes as one', '_micro'))]
  worst = sorted(e['several_labels'], key=lambda r: r['average_precision'])
  rows += [(r['name'], r['examples'], r['average_precision'],
            *(r[kind] for kind in kinds)) for r in worst[:_WORST.value]]
  return [(*row[:2], *map('{:.2%}'.format, row[2:])) for row in rows]


if __name__ == '__main__':
  command.run(main, several=True)
