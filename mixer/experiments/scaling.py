"""Experiment: what does more training data do for each network?

Figure 2 (right) of the paper. Networks of about equal cost train on nested
random subsets of the training images, all for equally many steps. The paper's
networks train on JFT-300M and are judged by 5-shot accuracy on ImageNet, at the
step that is best on held-out images of JFT. Choices where the paper is silent:
all networks share the config's recipe, subsets and seeds are independent, so
all seeds and networks train on the same images, and no subset has an
augmentation of its own.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import math
import os
from typing import Any

import ml_collections
import numpy as np

from mixer.analysis import figures
from mixer.core import errors
from mixer.core import tables
from mixer.data import class_counts
from mixer.data import splits
from mixer.evaluation import suite
from mixer.experiments import networks as families
from mixer.experiments import runs
from mixer.training import assembly

SHOTS = 5
_FEW = 'few'   # the few-shot evaluation of configs that have none
_FEW_SEEDS = 3
_EVALUATIONS = 5   # during a run; the best of them counts


def run(config: ml_collections.ConfigDict, path: str, *,
        fractions: Sequence[str | float] = (.03, .1, .3, 1),
        networks: Sequence[str] = families.FAMILIES,
        seeds: int = 1) -> dict[str, Any]:
  """Trains each network on each subset.

  The few-shot evaluation is the config's first. If the config has none, linear
  models learn from the first half of its first evaluation split, which no
  network trains on, and are tested on the second half.

  Args:
    config: the config of a run with a Mixer on the full training set.
    path: directory of the experiment.
    fractions: shares of the training images, above 0 up to 1.
    networks: names of `families.FAMILIES`.
    seeds: runs for each network and subset, with seeds that count up from
      `run.seed`.

  Returns:
    {'steps', 'metrics', 'sets', 'rows'}: 'sets' has 'fraction', 'examples' and
    'epochs' of each subset; a row has 'network', 'examples', 'seed', 'step',
    the best by accuracy of the evaluations during the run, 'accuracy' and
    'few_shot' there, and 'last_accuracy' and 'last_few_shot' at the end.
    'metrics' names the metrics.

  Raises:
    UserError: if an argument is wrong, a subset is empty, or the few-shot
      evaluation cannot be made.
  """
  metrics = dict(accuracy=runs.accuracy_of(config))
  settings, names = assembly.check(config), families.families(networks)
  chosen = _fractions(fractions)
  config, metrics['few_shot'] = _with_few_shot(config, settings.image_size)
  stored = runs.stored_splits(config)
  full = len(splits.select(stored, config.data.split, 'data.split'))
  steps = settings.steps(full)
  sets = []
  for share in chosen:
    split = config.data.split if share == 1 else runs.share(
        stored, config.data.split, 0, share, 'data.split')
    count = len(splits.select(stored, split, 'data.split'))
    sets.append(dict(fraction=share, split=split, examples=count,
                     epochs=steps * settings.batch_size / count))
  configs = {name: runs.edited(families.alike(config, name), run=dict(
      total_steps=steps, total_epochs=None, patience=0,
      eval_every=math.ceil(steps / _EVALUATIONS))) for name in names}
  rows = []
  for seed in range(settings.seed, settings.seed + seeds):
    for subset in sets:
      for name, one in configs.items():
        where = os.path.join(path, f'{name}-{subset["examples"]}-{seed}')
        runs.train(runs.edited(
            one, data=dict(split=subset['split']), run=dict(seed=seed)), where,
                   curves=True)
        rows.append(dict(
            network=name, examples=subset['examples'], seed=seed,
            **_best(where, metrics)))
  return dict(steps=steps, metrics=metrics, sets=sets, rows=rows)


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  columns = [f'{subset["examples"]:,} images, {subset["epochs"]:.3g} epochs'
             for subset in found['sets']]
  for key, title in _titles(found).items():
    tables.show(tables.make(
        [(name, *(runs.shown(_values(found, key, name, subset['examples']))
                  for subset in found['sets'])) for name in _names(found)],
        ('network', *columns),
        title=f'{title} ({found["metrics"][key]}), {found["steps"]:,} steps',
        caption='At the step that is best by '
        f'{found["metrics"]["accuracy"]}, of {_EVALUATIONS}.'))


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns a figure of what `run` returned: accuracy against images.

  The band of a line is the range over seeds.
  """
  figure, (panels,) = figures.grid(1, 2, width=figures.PAGE)
  counts = [subset['examples'] for subset in found['sets']]
  for axes, (key, title) in zip(panels, _titles(found).items()):
    for number, name in enumerate(_names(found)):
      values = np.array([_values(found, key, name, n) for n in counts])
      figures.band(axes, counts, values.T, number=number, label=name,
                   marker=figures.MARKERS[number])
    axes.set(xscale='log', xlabel='training images', ylabel=title)
    axes.set_xticks(counts, [f'{count:,}' for count in counts])
    axes.set_xticks([], minor=True)
    axes.grid(True)
    figures.percent(axes)
  panels[0].legend()
  return figure


def _titles(found: Mapping[str, Any]) -> dict[str, str]:
  evaluation = found['metrics']['accuracy'].split('/')[1]
  return dict(few_shot=f'{SHOTS}-shot accuracy',
              accuracy=f'accuracy on {evaluation}')


def _names(found: Mapping[str, Any]) -> list[str]:
  return list(dict.fromkeys(row['network'] for row in found['rows']))


def _values(found: Mapping[str, Any], key: str, name: str,
            examples: int) -> list[float]:
  """Returns the scores of a network's seeds on one subset."""
  return [row[key] for row in found['rows']
          if (row['network'], row['examples']) == (name, examples)]


def _fractions(texts: Sequence[str | float]) -> list[float]:
  """Returns the fractions in ascending order, checked."""
  try:
    out = sorted({float(text) for text in texts})
  except ValueError:
    out = []
  if not out or not 0 < out[0] <= out[-1] <= 1:
    raise errors.UserError(
        '--fractions: expected shares of the training images, above 0 up to 1, '
        f'such as --fractions=0.1,1, got {",".join(map(str, texts))!r}')
  return out


def _with_few_shot(config: ml_collections.ConfigDict,
                   image_size: int | tuple[int, int]
                   ) -> tuple[ml_collections.ConfigDict, str]:
  """Returns a copy that has a few-shot evaluation, and its metric."""
  out = runs.edited(config)
  for name, section in out.fewshot.items():
    if SHOTS in section.shots:
      return out, f'eval/{name}/accuracy_{SHOTS}shot'
    raise errors.UserError(f'fewshot.{name}.shots: expected {SHOTS} among '
                           f'them, got {tuple(section.shots)}')
  name, like = next(iter(config.evals.items()))
  key = f'evals.{name}'
  stored = runs.stored_splits(config, key)
  halves = [runs.share(stored, like.split, begin, end, f'{key}.split')
            for begin, end in ((0, .5), (.5, 1))]
  inherited = {k: like.get(k) for k in ('name', 'dir', 'crop', 'interpolation')}
  with out.unlocked():
    out.fewshot[_FEW] = dict(
        inherited, train=halves[0], test=halves[1], shots=(SHOTS,),
        seeds=_FEW_SEEDS)
  _, few = suite.open_evaluations(dict(out.to_dict(), evals={}), image_size)
  counts = [class_counts.of(part) for part in (few[_FEW].train, few[_FEW].test)]
  if counts[0] is not None and counts[1] is not None:
    absent = np.flatnonzero((counts[0] == 0) & (counts[1] > 0))
    if len(absent):
      raise errors.UserError(
          f'{key}.split: the first half of {like.split!r}, from which few-shot '
          f'models learn, has no image of {len(absent)} classes, such as class '
          f'{absent[0]}; choose a larger split, or add a section `fewshot` to '
          'the config')
  return out, f'eval/{_FEW}/accuracy_{SHOTS}shot'


def _best(path: str, metrics: Mapping[str, str]) -> dict[str, Any]:
  """Returns the scores of a run at its best evaluation, and at its last."""
  found = {key: runs.curve(path, metric) for key, metric in metrics.items()}
  steps, accuracies = found['accuracy']
  if not steps:
    raise errors.UserError(
        f'--workdir: the finished run {path} has no {metrics["accuracy"]!r} in '
        'its metrics; the evaluations have changed since, so give another')
  best = int(np.argmax(accuracies))
  return dict(step=steps[best],
              **{key: values[best] for key, (_, values) in found.items()},
              **{f'last_{key}': values[-1]
                 for key, (_, values) in found.items()})
