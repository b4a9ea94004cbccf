"""Reports updates that were skipped, and takes a run back to a checkpoint.

Only a run with an update that is not finite loads this module.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import json
import math
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import files
from mixer.core import processes
from mixer.core import trees
from mixer.core import workdir
from mixer.core.log import log
from mixer.training import step as steps

_SHOWN = 5   # records and layers in a message; the file has all


def skipped(path: str, step: int, metrics: Mapping[str, Any], record: Any,
            count: int) -> dict[str, Any]:
  """Reports a skipped update; returns its line of nonfinite.jsonl.

  Args:
    path: the workdir.
    step: the number of steps done.
    metrics: of the step.
    record: int32 [B], the record numbers of its batch.
    count: how many updates the run has skipped.
  """
  numbers = np.asarray(multihost_utils.process_allgather(record, tiled=True))
  row = dict(step=step, records=numbers.tolist(), **{
      key: float(metrics[key]) for key in ('loss', 'gradient_norm')})
  log.warning('%s: this update is skipped, number %d of this run; records of '
              'the batch: %s', _values(row), count, _some(row['records']))
  _note(path, row)
  return row


def report(path: str, row: Mapping[str, Any], skipped: Sequence[int],
           before: steps.State, by_layer: Mapping[str, Any]) -> errors.Diverged:
  """Keeps what there is to see of a step that ends a run; returns the error.

  Args:
    path: the workdir.
    row: of the step, as `skipped` returned it.
    skipped: all steps whose update was skipped.
    before: the state before the step.
    by_layer: norms of parameters and gradients, as a step with `by_layer`
      returns them.
  """
  norms = {kind: {name: float(x) for name, x in trees.flatten(tree).items()}
           for kind, tree in jax.device_get(by_layer).items()}
  _note(path, dict(step=row['step'], layers={
      name: {kind: norms[kind][name] for kind in norms}
      for name in norms['gradient']}))
  done = row['step'] - 1
  try:
    with contextlib.closing(checkpoint.Checkpoints(
        os.path.join(path, workdir.DIVERGED), keep=1)) as aside:
      aside.save(done, before.params, before.rest, {})
      aside.wait()
  except errors.RunError as e:   # the report is worth more than the state
    log.warning('%s', e)
  return errors.Diverged(
      f'{_values(row)}: the run has diverged. Updates were skipped at the '
      f'steps {", ".join(map(str, skipped))}; records of the last batch: '
      f'{_some(row["records"])}; {_largest(norms)}. {workdir.NONFINITE} in the '
      f'workdir has all of them, and {workdir.DIVERGED}/{done} the state '
      'before that step. Earlier checkpoints are intact; try a lower '
      'schedule.learning_rate')


def can_go_back(path: str, checkpoints: checkpoint.Checkpoints) -> bool:
  """Returns whether a run has a checkpoint, and has not gone back before."""
  text = files.read(os.path.join(path, workdir.NONFINITE))
  return bool(checkpoints.steps()) and not any(
      'went_back_to' in line for line in files.json_lines(text))


def go_back(path: str, checkpoints: checkpoint.Checkpoints, last: int,
            first: int) -> None:
  """Sets aside the checkpoints since the updates began to be skipped.

  If there are no earlier ones, the oldest stays: a skipped update changes no
  parameter.

  Args:
    path: the workdir.
    checkpoints: of the workdir, at least one.
    last: the last step of the run.
    first: the first of the skipped steps in a row before it.
  """
  saved = checkpoints.steps()
  to = max((step for step in saved if step < first), default=saved[0])
  checkpoints.set_aside_after(to, 'skipped')
  # Written last: a run that is killed before this goes back again.
  _note(path, dict(step=last, went_back_to=to))
  log.warning('going back to the checkpoint of step %d, once', to)


def _note(path: str, row: Mapping[str, Any]) -> None:
  """Adds a line to the workdir's nonfinite.jsonl."""
  if processes.first():
    file = os.path.join(path, workdir.NONFINITE)
    files.write(file, (files.read(file) or '') + json.dumps(_plain(row)) + '\n')


def _plain(value: Any) -> Any:
  """Returns a value that JSON has; NaN and infinities become strings."""
  if isinstance(value, Mapping):
    return {key: _plain(inner) for key, inner in value.items()}
  finite = not isinstance(value, float) or math.isfinite(value)
  return value if finite else str(value)


def _values(row: Mapping[str, Any]) -> str:
  return 'step {step}: loss = {loss}, gradient_norm = {gradient_norm}'.format(
      **row)


def _largest(norms: Mapping[str, Mapping[str, float]]) -> str:
  """Returns the layers with the largest gradients, those not finite first."""
  gradient = norms['gradient']
  wrong = [name for name, x in gradient.items() if not math.isfinite(x)]
  names = wrong or sorted(gradient, key=lambda name: -gradient[name])
  return (f'the gradient, computed again, is not finite in {len(wrong)} of '
          f'{len(gradient)} layers: ') + ', '.join(
              f'{name} has norm {gradient[name]:.3g} (parameters '
              f'{norms["parameters"][name]:.3g})' for name in names[:_SHOWN])


def _some(records: Sequence[int]) -> str:
  more = len(records) - _SHOWN
  return ', '.join(map(str, records[:_SHOWN])) + (
      f' and {more} more' if more > 0 else '')
