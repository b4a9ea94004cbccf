"""What a user sees of a run: a bar on a terminal, lines elsewhere."""
import io
import logging
import re
import sys

import pytest
from rich import console

from mixer.training import progress
from mixer.training import watchdog

METRICS = {'train/loss': 1.5, 'train/accuracy': 0.25,
           'train/images_per_second': 1234.5, 'train/utilisation': 0.4}


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.fixture
def clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  return now


def test_lines_come_every_few_seconds_and_at_the_end(clock, caplog):
  caplog.set_level('INFO', 'mixer')
  screen = console.Console(file=io.StringIO())
  with progress.Progress(0, 1000, screen) as bar:
    for step in range(1, 1001):
      clock[0] += 0.125
      bar.advance(step)
      if step % 10 == 0:
        bar.metrics(step, METRICS)
  # The first line is that of step 10; then one every 5 seconds, or 40 steps.
  steps = [message.split()[1] for message in caplog.messages]
  assert steps[:3] == ['10/1,000', '50/1,000', '90/1,000']
  assert steps[-1] == '1,000/1,000' and len(steps) == 26
  assert caplog.messages[0] == (
      'step 10/1,000  loss 1.500  accuracy 25%  1,234 images/s  40% of peak '
      'FLOP/s  0:02:04 left')


def test_the_first_logged_step_has_no_speed(clock, caplog):
  caplog.set_level('INFO', 'mixer')
  bar = progress.Progress(0, 10, console.Console(file=io.StringIO()))
  bar.advance(1)
  bar.metrics(1, {'train/loss': 1.5, 'train/accuracy': 0.25})
  assert caplog.messages == [
      'step 1/10  loss 1.500  accuracy 25%  0:00:00 left']


@pytest.fixture
def bar(clock):
  """A bar on a terminal of 80 columns, and what it shows last."""
  out = Terminal()
  screen = console.Console(file=out, force_terminal=True, width=80,
                           color_system=None)
  with progress.Progress(0, 100_000, screen) as shown:
    def last():
      out.seek(0)
      out.truncate()
      shown._bar.refresh()
      return re.sub(r'\x1b\[[\d?]*\w', '', out.getvalue()).strip('\r')
    yield shown, last


def test_the_bar_says_what_the_run_waits_for_and_for_how_long(bar, clock):
  """Compiling, evaluating and saving each show themselves and do not stand
  still; a batch that comes late does too."""
  shown, last = bar
  shown.phase(watchdog.COMPILING)
  clock[0] += 12
  assert last().endswith(' 0/100,000 compiling the first step 0:00:12')
  shown.advance(1)
  shown.phase(watchdog.COMPUTING)
  assert last().rstrip().endswith(' 1/100,000 training')
  for what in (watchdog.EVALUATING, watchdog.SAVING):
    shown.phase(what)
    clock[0] += 75
    assert last().endswith(f' 1/100,000 {what} 0:01:15')
  shown.phase(watchdog.READING)
  assert 'training' in last()
  clock[0] += 3
  assert last().endswith('reading a batch 0:00:03')


def test_the_bar_leaves_out_metrics_but_never_the_time_that_is_left(bar, clock):
  """At 80 columns there is no room for all of them at a late step."""
  shown, last = bar
  shown.phase(watchdog.COMPUTING)
  shown.advance(1)
  clock[0] += 98
  shown.advance(50)
  shown.metrics(50, METRICS)
  assert last().endswith(
      ' 50/100,000 loss 1.500  accuracy 25%  1,234 images/s  55:31:40 left')
  shown.advance(99_999)
  assert len(last()) == 80 and last().endswith('left')
  assert 'loss 1.500  accuracy 25%' in last()


def test_lines_stand_above_the_bar(bar):
  shown, last = bar
  shown.say('evaluated at step 5')
  assert 'evaluated at step 5\n' in shown._screen.file.getvalue()


def test_log_lines_stand_above_the_bar_too(monkeypatch):
  """They would begin in the middle of its line, and be torn by it."""
  out, lines = Terminal(), logging.StreamHandler()
  monkeypatch.setattr(sys, 'stdout', out)
  lines.setStream(out)
  monkeypatch.setattr(progress.log, 'handlers', [lines])
  screen = console.Console(file=out, force_terminal=True, width=80,
                           color_system=None)
  with progress.Progress(0, 10, screen):
    progress.log.warning('a file is bad')
  progress.log.warning('after it')
  assert sys.stdout is out is lines.stream
  shown = out.getvalue()
  assert re.search(r'\x1b\[2Ka file is bad *\n', shown)   # on an erased line
  assert shown.endswith('after it\n')


@pytest.mark.parametrize('seconds, text', [
    (0.4, '0:00:00'), (59.6, '0:01:00'), (3661, '1:01:01'),
    (360_000, '100:00:00')])
def test_durations_are_hours_minutes_and_seconds(seconds, text):
  assert progress.duration(seconds) == text
