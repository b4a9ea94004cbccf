"""Signals ask a run to stop; a second one kills it."""
import os
import signal

from mixer.training import stop


def test_a_second_signal_kills_unless_it_comes_with_the_first(monkeypatch):
  """A system may signal a launcher and its children, and the launcher then
  passes the signal on, so that a run gets it twice."""
  now, killed = [100.0], []
  monkeypatch.setattr(stop.time, 'monotonic', lambda: now[0])
  with stop.Guard() as guard:
    assert guard.asked(1) is None
    signal.raise_signal(signal.SIGTERM)
    now[0] += 0.5
    signal.raise_signal(signal.SIGTERM)
    assert guard.asked(2) == 'SIGTERM'
    now[0] += 1
    monkeypatch.setattr(stop.os, 'kill', lambda *given: killed.append(given))
    signal.raise_signal(signal.SIGINT)
    assert killed == [(os.getpid(), signal.SIGINT)]


def test_handlers_are_restored_on_exit():
  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  with stop.Guard():
    assert signal.getsignal(signal.SIGTERM) != before[1]
  assert before == [signal.getsignal(n)
                    for n in (signal.SIGINT, signal.SIGTERM)]
