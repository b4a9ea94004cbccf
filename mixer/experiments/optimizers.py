"""Experiment: SGD or Adam, tuned alike at equal budget?

Each optimizer tries equally many learning rates on a part of the training
images, and held-out training images choose; a section `sweep` of the config
names other splits. The best rate of each then trains on all training images
with several seeds. The rest is the config's: steps, batches, schedule,
augmentation, loss, clipping and moments. The optimizer that it names keeps its
weight decay. The other has that of the recipes: none for SGD, for Adam the
paper's for ImageNet (table 4). Weight decay is decoupled.
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
from mixer.data import splits
from mixer.experiments import runs
from mixer.experiments import sweep
from mixer.training import assembly

# Of the optimizer that the config does not name.
WEIGHT_DECAY = {'sgd': 0.0, 'adam': .1}
# Learning rates to try.
RATES = {'sgd': (.03, .07, .17, .4, 1.), 'adam': (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}
_TITLES = {'sgd': 'SGD', 'adam': 'Adam'}
_HELD_OUT = .1   # of the training images choose
_EVALUATIONS = 10   # of a run, if the config has none before its end
_LOSS = 'train/loss'
_POINTS = 50   # of a curve of the loss, each a mean


def run(config: ml_collections.ConfigDict, path: str, *,
        rates: Sequence[str] = (), seeds: int = 1) -> dict[str, Any]:
  """Tunes both optimizers, then trains with the best rate of each.

  Args:
    config: the config of a run.
    path: directory of the experiment.
    rates: 'sgd=R1,R2,...' or 'adam=R1,R2,...', learning rates to try instead of
      `RATES`.
    seeds: final runs of each optimizer, with seeds that count up from
      `run.seed`. The rates are tried with the first seed.

  Returns:
    {'metric', 'train', 'dev', 'tested', 'optimizers'}: the name of the accuracy
    of final runs, the splits of the tuning, the split that 'metric' is measured
    on (None if of other data), and of each optimizer 'settings', 'tried'
    ({'rate', 'accuracy' on dev, or None if the run diverged}), 'rate', the
    best, and 'runs' ({'seed', 'accuracy', 'loss' and 'accuracies', the last two
    {'steps', 'values'}}).

  Raises:
    UserError: if rates are wrong, or not equally many for each optimizer.
    RunError: if every rate of an optimizer diverges.
  """
  metric, tried = runs.accuracy_of(config), parse(rates)
  settings = assembly.check(config)
  stored = runs.stored_splits(config)
  section = config.get('sweep') or _held_out(config, stored)
  train, dev = section['train'], section['dev']
  steps = settings.steps(len(splits.select(
      stored, config.data.split, 'data.split')))
  base = runs.edited(config, run=dict(
      total_steps=steps, total_epochs=None, patience=0, eval_every=(
          settings.eval_every or math.ceil(steps / _EVALUATIONS))))
  with base.unlocked():
    if 'sweep' in base:
      del base['sweep']
  out = {}
  for name, decay in WEIGHT_DECAY.items():
    own = runs.edited(base, optimizer=dict(name=name, weight_decay=(
        base.optimizer.weight_decay if base.optimizer.name == name else decay)))
    found = sweep.sweep(own, os.path.join(path, name), train=train, dev=dev,
                        learning_rates=tried[name])
    rate = found['runs'][found['choice']]['learning_rate']
    finals: list[dict[str, Any]] = []
    places: list[str] = []
    for seed in range(settings.seed, settings.seed + seeds):
      # The sweep has trained the first one.
      where = os.path.join(path, name, 'final' if seed == settings.seed and (
          found['retrain']) else f'seed-{seed}')
      scores = runs.train(runs.edited(
          own, schedule=dict(learning_rate=rate), run=dict(seed=seed)), where,
                          curves=True)
      places.append(where)
      finals.append(dict(seed=seed, accuracy=scores[metric]))
    for key, name_of, make in (('loss', _LOSS, _means),
                               ('accuracies', metric, _curve)):
      at, rows = runs.curves(places, name_of)
      for final, row in zip(finals, rows):
        final[key] = make(at, row)
    out[name] = dict(
        settings=own.optimizer.to_dict(), rate=rate, runs=finals, tried=[
            dict(rate=one['learning_rate'],
                 accuracy=one.get('scores', {}).get(found['metric']))
            for one in found['runs'].values()])
  measured = next(iter(config.evals.values()))
  own = all(measured.get(key) in (None, config.data[key])
            for key in ('name', 'dir'))
  return dict(metric=metric, train=train, dev=dev, optimizers=out,
              tested=measured.split if own else None)


def parse(texts: Sequence[str]) -> dict[str, list[float]]:
  """Returns {optimizer: learning rates} of 'NAME=R1,R2,...' texts.

  Args:
    texts: an optimizer without a text has its rates of `RATES`.

  Raises:
    UserError: if a text is wrong, or the numbers of rates differ.
  """
  out = {name: list(rates) for name, rates in RATES.items()}
  for text in texts:
    name, _, values = text.partition('=')
    try:
      rates = sorted({float(value) for value in values.split(',')})
    except ValueError:
      rates = []
    if name not in WEIGHT_DECAY or not rates or not (
        0 < rates[0] <= rates[-1] < math.inf):
      raise errors.UserError(
          '--rates: expected sgd=R1,R2,... or adam=R1,R2,... with learning '
          f'rates above 0, such as --rates=sgd=0.1,0.3, got {text!r}')
    out[name] = rates
  if len(set(map(len, out.values()))) > 1:
    raise errors.UserError(
        '--rates: expected equally many learning rates for each optimizer, so '
        'that the budgets are equal, got ' + ' and '.join(
            f'{len(rates)} for {name}' for name, rates in out.items()))
  return out


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  tried, finals, edges = [], [], []
  for name, one in found['optimizers'].items():
    rates = [row['rate'] for row in one['tried']]
    edge = len(rates) > 1 and one['rate'] in (min(rates), max(rates))
    edges.append(edge)
    tried += [(
        _TITLES[name], f'{row["rate"]:g}',
        'diverged' if row['accuracy'] is None else f'{row["accuracy"]:.2%}',
        '' if row['rate'] != one['rate'] else 'best' + ', at the edge' * edge)
              for row in one['tried']]
    loss = runs.spread([row['loss']['values'][-1] for row in one['runs']])[0]
    finals.append((
        _TITLES[name], f'{one["rate"]:g}',
        runs.shown([row['accuracy'] for row in one['runs']]), f'{loss:.3f}'))
  tables.show(
      tables.make(
          tried, ('optimizer', 'learning rate', found['dev'], ''),
          title=f'trained on {found["train"]}, judged on {found["dev"]}',
          caption='A best rate at the edge of those that were tried may not be '
          'the best: try more beyond it, in another --workdir.' * any(edges)),
      tables.make(finals, ('optimizer', 'learning rate', found['metric'],
                           'training loss'),
                  title='with the best rate, on all training images',
                  caption=_caveat(found)))


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns a figure of what `run` returned.

  From left to right: accuracy on held-out training images against the learning
  rate, then the loss and the accuracy of the final runs against steps, whose
  bands are the range over seeds.
  """
  figure, ((tuning, *curves),) = figures.grid(1, 3, width=figures.PAGE)
  for number, (name, one) in enumerate(found['optimizers'].items()):
    tried = [r for r in one['tried'] if r['accuracy'] is not None]
    tuning.plot([r['rate'] for r in tried], [r['accuracy'] for r in tried],
                color=figures.PALETTE[number], label=_TITLES[name],
                marker=figures.MARKERS[number])
    for axes, key in zip(curves, ('loss', 'accuracies')):
      figures.band(axes, one['runs'][0][key]['steps'],
                   np.array([r[key]['values'] for r in one['runs']]),
                   number=number, label=_TITLES[name])
  tuning.set(xscale='log', xlabel='learning rate',
             ylabel='accuracy on held-out images')
  curves[0].set(xlabel='step', xlim=(0, None), ylabel='training loss')
  curves[1].set(xlabel='step', xlim=(0, None),
                ylabel=f'accuracy on {found["metric"].split("/")[1]}',
                title=_caveat(found).replace(', ', ',\n'))
  for axes in (tuning, curves[1]):
    figures.percent(axes)
  for axes in (tuning, *curves):
    axes.grid(True)
  curves[0].legend()
  return figure


def _caveat(found: Mapping[str, Any]) -> str:
  """Returns what to say of accuracies on the images that chose, or ''."""
  # Older results lack 'tested'.
  return ('on the images that chose the rate, so slightly too good'
          if found.get('tested') == found['dev'] else '')


def _held_out(config: ml_collections.ConfigDict,
              stored: splits.Stored) -> dict[str, str]:
  """Returns 'train' and 'dev', parts of the training split."""
  limits = dict(train=(0, 1 - _HELD_OUT), dev=(1 - _HELD_OUT, 1))
  return {part: runs.share(stored, config.data.split, begin, end,
                             'data.split')
          for part, (begin, end) in limits.items()}


def _curve(steps: Sequence[float],
           values: Sequence[float]) -> dict[str, list[float]]:
  return dict(steps=list(steps), values=list(values))


def _means(steps: Sequence[int],
           values: Sequence[float]) -> dict[str, list[float]]:
  """Returns a curve of at most `_POINTS` points, each the mean of its part."""
  parts = min(_POINTS, len(steps))
  return _curve([float(part[-1]) for part in np.array_split(steps, parts)],
                [float(part.mean()) for part in np.array_split(values, parts)])
