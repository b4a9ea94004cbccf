"""What the experiments share: runs in folders of a workdir, and scores.

An experiment trains each network that it compares as a run of its own. The
scores of a finished run stay in its folder, so the same command continues an
experiment that was stopped.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import statistics
from typing import Any

import ml_collections

from mixer.core import errors
from mixer.core import files
from mixer.core import processes
from mixer.core import workdir
from mixer.core.log import log
from mixer.data import sources
from mixer.data import splits
from mixer.evaluation import suite
from mixer.models import interface
from mixer.training import assembly
from mixer.training import losses
from mixer.training import metrics_file
from mixer.training import run
from mixer.training import sharding
from mixer.training import watchdog

_FEWSHOT_BATCH = 256


def train(config: ml_collections.ConfigDict, path: str, *,
          curves: bool = False) -> dict[str, float]:
  """Trains one run, or reads its scores if it has finished.

  Args:
    config: the config of the run.
    path: the run's own directory.
    curves: whether the experiment also shows the evaluations during training,
      which are never repeated.

  Returns:
    The metrics of the final evaluation, such as 'eval/test/accuracy'. A
    finished run is evaluated again if the evaluations of the config changed.

  Raises:
    UserError: if `curves`, and they changed.
    Stopped: if a signal came, so that the experiment starts no other run.
  """
  file = os.path.join(path, 'scores.json')
  # As JSON has it, in which a tuple is a list.
  stored = json.loads(json.dumps(assembly.stored(config)))
  kept = files.read_json(file) or {}
  # A key that is not set may be newer than the file.
  if workdir.flat(kept.get('config') or {}) == workdir.flat(stored):
    return kept['scores']
  if curves:
    check_alike(path, config)
  log.info('\nstudy    run %s', path)
  scores = {name: float(value)
            for name, value in run.train(config, path).items()}
  if processes.first():
    workdir.write_json(file, dict(config=stored, scores=scores))
  watchdog.check_last_run()
  return scores


def check_alike(path: str, config: ml_collections.ConfigDict,
                kept: Mapping[str, Any] | None = None, **wanted: Any) -> None:
  """Refuses to go on with scores that were measured in another way.

  Args:
    path: of the run or the experiment that has them.
    config: now; its evaluations must be those of the config in `path`.
    kept: what else is known of the scores.
    **wanted: what it has to be, where it is known.

  Raises:
    UserError: if something differs.
  """
  before = workdir.config_of(path)
  now = json.loads(json.dumps(assembly.stored(config)))
  differ = [key for key in ('evals', 'fewshot')
            if before and (before.get(key) or {}) != (now.get(key) or {})]
  differ += [key for key, value in wanted.items()
             if (kept or {}).get(key, value) != value]
  if differ:
    raise errors.UserError(
        f'--workdir: {path!r} has scores that were measured with other '
        f'{" and ".join(differ)}; give these again, or another --workdir')


def curve(path: str, metric: str) -> tuple[list[int], list[float]]:
  """Returns the steps at which a run has a metric, and its values there.

  Values that are not finite, as those of a skipped update, are left out.

  Args:
    path: the run's directory.
    metric: such as 'train/loss' or 'eval/test/accuracy'.
  """
  # metrics.jsonl has numbers that are not finite as text.
  rows = [row for row in metrics_file.read(path)
          if isinstance(row.get(metric), (int, float))]
  return [row['step'] for row in rows], [row[metric] for row in rows]


def curves(paths: Sequence[str],
           metric: str) -> tuple[list[int], list[list[float]]]:
  """Returns the steps at which all runs have a metric, and the values of each.

  Args:
    paths: the directories of runs that differ in their seeds.
    metric: as for `curve`.
  """
  found = [dict(zip(*curve(path, metric))) for path in paths]
  steps = [step for step in found[0] if all(step in one for one in found)]
  return steps, [[one[step] for step in steps] for one in found]


def accuracy_of(config: ml_collections.ConfigDict) -> str:
  """Returns the metric to compare by: accuracy on the first evaluation."""
  check_evaluated(config)
  return f'eval/{next(iter(config.evals))}/accuracy'


def stored_splits(config: ml_collections.ConfigDict,
                  key: str = 'data') -> splits.Stored:
  """Returns the splits of the data set that a section of a config names.

  Args:
    config: of a run.
    key: 'data' or 'evals.NAME'.
  """
  sections, _ = suite.sections(config.to_dict())
  mine = sections[key]
  return sources.open_source(
      mine['name'], data_dir=mine.get('dir'), access=mine.get('access'),
      labels=mine.get('labels'),
      wanted=splits.wanted(sections, mine['name'])).stored


def share(stored: splits.Stored, spec: str, begin: float, end: float,
          key: str) -> str:
  """Returns the name of a share of a split, such as 'train[0:1500]'.

  A share that begins with 0 is a subset of each larger one. Where slices follow
  the fixed permutation, and in TFDS sets, which are mixed when they are
  prepared, a share is a random subset, drawn without regard to the classes.

  Args:
    stored: the splits of a source.
    spec: the split to cut, such as 'train[:99%]'. Of 'train+validation', each
      part gives the same share.
    begin, end: the limits of the share, from 0 to 1.
    key: the config key that holds `spec`, for error messages.

  Raises:
    UserError: as `select` does, and if the share holds no examples.
  """
  out = '+'.join(
      f'{name}[{start + round(begin * (stop - start))}:'
      f'{start + round(end * (stop - start))}]'
      for name, start, stop in splits.parts(stored, spec, key))
  splits.select(stored, out, key)
  return out


def of_seeds(count: int) -> str:
  """Returns what a value of a table is over so many seeds."""
  return ('one seed' if count == 1 else
          f'mean and standard deviation over {count} seeds')


def spread(values: Sequence[float]) -> tuple[float, float]:
  """Returns the mean over seeds, and the sample standard deviation (0 of one).
  """
  return (statistics.fmean(values),
          statistics.stdev(values) if len(values) > 1 else 0.0)


def shown(values: Sequence[float]) -> str:
  """Returns the mean of fractions in percent, with `spread` if several."""
  mean, deviation = spread(values)
  return f'{mean:.2%}' + (f' ±{100 * deviation:.2f}' if len(values) > 1 else '')


def check_evaluated(config: ml_collections.ConfigDict) -> None:
  """Raises a UserError if the config has no evaluation to compare by."""
  if not config.evals:
    raise errors.UserError('evals: the config has none, so the experiment has '
                           'nothing to compare by; add one')


def short(config: ml_collections.ConfigDict,
          total_steps: int) -> ml_collections.ConfigDict:
  """Returns a copy that trains for so many steps, evaluated at the end only."""
  # Warm-up takes at most a fifth, so that most steps are at a useful rate.
  warmup = min(config.schedule.warmup_steps, total_steps // 5)
  return edited(
      config, schedule=dict(warmup_steps=warmup),
      run=dict(total_steps=total_steps, total_epochs=None, eval_every=0))


def evaluate(config: ml_collections.ConfigDict, model: interface.Model,
             params: Mapping[str, Any], image_size: int | tuple[int, int]
             ) -> dict[str, float]:
  """Returns the metrics of a network on the evaluations of a config.

  Args:
    config: its sections `data` and `evals`, and `run.batch_size`, are used.
    model: the network.
    params: its parameters.
    image_size: side in pixels, or (height, width).
  """
  return _scores(dict(data=config.data, evals=config.evals), model, params,
                 image_size, config.run.batch_size)


def few_shot(config: ml_collections.ConfigDict, model: interface.Model,
             params: Mapping[str, Any], image_size: int | tuple[int, int], *,
             train_split: str, test_split: str, shots: Sequence[int],
             seeds: int) -> dict[int, float]:
  """Returns {shots: accuracy} of linear models on the network's features.

  Args:
    config: its section `data` is used.
    model: the network.
    params: its parameters.
    image_size: side in pixels, or (height, width).
    train_split: split that the labelled examples are picked from.
    test_split: split that the linear models are tested on.
    shots: numbers of labelled examples for each class.
    seeds: repetitions with other examples; the accuracies are their means.
  """
  few = dict(train=train_split, test=test_split, crop='resize',
             shots=tuple(shots), seeds=seeds)
  scores = _scores(dict(data=config.data, evals={}, fewshot=dict(few=few)),
                   model, params, image_size, _FEWSHOT_BATCH)
  return {shot: scores[f'eval/few/accuracy_{shot}shot'] for shot in shots}


def edited(config: ml_collections.ConfigDict,
           **sections: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """Returns a copy of a config with changes: {key: value} for each section."""
  copy = config.copy_and_resolve_references()
  for name, settings in sections.items():
    for key, value in settings.items():
      copy[name][key] = value
  return copy


def _scores(sections: Mapping[str, Any], model: interface.Model,
            params: Mapping[str, Any], image_size: int | tuple[int, int],
            batch_size: int) -> dict[str, float]:
  evals, fewshots = suite.open_evaluations(sections, image_size)
  plan = sharding.plan()
  compute = suite.make(plan, model, evals, fewshots, batch_size=batch_size,
                       loss_of=losses.of_labels('softmax'))
  return compute(plan.place(params))
