"""Reports what a run waits for if that takes too long."""
from collections.abc import Callable
import faulthandler
import socket
import sys
import threading
import time
from types import TracebackType

from mixer.core import processes
from mixer.core.log import log

# What a run can wait for, as `Watch.phase` takes it.
OPENING, RESTORING = 'opening the data', 'restoring a checkpoint'
READING, COMPILING = 'reading a batch', 'compiling the first step'
COMPUTING, EVALUATING, SAVING = 'computing a step', 'evaluating', 'saving'
SECONDS = 300.0   # how long a batch of mixer.evaluate or predict may take

_TICK_SECONDS = 5.0   # between two looks at the phase, at most
Phase = Callable[[str, int], None]   # as `Watch.phase`


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
