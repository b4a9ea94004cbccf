"""Counts the updates that a run skips, and says when they are too many.

The training step skips an update that is not finite: parameters and optimizer
state stay as they were. `diverged` has what is done in that rare case.
"""
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import statistics
from typing import Any

from mixer.core.log import log

# A run gives up after so many skipped updates. It first goes back to an earlier
# checkpoint: a fault of the hardware then passes, a divergence does not.
_IN_A_ROW, _IN_A_RUN = 3, 10
# A loss is a spike if it is so many times the median of the last logged ones.
_SPIKE, _RECENT, _FEWEST = 10.0, 20, 5


class Watch:
  """Counts the skipped updates of a run, and reports spikes of the loss.

  Args:
    path: the workdir.
    step: the number of steps done before the first that is watched.
    skipped: those of them whose update was skipped, ascending.
    norms: (state, batch, resident) -> the norms by layer, as a step with
      `by_layer` returns them.

  Attributes:
    skipped: steps so far whose update was skipped, ascending.
    first: the first of the skipped steps in a row that end with the last step;
      the step to come if the last update was made.
  """

  def __init__(self, path: str, *, step: int = 0, skipped: Sequence[int] = (),
               norms: Callable[..., Mapping[str, Any]]):
    self._path, self._norms, self._last = path, norms, step
    self.skipped, self.first = list(skipped), step + 1
    while self.first - 1 in self.skipped:
      self.first -= 1
    self._losses: list[float] = []
    self._row: dict[str, Any] = {}   # of the last skipped step

  @property
  def wary(self) -> bool:
    """Returns whether the run may give up at the next skipped update.

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
    from mixer.training import diverged
    self.skipped.append(step)
    self._row = diverged.skipped(
        self._path, step, metrics, record, len(self.skipped))
    return True

  def check(self, state: Any, batch: Any, resident: Any) -> None:
    """Raises Diverged if too many updates were skipped.

    Args:
      state: after the last step, which this process has waited for.
      batch, resident: of that step.
    """
    if self.exhausted:
      from mixer.training import diverged
      before = state.replace(step=state.step - 1)
      raise diverged.report(self._path, self._row, self.skipped, before,
                            self._norms(before, batch, resident))

  def compare(self, step: int, loss: float) -> None:
    """Reports a logged loss that is far above those before it."""
    recent = self._losses[-_RECENT:]
    usual = statistics.median(recent or [loss])
    if len(recent) >= _FEWEST and loss > _SPIKE * usual:
      log.warning('step %d: the loss jumped to %.4g, from a median of %.4g in '
                  'the last %d logged steps', step, loss, usual, len(recent))
    self._losses = [*recent, loss]
