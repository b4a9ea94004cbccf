"""Stopping in good order: the first signal asks, the second one kills."""
import os
import signal


class Guard:
  """While it is entered, SIGTERM and Ctrl-C only set `requested`."""

  def __init__(self):
    self.requested = None
    self._before = {}

  def __enter__(self):
    for number in (signal.SIGTERM, signal.SIGINT):
      self._before[number] = signal.signal(number, self._ask)
    return self

  def __exit__(self, *exc):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _ask(self, number, frame):
    del frame
    if self.requested:
      signal.signal(number, signal.SIG_DFL)
      os.kill(os.getpid(), number)
    self.requested = signal.Signals(number).name
