"""Stopping in good order: the first signal asks, the second one kills (of
several processes the second Ctrl-C; SIGTERM is JAX's, and only asks)."""
import os
import signal
import time

import jax

_AT_ONCE = 1.0   # seconds in which a system and a launcher both tell to stop


class Guard:
  """While it is entered, SIGTERM and Ctrl-C only ask the run to stop.

  Of several processes any may get the signal: all then stop after one and the
  same step, which JAX's own handler of SIGTERM agrees on. So Ctrl-C is passed
  on as a SIGTERM, and SIGTERM is left to JAX.
  """

  def __init__(self):
    self._several = jax.process_count() > 1
    self._asked, self._when = None, 0.0
    self._before = {}

  def __enter__(self):
    numbers = (signal.SIGINT,) if self._several else (
        signal.SIGINT, signal.SIGTERM)
    for number in numbers:
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *exc):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def asked(self, step):
    """The name of the signal that asks to stop after `step` updates, or None.
    Of several processes all must ask after every step."""
    if not self._several:
      return self._asked
    from jax.experimental import multihost_utils
    if multihost_utils.reached_preemption_sync_point(step):
      return self._asked or 'SIGTERM'
    return None

  def _ask(self, number, frame):
    del frame
    now = time.monotonic()
    if self._asked and now - self._when < _AT_ONCE:
      return
    if self._asked:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
    self._asked, self._when = signal.Signals(number).name, now
    if self._several:
      os.kill(os.getpid(), signal.SIGTERM)
