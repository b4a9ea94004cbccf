"""What a person sees: a bar with an ETA on a terminal, plain lines elsewhere.
"""
import time

from rich import console as consoles
from rich import progress as bars

from mixer.core.log import log


class Progress:
  """Follows the steps of a run from `first` to `total`."""

  def __init__(self, first, total, console=None):
    self._console = console or consoles.Console()
    self._total, self._first = total, first
    self._began, self._said = None, 0.0
    self._bar = None
    # Jupyter forces colours through a pipe, where a moving bar is noise.
    moves = self._console.is_terminal and self._console.file.isatty()
    if moves and first < total:
      self._bar = bars.Progress(
          bars.TextColumn('[bold]{task.description}'), bars.BarColumn(),
          bars.TextColumn('{task.completed:,}/{task.total:,}'),
          bars.TextColumn('[cyan]{task.fields[note]}'),
          bars.TextColumn('ETA'), bars.TimeRemainingColumn(),
          console=self._console, refresh_per_second=4)
      self._task = self._bar.add_task(
          'training', total=total, completed=first, note='compiling')

  def __enter__(self):
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *exc):
    if self._bar:
      self._bar.stop()

  def advance(self, step):
    """Called after every step; time counts from the first, which compiles."""
    if self._began is None:
      self._began, self._first = time.monotonic(), step
    if self._bar:
      self._bar.update(self._task, completed=step)

  def metrics(self, step, metrics):
    """Called with the training metrics of a step that is logged."""
    note = (f'loss {metrics["train/loss"]:.4f}  '
            f'acc {metrics["train/accuracy"]:.3f}')
    rate = metrics.get('train/images_per_second')   # not of the first step
    if rate is not None:
      note += (f'  {rate:,.{0 if rate >= 10 else 1}f} images/s  '
               f'{metrics["train/utilisation"]:.0%} of peak')
    if self._bar:
      self._bar.update(self._task, note=note)
      return
    now = time.monotonic()
    if now - self._said < 5 and step != self._total and self._said:
      return   # plain output: a line every few seconds is enough
    self._said = now
    left = (now - self._began) / max(step - self._first, 1) * (
        self._total - step)
    log.info('step %s/%s  %s  ETA %s', f'{step:,}', f'{self._total:,}',
                 note, duration(left))

  def say(self, text):
    """A line above the bar."""
    if self._bar:
      self._bar.console.print(text, highlight=False)
    else:
      log.info('%s', text)


def duration(seconds):
  """Seconds as h:mm:ss."""
  minutes, seconds = divmod(int(seconds + 0.5), 60)
  return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
