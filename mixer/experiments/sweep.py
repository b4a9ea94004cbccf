"""Experiment: which settings are best on held-out training images?

The paper chooses the learning rate of each fine-tuning in this way (appendix
C). Each value trains on a part of the training images, and the rest judge it.
The best value then trains on all of them, and only that run sees the test
images. Where the values already train on all of them and the config's own
evaluation judges, the best run is the result and is not trained again.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
import os
from typing import Any

import ml_collections

from mixer.analysis import data_sizes
from mixer.analysis import figures
from mixer.analysis import scoring
from mixer.core import errors
from mixer.core import files
from mixer.core import tables
from mixer.core import workdir
from mixer.core.log import log
from mixer.experiments import runs
from mixer.experiments import sweep_grid
from mixer.training import assembly
from mixer.training import resume

_METRICS = ('eval/dev/accuracy', 'eval/dev/accuracy_top5')
# Enough for a check of the other settings; the real data may be elsewhere.
_ANY_DATA = data_sizes.Size(examples=None, num_classes=1, channels=3,
                            missing=None)


def run(config: ml_collections.ConfigDict, path: str, *,
        grid: Sequence[str] = ()) -> dict[str, Any]:
  """Runs the sweep that the config's section `sweep` describes.

  Args:
    config: the config of a run, with a section `sweep`.
    path: directory of the sweep.
    grid: 'KEY=V1,V2,...', values to try instead of the learning rates.

  Returns:
    What `sweep` returns.
  """
  if 'sweep' not in config:
    raise errors.UserError(
        'config: expected a section `sweep`, which says on which images to '
        'train and to choose; configs/finetune.py has one')
  found = sweep(config, path, **config.sweep,
                grid=sweep_grid.parse(grid, config))
  log.info('sweep    the run to use is %s', os.path.join(
      path, 'final' if found.get('retrain', True) else found['choice']))
  return found


def sweep(config: ml_collections.ConfigDict, path: str, *,
          learning_rates: Sequence[float], train: str, dev: str,
          metric: str = 'eval/dev/accuracy', grid: sweep_grid.Grid | None = None
          ) -> dict[str, Any]:
  """Trains once for each value, chooses the best, and trains it on all images.

  The runs are in PATH/KEY=VALUE and PATH/final. PATH/sweep.json has
  their scores, and a run with a score is not started again. A run that diverges
  cannot be chosen. If `train` is the config's own training split and `dev` that
  of its first evaluation, the chosen run is the final one, and there is no
  PATH/final.

  Args:
    config: the config of a run. Its section `sweep` holds the arguments from
      `learning_rates` to `metric`.
    path: directory of the sweep.
    learning_rates: values to try if there is no `grid`.
    train: split of the config's data to train on.
    dev: split of the config's data to choose by. Its images are shown as those
      of the config's first evaluation.
    metric: 'eval/dev/accuracy' or 'eval/dev/accuracy_top5'. Among equal scores
      the smaller learning rate wins, then the earlier value.
    grid: {key of the config: values}; all combinations of several keys.

  Returns:
    The content of sweep.json: 'metric', 'train' and 'dev'; 'tested', the splits
    of the final evaluation; 'runs', {name: {'values', 'learning_rate', and
    'scores' or 'failed'}}; 'choice', the name of the best run; 'tied', the
    names of those that are as good; 'retrain', whether the choice trains again;
    'final', the scores of the final run. Without 'retrain', 'metric' is that of
    the config's first evaluation.

  Raises:
    UserError: if a value is refused, or PATH holds another sweep.
    RunError: if every run diverges.
  """
  if metric not in _METRICS:
    raise errors.unknown('sweep.metric', metric, _METRICS)
  runs.check_evaluated(config)
  grid = grid or {sweep_grid.RATE: [float(rate) for rate in learning_rates]}
  trials = _trials(config, grid)
  with workdir.claimed(path):
    file = os.path.join(path, 'sweep.json')
    kept = files.read_json(file)
    found = kept or dict(
        **_judged(config, metric, train, dev), train=train, dev=dev,
        tested=[e.split for e in config.evals.values()], runs={}, choice=None,
        tied=[], final=None)
    retrain = found.get('retrain', True)   # older sweeps always do

    # The config is written with the first result, not before, so that a config
    # that is refused does not block the directory for the corrected one.
    agree = lambda: resume.agree(path, dict(config.to_dict(), grid=grid))

    def note(**news: Any) -> None:
      agree()
      found.update(news)
      workdir.write_json(file, found)

    if kept:
      runs.check_alike(path, config, found, train=train, dev=dev)
      agree()
    for number, (name, values) in enumerate(trials.items(), 1):
      if name not in found['runs']:
        log.info('\nsweep    run %d of %d: %s', number, len(trials), name)
        trial = _with(config, values)
        if retrain:
          trial = _trial(trial, train, dev)
        note(runs=dict(found['runs'], **{name: dict(
            values=values, learning_rate=trial.schedule.learning_rate,
            **_outcome(trial, os.path.join(path, name)))}))
    note(**choose(found['runs'], found['metric']))
    if not retrain:
      note(final=found['runs'][found['choice']]['scores'])
    elif found['final'] is None:
      log.info('\nsweep    the final run: %s', found['choice'])
      final = _with(config, trials[found['choice']])
      note(final=runs.train(final, os.path.join(path, 'final')))
  return found


def choose(found: Mapping[str, Any], metric: str) -> dict[str, Any]:
  """Returns the best run as 'choice', and those that are as good as 'tied'.

  Args:
    found: 'runs' of a sweep.
    metric: the metric to choose by; more is better.

  Raises:
    RunError: if all runs failed.
  """
  scores = {name: row['scores'][metric] for name, row in found.items()
            if 'scores' in row}
  if not scores:
    raise errors.RunError(
        f'all {len(found)} runs of the sweep diverged; try lower learning '
        'rates in another --workdir, such as '
        f'--grid={sweep_grid.RATE}=0.0003,0.001')
  best = max(scores.values())
  tied = sorted((name for name in scores if scores[name] == best),
                key=lambda name: found[name]['learning_rate'])
  return dict(choice=tied[0], tied=tied[1:])


def show(found: Mapping[str, Any]) -> None:
  """Prints what `sweep` returned."""
  metric, rows = found['metric'], found['runs']
  final = ', '.join(f'{name.removeprefix("eval/")} {value:.2%}'
                    for name, value in found['final'].items()
                    if name.endswith('/accuracy'))
  if found['dev'] in found['tested']:
    final += ', on the images that chose it, so slightly too good'
  tables.show(tables.make(
      [(*row['values'].values(),
        f'{row["scores"][metric]:.2%}' if 'scores' in row else '-',
        _status(found, name)) for name, row in rows.items()],
      (*next(iter(rows.values()))['values'], 'score', ''), left=0,
      title=f'trained on {found["train"]}, judged by {metric} on '
      f'{found["dev"]}',
      caption=f'final run with {found["choice"]}: {final}'))


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns a figure of what `sweep` returned: scores by the first key.

  Each combination of the values of other keys has a line of its own.
  """
  figure, ((axis,),) = figures.grid(height=2.2)
  rows = found['runs']
  key, *others = next(iter(rows.values()))['values']
  values = list(dict.fromkeys(row['values'][key] for row in rows.values()))
  numbers = all(type(value) in (int, float) for value in values)
  place = lambda row: row['values'][key] if numbers else values.index(
      row['values'][key])
  lines: dict[str, list[tuple[float, float]]] = {}
  for row in rows.values():
    name = ', '.join(f'{k.rpartition(".")[2]} {row["values"][k]}'
                     for k in others)
    line = lines.setdefault(name, [])
    if 'scores' in row:
      line.append((place(row), row['scores'][found['metric']]))
    else:
      axis.annotate('diverged', (place(row), .02), xycoords=(
          'data', 'axes fraction'), rotation=90, ha='center', va='bottom',
          fontsize=6, color=figures.GREY)
  for number, (name, line) in enumerate(lines.items()):
    axis.plot(*zip(*sorted(line)) if line else ((), ()),
              f'{figures.MARKERS[number % len(figures.MARKERS)]}-', label=name,
              color=figures.PALETTE[number % len(figures.PALETTE)])
  chosen = rows[found['choice']]
  axis.plot(place(chosen), chosen['scores'][found['metric']], 'o', color='k',
            markersize=8, fillstyle='none')
  if numbers:
    if min(values) > 0 and max(values) >= 8 * min(values):
      axis.set_xscale('log')
    axis.set_xticks(values, [f'{value:g}' for value in values])
    axis.minorticks_off()
  else:
    axis.set_xticks(range(len(values)), [str(value) for value in values])
  axis.set(xlabel=key, ylabel=f'{found["metric"].rpartition("/")[2]} on '
           f'{found["dev"]}')
  axis.margins(.1)
  axis.grid(True)
  figures.percent(axis)
  if others:
    figure.legend(loc='outside upper center', ncols=3)
  return figure


def _status(found: Mapping[str, Any], name: str) -> str:
  """Returns what became of a run, in words."""
  if name == found['choice']:
    return 'chosen: smaller learning rate of equals, then the earlier' if (
        found['tied']) else 'chosen'
  if 'failed' in found['runs'][name]:
    return 'diverged'
  return 'as good' if name in found['tied'] else ''


def _trials(config: ml_collections.ConfigDict,
            grid: sweep_grid.Grid) -> dict[str, dict[str, Any]]:
  """Returns {name of a run: {key: value}} of all combinations.

  Each config is checked as far as that is possible without the data, so that
  the last value is not refused after days of training.
  """
  out = {}
  for combination in itertools.product(*grid.values()):
    values = dict(zip(grid, combination))
    trial = _with(config, values)
    settings = assembly.check(trial)
    assembly.make_step(
        trial, settings, assembly.make_model(trial, settings, _ANY_DATA),
        trial.run.total_steps or 10**9)
    name = ','.join(f'{key}={value}' for key, value in values.items())
    out[name.replace('/', '-')] = values
  if len(out) != math.prod(map(len, grid.values())) or not out:
    raise errors.UserError('--grid: expected values whose names are different '
                           f'folders, got {grid}')
  return out


def _with(config: ml_collections.ConfigDict,
          values: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Returns a copy with some values, {key: value}, changed."""
  out = runs.edited(config)
  out.update_from_flattened_dict(values)
  return out


def _judged(config: ml_collections.ConfigDict, metric: str, train: str,
            dev: str) -> dict[str, Any]:
  """Returns whether the choice has to train again, and the metric it is by."""
  name, like = next(iter(config.evals.items()))
  own = all(like.get(key) in (None, config.data[key])
            for key in ('name', 'dir'))
  if not own or (config.data.split, like.split) != (train, dev):
    return dict(metric=metric, retrain=True)
  return dict(metric=metric.replace('/dev/', f'/{name}/'), retrain=False)


def _trial(config: ml_collections.ConfigDict, train: str,
           dev: str) -> ml_collections.ConfigDict:
  """Makes the config, in place, that of a run to choose by."""
  like = next(iter(config.evals.values()))
  with config.unlocked():
    config.data.update(split=train, held_out=scoring.held_out(
        config.to_dict()))
    config.evals = dict(dev=dict(like, split=dev, name=None, dir=None))
    config.fewshot, config.run.patience = {}, 0
    config.checkpoint.update(best=None, keep=1)
  return config


def _outcome(config: ml_collections.ConfigDict, path: str) -> dict[str, Any]:
  """Returns the scores of a run, or why it failed."""
  try:
    return dict(scores=runs.train(config, path))
  except errors.Diverged as e:
    log.info('sweep    %s', e)
    return dict(failed=str(e))
