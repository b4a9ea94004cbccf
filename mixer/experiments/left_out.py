"""Experiment: what is pre-training worth for classes that it never saw?

The last classes of a data set are left out of the pre-training. On these
classes, few-shot accuracies of the pre-trained network are compared with those
of an untrained one, and fine-tuning with training from scratch.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any
import zipfile

import jax
import ml_collections
import numpy as np

from mixer.analysis import figures
from mixer.core import errors
from mixer.core import files
from mixer.core import tables
from mixer.data import pipeline
from mixer.data.sources import Source
from mixer.evaluation import fewshot
from mixer.experiments import runs
from mixer.pretrained import network
from mixer.training import assembly

SHOTS, SEEDS = fewshot.SHOTS, len(fewshot.SEEDS)
# Of the training images of a new class, one in five chooses the learning rate.
_DEV_PART = 5


def run(config: ml_collections.ConfigDict, path: str, *, classes: int = 4,
        examples: int = 250, tuning_steps: int = 150,
        rates: Sequence[float] = ()) -> dict[str, Any]:
  """Pre-trains on some classes, and measures the network on the others.

  Args:
    config: the config of the pre-training, on a data set that fits in memory.
    path: directory of the experiment.
    classes: how many classes are left out.
    examples: training images of each class that is left out, a fifth of which
      chooses the learning rate. All its test images are for testing.
    tuning_steps: steps of fine-tuning, and of training from scratch.
    rates: learning rates that both try, by default a tenth and a third of the
      config's, and the config's.

  Returns:
    'classes', the names of those left out; 'pretrained', the accuracy of the
    pre-training; 'fewshot', {'pretrained', 'untrained': {shots: accuracy}};
    'tuned' and 'scratch', {'rate', 'dev', 'test'} of the best rate.

  Raises:
    UserError: if the data set has too few classes, or too few images of one
      that is left out.
  """
  runs.check_evaluated(config)
  if files.is_remote(path):
    raise errors.UserError(f'--workdir: {path!r}: left_out writes its data '
                           'sets there; expected a local folder')
  base, others, names = _split_classes(config, path, classes, examples)
  pretrained = os.path.join(path, 'pretrained')
  scores = runs.train(_on_arrays(config, base, ('test',)), pretrained)
  trained = network.open_network(pretrained)
  untrained = trained.model.init(
      jax.random.key(config.run.seed),
      np.zeros((1, *trained.image_size, trained.model.in_channels)))['params']
  few = {name: runs.few_shot(
      _on_arrays(config, others, ()), trained.model, params,
      trained.image_size, train_split='train', test_split='test', shots=SHOTS,
      seeds=SEEDS) for name, params in (('pretrained', trained.params),
                                        ('untrained', untrained))}
  found = dict(classes=names, pretrained=scores['eval/test/accuracy'],
               fewshot=few)
  rate = config.schedule.learning_rate
  rates = rates or [float(f'{rate * part:.3g}') for part in (.1, 1 / 3, 1)]
  short = runs.short(_on_arrays(config, others, ('dev', 'test')), tuning_steps)
  for name, weights in (('tuned', pretrained), ('scratch', None)):
    found[name] = _best(short, os.path.join(path, name), weights, rates)
  return found


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  few = tables.make(
      [(name, *(f'{row[shot]:.2%}' for shot in SHOTS))
       for name, row in found['fewshot'].items()],
      ('few-shot, linear', *(f'{shot}-shot' for shot in SHOTS)),
      title=f'classes left out: {", ".join(found["classes"])}')
  full = tables.make(
      [(title, found[name]['rate'], f'{found[name]["dev"]:.2%}',
        f'{found[name]["test"]:.2%}')
       for name, title in (('tuned', 'from the pre-trained network'),
                           ('scratch', 'from scratch'))],
      ('trained', 'learning rate', 'dev', 'test'))
  tables.show(few, full)


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns a figure of what `run` returned: few-shot, and fine-tuned."""
  figure, ((few, full),) = figures.grid(
      1, 2, height=2.1, sharey=True, width_ratios=(3, 2))
  chance = 1 / len(found['classes'])
  for number, (name, label) in enumerate((('pretrained', 'pre-trained'),
                                          ('untrained', 'untrained'))):
    row = found['fewshot'][name]
    few.plot([int(shots) for shots in row], list(row.values()),
             f'{figures.MARKERS[number]}-', color=figures.PALETTE[number],
             label=label)
  few.set(xscale='log', xlabel='images of each class', title='linear, few-shot',
          ylabel=f'accuracy on {len(found["classes"])} new classes')
  few.set_xticks(SHOTS, [str(shots) for shots in SHOTS])
  few.minorticks_off()
  few.legend()
  bars = full.bar(
      ['pre-trained', 'scratch'], [found[k]['test'] for k in (
          'tuned', 'scratch')], color=figures.PALETTE[:2], width=.6)
  full.bar_label(bars, fmt=lambda value: f'{value:.1%}', fontsize=7)
  full.set(title='whole network', xlabel='trained from')
  for axis in (few, full):
    axis.axhline(chance, color=figures.GREY, linestyle=':', zorder=0)
  few.annotate('chance', (SHOTS[-1], chance), (0, 1), va='bottom', ha='right',
               textcoords='offset points', fontsize=6, color=figures.GREY)
  few.set_ylim(0, 1.04)
  figures.percent(few)
  return figure


def _split_classes(config: ml_collections.ConfigDict, path: str,
                   classes: int, examples: int
                   ) -> tuple[str, str, list[str]]:
  """Writes the classes that stay, and those left out, as two data sets.

  Returns:
    (.npz file of the classes that stay, .npz file of the others, names of the
    others). The splits are 'train' and 'test', and 'dev' for the others.
  """
  size = assembly.check(config).image_size
  data = {part: _in_memory(config, split, size) for part, split in (
      ('train', config.data.split),
      ('test', next(iter(config.evals.values())).split))}
  source, *_ = data['train']
  stay = source.num_classes - classes
  if classes < 2 or stay < 2:
    raise errors.UserError(
        f'--classes: expected 2 to {source.num_classes - 2}, so that at least '
        f'two of the {source.num_classes} classes stay and two are left out, '
        f'got {classes}')
  names = source.class_names or tuple(map(str, range(source.num_classes)))
  base: dict[str, Any] = {}
  others: dict[str, Any] = {}
  for part, (_, images, labels) in data.items():
    old, new = np.flatnonzero(labels < stay), np.flatnonzero(labels >= stay)
    if part == 'train':
      new = fewshot.pick(labels, shots=examples, seed=config.run.seed,
                         num_classes=source.num_classes)
      new = new[labels[new] >= stay]
      dev = fewshot.pick(
          labels[new], shots=max(1, examples // _DEV_PART),
          seed=config.run.seed, num_classes=source.num_classes)
      dev, new = new[dev], np.delete(new, dev)
      few = fewshot.scarce(labels[new] - stay, shots=1, num_classes=classes)
      if few:
        raise errors.UserError(
            f'--examples: {examples}, but class {names[stay + min(few)]!r} has '
            f'{len(np.flatnonzero(labels == stay + min(few)))} training images,'
            ' which would all choose the learning rate; give a smaller number, '
            'or data with more of them')
      others['dev_images'], others['dev_labels'] = (
          images[dev], labels[dev] - stay)
    base[f'{part}_images'], base[f'{part}_labels'] = images[old], labels[old]
    others[f'{part}_images'], others[f'{part}_labels'] = (
        images[new], labels[new] - stay)
  paths = [os.path.join(path, f'{name}.npz') for name in ('base', 'others')]
  base['class_names'] = np.array(names[:stay])
  others['class_names'] = np.array(names[stay:])
  for file, arrays in zip(paths, (base, others)):
    kept = _arrays(file)
    if kept and not (kept.keys() == arrays.keys() and all(
        np.array_equal(kept[name], arrays[name]) for name in arrays)):
      raise errors.UserError(
          f'--workdir: {path!r} holds an experiment with other --classes, '
          '--examples or data; give these again, or another --workdir')
  os.makedirs(path, exist_ok=True)
  for file, arrays in zip(paths, (base, others)):
    np.savez(file, **arrays)
  return paths[0], paths[1], list(names[stay:])


def _arrays(file: str) -> dict[str, np.ndarray]:
  """Returns the arrays of a file; none if it is not there or cut short."""
  try:
    with np.load(file) as kept:
      return dict(kept)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile):
    return {}


def _in_memory(config: ml_collections.ConfigDict, split: str,
               size: int | tuple[int, int]
               ) -> tuple[Source, np.ndarray, np.ndarray]:
  """Returns a split's source, resized images [N, H, W, c] and labels [N]."""
  section = {key: config.data[key] for key in (
      'name', 'dir', 'interpolation', 'max_pixels')}
  data = pipeline.open_data(
      **section, split=split, crop='resize', on_device=True, image_size=size,
      wanted=(config.data.split, split), held_out=config.data.get('held_out'))
  assert data.resident is not None   # because of on_device
  return data.source, data.resident['image'], data.resident['labels'][:, 0]


def _on_arrays(config: ml_collections.ConfigDict, npz: str,
               evals: Sequence[str]) -> ml_collections.ConfigDict:
  """Returns a copy that trains on 'train' of a file, evaluated on `evals`."""
  like = next(iter(config.evals.values()))
  config = runs.edited(
      config, data=dict(name=f'arrays:{npz}', split='train'))
  with config.unlocked():
    config.evals = {split: dict(like, name=None, dir=None, split=split)
                    for split in evals}
  return config


def _best(config: ml_collections.ConfigDict, path: str, weights: str | None,
          rates: Sequence[float]) -> dict[str, float]:
  """Trains once for each rate; returns the one that is best on 'dev'."""
  found = []
  for rate in rates:
    scores = runs.train(
        runs.edited(
            config, start=dict(weights=weights, best=False, method=None,
                               dont_load='head/.*'),
            schedule=dict(learning_rate=rate)),
        os.path.join(path, f'{rate}'))
    found.append(dict(rate=rate, dev=scores['eval/dev/accuracy'],
                      test=scores['eval/test/accuracy']))
  return max(found, key=lambda row: row['dev'])
