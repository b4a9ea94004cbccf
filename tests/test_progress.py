"""What a user sees of a run: a bar on a terminal, lines elsewhere."""
import io

import pytest
from rich import console

from mixer.training import progress

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


def test_a_terminal_shows_a_bar_and_lines_above_it():
  out = Terminal()
  screen = console.Console(file=out, force_terminal=True, width=80,
                           color_system=None)
  with progress.Progress(0, 10, screen) as bar:
    bar.advance(5)
    bar.metrics(5, METRICS)
    bar.say('evaluated at step 5')
  shown = out.getvalue()
  assert ('5/10 loss 1.500  accuracy 25%  1,234 images/s  40% of peak --:-- '
          'left') in shown
  assert 'evaluated at step 5\n' in shown


@pytest.mark.parametrize('seconds, text', [
    (0.4, '0:00:00'), (59.6, '0:01:00'), (3661, '1:01:01'),
    (360_000, '100:00:00')])
def test_durations_are_hours_minutes_and_seconds(seconds, text):
  assert progress.duration(seconds) == text
