"""Restores the state of an earlier run, if the new one may go on from it.

The new one may if its config, its data and its classes are those of the run in
the workdir, but for keys that do not change what is learned.
"""
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import os
import shlex
from typing import Any

from mixer.core import checkpoint
from mixer.core import checkpoint_reader
from mixer.core import errors
from mixer.core import files
from mixer.core import processes
from mixer.core import workdir
from mixer.core.log import log
from mixer.models import grid
from mixer.models import interface
from mixer.training import loop
from mixer.training import metrics_file
from mixer.training import step
from mixer.training import watchdog
from mixer.training.settings import Settings

_SHOWN = 5   # classes that an error names
# Keys, by their beginning, that may change when a run is resumed: they say
# where and how it computes and how it is evaluated, but not what it learns.
_MAY_CHANGE = ('data.dir', 'data.max_bad_fraction', 'run.log_every', 'evals',
               'fewshot', 'checkpoint', 'sharding', 'model.remat', 'model.scan',
               'run.patience', 'run.micro_batches', 'run.nonfinite',
               'run.heartbeat_timeout_seconds', 'run.stall_seconds')
_LENGTH = ('run.total_steps', 'run.total_epochs')


def agree(path: files.Path, config: Mapping[str, Any]) -> None:
  """Writes a config, unless `check_config` refuses it.

  Args:
    path: the workdir.
    config: nested dict, fit for JSON.

  Raises:
    UserError: as `check_config` raises it.
  """
  check_config(path, config)
  workdir.write_json(os.path.join(path, workdir.CONFIG), config)


def check_config(path: files.Path, config: Mapping[str, Any]) -> None:
  """Checks that a workdir holds no config, or the same; writes nothing.

  Args:
    path: the workdir.
    config: nested dict, fit for JSON.

  Raises:
    UserError: if a key differs that must not; names each with both values.
  """
  if not processes.first():
    return
  new, old = json.loads(json.dumps(config)), workdir.config_of(path)
  if old is not None:
    was, now = workdir.flat(old), workdir.flat(new)
    made = workdir.provenance(path) or {}
    free = _MAY_CHANGE + (_LENGTH if _any_length(
        was, now, made.get('data', {}).get('examples')) else ())
    differ = [k for k in sorted(was.keys() | now.keys())
              if was.get(k) != now.get(k) and not k.startswith(free)]
    if differ:
      listed = '; '.join(f'{k} was {_shown(was.get(k))}, is '
                         f'{_shown(now.get(k))}' for k in differ)
      raise errors.UserError(
          f'--workdir: {str(path)!r} holds a run of another config: {listed}. '
          + (_train_on(path, now) if set(differ) <= set(_LENGTH) else
             'Give the same config to resume it, or another --workdir'))


def as_trained(model: interface.Model, path: str) -> interface.Model:
  """Returns the model with the settings that it took over from weights.

  A resumed run does not need those weights, which may be gone, but the model
  must be the same.

  Args:
    model: as the config describes it.
    path: the workdir.
  """
  kept = (workdir.card_of(path) or {}).get('model', {})
  taken = {key: kept[key] for key in (
      *model.WIDTHS, *model.TIED_TO_SIZE, *model.TAKEN_FROM_WEIGHTS)
           if key in kept}
  patch = grid.pair(kept.get('patch_size', model.patch_size))
  taken['patch_size'] = patch if patch[0] != patch[1] else patch[0]
  return model.clone(**taken)


def restored(path: str, checkpoints: checkpoint.Checkpoints, shapes: step.State,
             card: Mapping[str, Any], fingerprint: Mapping[str, Any],
             total_steps: int | None = None) -> (
                 tuple[step.State, list[int]] | None):
  """Returns the newest saved state and the steps that were skipped before it.

  Args:
    path: the workdir.
    checkpoints: of the workdir.
    shapes: State of jax.ShapeDtypeStruct, with shardings.
    card: of the network, see `models.catalog`. Its classes must be the saved
      ones.
    fingerprint: of the data and their order, which must be the saved one.
    total_steps: length of the run; None for any.

  Returns:
    (state, steps whose update was skipped), or None if nothing was saved.

  Raises:
    UserError: if the data differ from those of the saved run, or it has done
      more than `total_steps`.
    RunError: if there are checkpoints and none can be read.
  """
  # The classes come first: with another number of them, no checkpoint fits.
  _check_classes(workdir.card_of(path) or {}, card)
  found = checkpoint_reader.restore(
      checkpoints, shapes.params, shapes.rest)
  if found is None:
    return None
  params, rest, meta = found
  differ = [f'{key} was {meta["data"].get(key)}, is {fingerprint.get(key)}'
            for key in dict.fromkeys((*meta['data'], *fingerprint))
            if meta['data'].get(key) != fingerprint.get(key)]
  if differ:
    raise errors.UserError(
        'data: the run in the workdir was trained on other data, or in another '
        f'order: {"; ".join(differ)}; resume it with the same data, all files '
        'of its folder or manifest as they were, or choose another --workdir')
  done = int(rest['step'])
  if total_steps is not None and done > total_steps:
    raise errors.UserError(
        f'run.total_steps: {total_steps} (or as many by run.total_epochs), but '
        f'the run in the workdir has done {done} steps; give at least {done}')
  checkpoints.set_aside_after(done)
  return step.State(params=params, **rest), meta.get('skipped', [])


def make_up(path: str, checkpoints: checkpoint.Checkpoints, state: step.State,
            evaluate: Callable[[step.State], Mapping[str, float]],
            total_steps: int, settings: Settings, stall: watchdog.Watch
            ) -> None:
  """Evaluates a restored state if a stop prevented its evaluation.

  The metrics and the best checkpoint are then those of a run that was never
  stopped. It must be called before the run's `metrics_file.Writer` is made.

  Args:
    path: the workdir.
    checkpoints: of the workdir; the newest one holds `state`.
    state: as `restored` returned it.
    evaluate: state -> {metric: number}.
    total_steps: length of the run.
    settings: of the config's `run` section.
    stall: is told that the run evaluates.
  """
  done, rows = int(state.step), metrics_file.read(path)
  own = [row for row in rows if row['step'] == done] or [dict(step=done)]
  missing = not any(key.startswith('eval/') for row in own for key in row)
  due = lambda every: loop.due(done, every, total_steps)
  if done >= total_steps or not processes.of_first(missing) or not (
      due(settings.eval_every) or checkpoints.best and due(checkpoints.every)):
    return
  stall.phase(watchdog.EVALUATING, done)
  scores = evaluate(state)
  log.info('evaluated at step %s, where the run resumes, because that was due '
           'and is not in %s: %s', f'{done:,}', workdir.METRICS,
           loop.accuracies(scores))
  if checkpoints.best:
    _keep_scores(checkpoints, done, scores)
  if not processes.first():
    return
  # The line of metrics comes last: without it, the next start evaluates again.
  plain = {key: metrics_file.plain(value) for key, value in scores.items()}
  lines = [row for row in rows if row['step'] != done] + [{**own[-1], **plain}]
  files.write(os.path.join(path, workdir.METRICS), ''.join(
      json.dumps(row) + '\n' for row in sorted(
          lines, key=lambda row: row['step'])))
  if board := metrics_file.Board.open(path):
    board.write(done, scores)
    board.close()


def since_best(path: str, metric: str | None, last: int) -> int:
  """Returns how many evaluations came after the one with the highest value.

  All processes must call it; process 0 reads.

  Args:
    path: the workdir.
    metric: its key in the lines; None gives 0.
    last: the last step that counts.
  """
  if metric is None:
    return 0
  rows = metrics_file.read(path) if processes.first() else ()
  values = [value if math.isfinite(value := float(row[metric])) else -math.inf
            for row in rows if metric in row and row['step'] <= last]
  best = values.index(max(values)) + 1 if values else 0
  return processes.of_first(len(values) - best)


def _keep_scores(checkpoints: checkpoint.Checkpoints, done: int,
                 scores: Mapping[str, float]) -> None:
  """Stores metrics of a saved step where Orbax keeps them."""
  folder = os.path.join(checkpoints.directory, str(done), 'metrics')
  if processes.first():
    if not files.is_remote(folder):
      os.makedirs(folder, exist_ok=True)
    files.write(os.path.join(folder, 'metrics'), json.dumps(dict(scores)))
  checkpoints.set_aside_after(done)   # reads the metrics of all steps again


def _any_length(was: Mapping[str, Any], now: Mapping[str, Any],
                examples: int | None) -> bool:
  """Returns whether the learning rate by step is the same for any length.

  A warm-up that is not shorter than the run is cut, see `optimizers.schedule`.

  Args:
    was, now: as `workdir.flat` returns them.
    examples: of the training split; None if that is not known.
  """
  def steps(flat):
    return flat.get('run.total_steps') or (
        flat.get('run.total_epochs', 0) * (examples or 0)
        / flat['run.batch_size'])
  warmup = now.get('schedule.warmup_steps', 0)
  return now.get('schedule.decay') == 'constant' and (
      not warmup or all(steps(each) >= warmup + 1 for each in (was, now)))


def _train_on(path: files.Path, now: Mapping[str, Any]) -> str:
  """Returns how to train further a run whose length cannot change."""
  flags = f'--workdir=NEW --config.start.weights={shlex.quote(str(path))}'
  if now.get('start.dont_load'):
    flags += ' --config.start.dont_load='
  return (
      'Its learning rate depends on the length (schedule.decay='
      f'{now.get("schedule.decay")}, schedule.warmup_steps='
      f'{now.get("schedule.warmup_steps", 0)}), so a run of another length is '
      f'another run. To train on from its weights, add {flags} to the command; '
      'the length is then that of the new run alone')


def _shown(value: object) -> str:
  return 'unset' if value is None else repr(value)


def _check_classes(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
  """Raises a UserError if two cards are of networks with other classes."""
  was, now = (card.get('class_names') or () for card in (old, new))
  counts = [card.get('model', {}).get('num_classes') for card in (old, new)]
  if not old or (list(was) == list(now) and counts[0] == counts[1]):
    return
  gone = [name for name in was if name not in set(now)]
  come = [name for name in now if name not in set(was)]
  if gone and len(gone) == len(come):
    what = 'renamed: ' + _listed(f'{a!r} is gone and {b!r} is new'
                                 for a, b in zip(gone, come))
  elif gone or come:
    what = '; '.join(f'{word}: {_listed(map(repr, names))}' for word, names in (
        ('classes that are gone', gone), ('new classes', come)) if names)
  elif list(was) != list(now):
    what = 'the same classes in another order'
  else:
    what = f'{counts[0]} classes were trained, and there are {counts[1]}'
  raise errors.UserError(
      f'data: the run in the workdir was trained on other classes ({what}); '
      'resume it with the classes that it had, or choose another --workdir')


def _listed(names: Any) -> str:
  texts: Sequence[str] = list(names)
  more = len(texts) - _SHOWN
  return ', '.join(texts[:_SHOWN]) + (f' and {more} more' if more > 0 else '')
