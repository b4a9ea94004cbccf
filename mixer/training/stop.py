"""Stops a run on SIGTERM or Ctrl-C after the current step, once it has saved.

A second signal kills the process at once. With several processes only a second
Ctrl-C does: there SIGTERM belongs to JAX, which takes any number of them as one
request.
"""
import os
import signal
import time
from types import FrameType
from types import TracebackType
from typing import Any

import jax

# A launcher's process group often gets the system's signal and the launcher's
# copy of it. Signals that arrive within this many seconds count as one.
_AT_ONCE_SECONDS = 1.0


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
    numbers = (signal.SIGINT,) if self._several else (
        signal.SIGINT, signal.SIGTERM)
    for number in numbers:
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, kind: type[BaseException] | None,
               error: BaseException | None,
               traceback: TracebackType | None) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

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

  def _ask(self, number: int, frame: FrameType | None) -> None:
    del frame
    now = time.monotonic()
    if self._asked and now - self._when < _AT_ONCE_SECONDS:
      return
    if self._asked:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
    self._asked, self._when = signal.Signals(number).name, now
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)
