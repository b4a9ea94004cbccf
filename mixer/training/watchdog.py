"""Watches over a run: what takes too long, signals, and skipped updates.

`Watch` reports what a run waits for, `Guard` stops a run on SIGTERM or Ctrl-C
once it has saved, and `Skips` says when too many updates were not finite.
"""
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import faulthandler
import os
import signal
import socket
import statistics
import sys
import threading
import time
from types import TracebackType
from typing import Any

from mixer.core import errors
from mixer.core import processes
from mixer.core.log import log

# What a run can wait for, as `Watch.phase` takes it.
OPENING, RESTORING = 'opening the data', 'restoring a checkpoint'
READING, COMPILING = 'reading a batch', 'compiling the first step'
COMPUTING, EVALUATING, SAVING = 'computing a step', 'evaluating', 'saving'
SECONDS = 300.0   # how long a batch of mixer.evaluate or predict may take

_TICK_SECONDS = 5.0   # between two looks at the phase, at most
Phase = Callable[[str, int], None]   # as `Watch.phase`
# A run gives up after so many skipped updates. It first goes back to an earlier
# checkpoint: a fault of the hardware then passes, a divergence does not.
_IN_A_ROW, _IN_A_RUN = 3, 10
# A loss is a spike if it is so many times the median of the last logged ones.
_SPIKE, _RECENT, _FEWEST = 10.0, 20, 5
# A launcher's process group often gets the system's signal and the launcher's
# copy of it. Signals that arrive within this many seconds count as one.
_AT_ONCE_SECONDS = 1.0

# The signal that came too late to stop the last run of this process, if any.
_late: str | None = None


class Watch:
  """Reports a phase that takes too long, with the stacks of all threads.

  While it is entered, a thread looks at the phase a few times in `seconds`. It
  logs one line after `seconds`, and again after two, four, eight times as long,
  and writes the stacks to standard error each time.

  Args:
    seconds: how long a phase may take; 0 means that none is reported.
    unit: what `phase` counts.
    key: sets `seconds`, for the message; '' if nothing does.
  """

  def __init__(self, seconds: float, unit: str = 'step',
               key: str = 'run.stall_seconds'):
    self._seconds, self._unit = seconds, unit
    self._key = f' ({key}={seconds:g})' if key else ''
    self._phase = 'starting', 0
    self._end = threading.Event()
    self._thread = threading.Thread(
        target=self._watch, name='watchdog', daemon=True)

  def __enter__(self) -> 'Watch':
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, kind: type[BaseException] | None,
               error: BaseException | None,
               traceback: TracebackType | None) -> None:
    self._end.set()
    if self._seconds:
      self._thread.join()

  def phase(self, what: str, step: int = 0) -> None:
    """Notes that a phase begins, and so that the one before it is over.

    Args:
      what: names the phase.
      step: number of updates, batches or images done.
    """
    self._phase = what, step   # a new object even if the values are the same

  def _watch(self) -> None:
    seen, began, limit = self._phase, time.monotonic(), self._seconds
    while not self._end.wait(min(self._seconds / 10, _TICK_SECONDS)):
      phase, now = self._phase, time.monotonic()
      if phase is not seen:
        seen, began, limit = phase, now, self._seconds
      elif now - began >= limit:
        limit *= 2
        self._report(*phase, now - began)

  def _report(self, what: str, step: int, seconds: float) -> None:
    where = ''
    if processes.several():
      import jax
      where = (f' in process {jax.process_index()} of {jax.process_count()} on '
               f'{socket.gethostname()}')
    log.warning(
        'stalled  %s has taken %s s so far%s, after %s %s%s; '
        'standard error has the stacks of all threads',
        what, f'{seconds:,.3g}' if seconds < 100 else f'{seconds:,.0f}', where,
        self._unit, f'{step:,}', self._key)
    if sys.__stderr__ is not None:
      sys.__stderr__.flush()
      faulthandler.dump_traceback(sys.__stderr__)


def check_last_run() -> None:
  """Raises Stopped if a signal came too late to stop this process's last run.

  An experiment asks this before it starts another run. With several processes
  it does nothing, since they could not agree.
  """
  if _late:
    raise errors.Stopped(f'{_late} came at the end of a run, which is '
                         'finished; give the same command again to go on')


class Guard:
  """While entered, SIGTERM and Ctrl-C stop the run after the current step.

  A second signal kills the process at once, even while it compiles. Python runs
  a signal's handler only between two of its own instructions, and a compilation
  may take minutes without one. So a thread waits for the signals.

  With several processes, any of them may get the signal, and all must stop
  after the same step. JAX's own SIGTERM handler lets them agree on it. So
  Ctrl-C is passed on as a SIGTERM, and SIGTERM is left to JAX, which takes any
  number of them as one request: only a second Ctrl-C kills.
  """

  def __init__(self) -> None:
    import jax
    self._several = jax.process_count() > 1
    self._asked: str | None = None
    self._when = 0.0
    self._before: dict[signal.Signals, Any] = {}

  def __enter__(self) -> 'Guard':
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    self._woken = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    numbers = (signal.SIGINT,) if self._several else (
        signal.SIGINT, signal.SIGTERM)
    for number in numbers:
      # What the thread does suffices, but Python writes only signals that have
      # a handler to the pipe.
      self._before[number] = signal.signal(number, lambda number, frame: None)
    return self

  def __exit__(self, kind: type[BaseException] | None,
               error: BaseException | None,
               traceback: TracebackType | None) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(self._woken)
    os.close(self._write)   # ends the thread
    self._thread.join()
    os.close(self._read)
    global _late
    _late = self._asked if kind is None and not self._several else None

  def asked(self, step: int) -> str | None:
    """Returns the name of the signal that asks to stop now, or None.

    With several processes, each of them must call this after every step.

    Args:
      step: number of updates done.
    """
    if not self._several:
      return self._asked
    from jax.experimental import multihost_utils
    if multihost_utils.reached_preemption_sync_point(step):
      return self._asked or 'SIGTERM'
    return None

  def check(self) -> None:
    """Raises what ends a run that has nothing to save yet, after a signal.

    With several processes it does nothing: they agree only after a step.

    Raises:
      KeyboardInterrupt: after Ctrl-C.
      Killed: after SIGTERM.
    """
    if self._several or not self._asked:
      return
    if self._asked == 'SIGINT':
      raise KeyboardInterrupt
    raise errors.Killed(f'{self._asked} before the first step')

  def _listen(self) -> None:
    """Handles the signals that Python writes to the pipe, until it closes."""
    while received := os.read(self._read, 1):
      self._ask(received[0])

  def _ask(self, number: int) -> None:
    now = time.monotonic()
    if self._asked and now - self._when < _AT_ONCE_SECONDS:
      return
    if self._asked:
      os._exit(128 + number)   # as a shell reports a process that it killed
    self._asked, self._when = signal.Signals(number).name, now
    # Not the log, which would write into the bar of a terminal.
    print(f'{self._asked} came: the run stops after this step (the first one '
          'of a start compiles)', file=sys.stderr, flush=True)
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)


class Skips:
  """Counts the skipped updates of a run, and reports spikes of the loss.

  The training step skips an update that is not finite: parameters and optimizer
  state stay as they were. `diverged` has what is done in that rare case.

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
    """Returns whether the last update was skipped, and was one too many."""
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
