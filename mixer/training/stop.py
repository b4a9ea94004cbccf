"""Stops a run on SIGTERM or Ctrl-C after the current step, once it has saved.

A second signal kills the process at once. With several processes only a second
Ctrl-C does: there SIGTERM belongs to JAX, which takes any number of them as one
request.

Python runs a signal's handler only between two of its own instructions, and a
compilation may take minutes without one. So a thread waits for the signals: it
says at once that a signal has come, and a second one kills even a compilation.
"""
import os
import signal
import sys
import threading
import time
from types import TracebackType
from typing import Any

import jax

from mixer.core import errors

# A launcher's process group often gets the system's signal and the launcher's
# copy of it. Signals that arrive within this many seconds count as one.
_AT_ONCE_SECONDS = 1.0

# The signal that came too late to stop the last run of this process, if any.
_late: str | None = None


def check_last_run() -> None:
  """Raises Stopped if a signal came too late to stop this process's last run.

  An experiment asks this before it starts another run. With several processes
  it does nothing, since they could not agree.
  """
  if _late:
    raise errors.Stopped(f'{_late} came at the end of a run, which is '
                         'finished; give the same command again to go on')


class Guard:
  """While entered, SIGTERM and Ctrl-C only ask the run to stop.

  With several processes, any of them may get the signal, and all must stop
  after the same step. JAX's own SIGTERM handler lets them agree on it. So
  Ctrl-C is passed on as a SIGTERM, and SIGTERM is left to JAX.
  """

  def __init__(self) -> None:
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
          'compiles)', file=sys.stderr, flush=True)
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)
