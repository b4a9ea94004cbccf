"""Counts updates that were skipped, and ends a run that has too many of them.

The training step skips an update that is not finite: parameters and optimizer
state stay as they were. The host looks at every step, reports what was skipped
in the workdir's nonfinite.jsonl, and gives up after several skipped updates.
"""
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import os
import statistics
from typing import Any

import jax
import numpy as np

from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import files
from mixer.core import processes
from mixer.core import trees
from mixer.core import workdir
from mixer.core.log import log

POLICIES = ('skip', 'stop')
# A run gives up after so many skipped updates, and at first goes back to an
# earlier checkpoint: a fault of the hardware then passes, a divergence does not.
_IN_A_ROW, _IN_A_RUN = 3, 10
# A loss is a spike if it is so many times the median of the last logged ones.
_SPIKE, _RECENT, _FEWEST = 10.0, 20, 5
_SHOWN = 5   # records and layers in a message; the file has all


class Watch:
  """Counts the skipped updates of a run, and reports spikes of the loss.

  Args:
    path: the workdir.
    step: the number of steps done before the first that is watched.
    skipped: those of them whose update was skipped, ascending.
    norms: (state, batch, resident) -> the norms by layer, as a step with
      `by_layer` returns them.
    keep: (step, state) -> None; saves the state before a step that failed.

  Attributes:
    skipped: steps so far whose update was skipped, ascending.
    first: the first of the skipped steps in a row that end with the last step;
      the step to come if the last update was made.
  """

  def __init__(self, path: str, *, step: int = 0, skipped: Sequence[int] = (),
               norms: Callable[[Any, Any, Any], Mapping[str, Any]],
               keep: Callable[[int, Any], None]):
    self._path, self._norms, self._keep = path, norms, keep
    self.skipped, self.first, self._last = list(skipped), step + 1, step
    while self.first - 1 in self.skipped:
      self.first -= 1
    self._losses: list[float] = []
    self._row: dict[str, Any] = {}   # of the last skipped step

  @property
  def wary(self) -> bool:
    """Whether one more skipped update may be one too many.

    The loop then waits for every step before it starts the next.
    """
    return self._last >= self.first or len(self.skipped) >= _IN_A_RUN - 1

  @property
  def exhausted(self) -> bool:
    """Whether the last update was skipped, and was one too many."""
    row = self._last - self.first + 1
    return row >= _IN_A_ROW or (row > 0 and len(self.skipped) >= _IN_A_RUN)

  def look(self, step: int, metrics: Mapping[str, Any], record: Any) -> bool:
    """Returns whether the update of a step was skipped, and reports it if so.

    Args:
      step: the number of steps done; every step has to be shown, in order.
      metrics: of the step. Without 'skipped', nothing is.
      record: int32 [B], the record numbers of its batch.
    """
    self._last = step
    if not int(metrics.get('skipped', 0)):
      self.first = step + 1
      return False
    from jax.experimental import multihost_utils
    self.skipped.append(step)
    numbers = np.asarray(multihost_utils.process_allgather(record, tiled=True))
    self._row = dict(step=step, records=numbers.tolist(), **{
        key: float(metrics[key]) for key in ('loss', 'gradient_norm')})
    log.warning(
        'step %d: loss = %s, gradient_norm = %s: this update is skipped, the '
        '%s of this run (records of the batch: %s)', step, self._row['loss'],
        self._row['gradient_norm'], _ordinal(len(self.skipped)),
        _some(self._row['records']))
    note(self._path, self._row)
    return True

  def check(self, state: Any, batch: Any, resident: Any) -> None:
    """Raises Diverged if too many updates were skipped.

    Args:
      state: after the last step, which this process has waited for.
      batch, resident: of that step.
    """
    if not self.exhausted:
      return
    row = self._row
    step, before = row['step'], state.replace(step=state.step - 1)
    norms = {kind: {name: float(x) for name, x in trees.flatten(tree).items()}
             for kind, tree in jax.device_get(
                 self._norms(before, batch, resident)).items()}
    note(self._path, dict(row, layers={
        name: {kind: norms[kind][name] for kind in norms}
        for name in norms['gradient']}))
    try:
      self._keep(step - 1, before)
    except errors.RunError as e:   # the report is worth more than the state
      log.warning('%s', e)
    raise errors.Diverged(
        f'step {step}: loss = {row["loss"]}, gradient_norm = '
        f'{row["gradient_norm"]}: the run has diverged. Updates were skipped '
        f'at the steps {", ".join(map(str, self.skipped))}; records of the '
        f'last batch: {_some(row["records"])}; {_largest(norms)}. '
        f'{workdir.NONFINITE} in the workdir has all of them, and '
        f'{workdir.DIVERGED}/{step - 1} the state before that step. Earlier '
        'checkpoints are intact; try a lower schedule.learning_rate')

  def compare(self, step: int, loss: float) -> None:
    """Reports a logged loss that is far above those before it."""
    recent = self._losses[-_RECENT:]
    if len(recent) >= _FEWEST and loss > _SPIKE * statistics.median(recent):
      log.warning(
          'step %d: the loss jumped to %.4g, %.3g times the median of the last '
          '%d logged losses (%.4g)', step, loss,
          loss / statistics.median(recent), len(recent),
          statistics.median(recent))
    self._losses = [*recent, loss]


def note(path: str, row: Mapping[str, Any]) -> None:
  """Adds a line to the workdir's nonfinite.jsonl."""
  if processes.first():
    file = os.path.join(path, workdir.NONFINITE)
    files.write(file, (files.read(file) or '') + json.dumps(_plain(row)) + '\n')


def go_back(path: str, checkpoints: checkpoint.Checkpoints,
            watch: Watch) -> None:
  """Sets aside the checkpoints since the updates began to be skipped.

  If there are no earlier ones, the oldest stays: a skipped update changes no
  parameter.

  Args:
    path: the workdir.
    checkpoints: of the workdir, at least one.
    watch: of the run that was given up.
  """
  steps = checkpoints.steps()
  last = max((s for s in steps if s < watch.first), default=steps[0])
  checkpoints.set_aside_after(last, 'skipped')
  # Written last: a run that is killed before this goes back again.
  note(path, dict(step=watch.skipped[-1], went_back_to=last))
  log.warning('going back to the checkpoint of step %d, once', last)


def went_back(path: str) -> bool:
  """Returns whether the run in a workdir has gone back once."""
  text = files.read(os.path.join(path, workdir.NONFINITE)) or ''
  return any('went_back_to' in json.loads(line) for line in text.splitlines())


def _plain(value: Any) -> Any:
  """Returns a value that JSON has; NaN and infinities become strings."""
  if isinstance(value, Mapping):
    return {key: _plain(inner) for key, inner in value.items()}
  finite = not isinstance(value, float) or math.isfinite(value)
  return value if finite else str(value)


def _largest(norms: Mapping[str, Mapping[str, float]]) -> str:
  """Returns the layers with the largest gradients, those not finite first."""
  gradient = norms['gradient']
  wrong = sum(not math.isfinite(x) for x in gradient.values())
  names = sorted(gradient, key=lambda name: -gradient[name] if math.isfinite(
      gradient[name]) else -math.inf)
  found = (f'not finite in {wrong} of {len(gradient)} layers' if wrong else
           'finite in all layers')
  return f'the gradient, computed again, is {found}: ' + ', '.join(
      f'{name} has norm {gradient[name]:.3g} (parameters '
      f'{norms["parameters"][name]:.3g})' for name in names[:_SHOWN])


def _some(records: Sequence[int]) -> str:
  more = len(records) - _SHOWN
  return ', '.join(map(str, records[:_SHOWN])) + (
      f' and {more} more' if more > 0 else '')


def _ordinal(count: int) -> str:
  return f'{count}{ {1: "st", 2: "nd", 3: "rd"}.get(count, "th")}'
