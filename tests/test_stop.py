"""Signals ask a run to stop; a second one kills it."""
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mixer.training import watchdog

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ('--config=configs/digits.py', '--config.run.batch_size=16',
         '--config.model.hidden_dim=8')


def wait_for(condition):
  while not condition():
    time.sleep(0.01)


def test_a_second_signal_kills_unless_it_comes_with_the_first(monkeypatch):
  """A system may signal a launcher and its children, and the launcher then
  passes the signal on, so that a run gets it twice."""
  now, killed, heard = [100.0], [], []
  monkeypatch.setattr(watchdog.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(watchdog.os, '_exit', killed.append)
  with watchdog.Guard() as guard:
    hear = guard._ask
    monkeypatch.setattr(
        guard, '_ask', lambda number: hear(number) or heard.append(number))
    assert guard.asked(1) is None
    for count, seconds in enumerate((0.5, 1), 1):
      signal.raise_signal(signal.SIGTERM)
      wait_for(lambda: len(heard) == count)
      now[0] += seconds
    assert guard.asked(2) == 'SIGTERM' and not killed
    signal.raise_signal(signal.SIGINT)
    wait_for(lambda: len(heard) == 3)
    assert killed == [128 + signal.SIGINT]


@pytest.mark.parametrize('number, delay, codes', [
    pytest.param(signal.SIGINT, 0, [130], marks=pytest.mark.slow),
    (signal.SIGTERM, 0.2, [143]),
    pytest.param(signal.SIGINT, 1.5, [130, 42], marks=pytest.mark.slow)])
def test_a_signal_during_compilation_ends_in_order(
    number, delay, codes, tmp_path):
  """It is said at once, and heeded before the first step or after it. The exit
  code is never that of a crash, after which a launcher starts the run again."""
  run = subprocess.Popen(
      [sys.executable, '-u', '-m', 'mixer.main', '--noreport', *FLAGS,
       f'--workdir={tmp_path}'], cwd=ROOT, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT)
  wait_for(lambda: run.stdout.readline().startswith('workdir'))
  time.sleep(delay)
  run.send_signal(number)
  said, _ = run.communicate(timeout=300)
  assert run.returncode in codes, said
  assert f'{number.name} came: the run stops' in said
  assert 'Traceback' not in said and '\nstopped: ' in said


def test_handlers_are_restored_on_exit():
  before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
  with watchdog.Guard():
    assert signal.getsignal(signal.SIGTERM) != before[1]
  assert before == [signal.getsignal(n)
                    for n in (signal.SIGINT, signal.SIGTERM)]
