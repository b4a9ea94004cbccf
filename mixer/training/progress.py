"""Shows the progress of a run: a bar on a terminal, log lines elsewhere."""
from collections.abc import Mapping
import time
from types import TracebackType

from rich import console
from rich import progress

from mixer.core.log import log

_LINE_SECONDS = 5.0   # between log lines; a script that logs needs no more


class Progress:
  """Shows which step a run has reached, and its training metrics.

  Args:
    first: step at which the run starts or resumes.
    total: last step.
    screen: of the terminal; by default standard output.
  """

  def __init__(self, first: int, total: int,
               screen: console.Console | None = None):
    self._screen = screen or console.Console()
    self._first, self._total = first, total
    self._began = self._shown = 0.0   # 0 means not yet
    self._bar: progress.Progress | None = None
    # Jupyter turns colours on although its output is a pipe, which would show
    # every movement of the bar as a new line.
    moves = self._screen.is_terminal and self._screen.file.isatty()
    if moves and first < total:
      self._bar = progress.Progress(
          progress.BarColumn(bar_width=None),
          progress.TextColumn('{task.completed:,}/{task.total:,}'),
          progress.TextColumn('[cyan]{task.fields[note]}'),
          progress.TimeRemainingColumn(compact=True),
          progress.TextColumn('left'),
          console=self._screen, refresh_per_second=4, expand=True)
      self._task = self._bar.add_task(
          '', total=total, completed=first, note='compiling')

  def __enter__(self) -> 'Progress':
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, kind: type[BaseException] | None,
               error: BaseException | None,
               traceback: TracebackType | None) -> None:
    if self._bar:
      self._bar.stop()

  def advance(self, step: int) -> None:
    """Shows that `step` updates are done.

    The time that is left is estimated from the second step on: the first one
    compiles.
    """
    if not self._began:
      self._began, self._first = time.monotonic(), step
    if self._bar:
      self._bar.update(self._task, completed=step)

  def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the training metrics of a step; not all if they come often.

    Args:
      step: number of updates done.
      metrics: with 'train/loss' and 'train/accuracy' of the step's batch, and
        usually 'train/images_per_second' and 'train/utilisation'.
    """
    parts = [f'loss {metrics["train/loss"]:.3f}',
             f'accuracy {metrics["train/accuracy"]:.0%}']
    rate = metrics.get('train/images_per_second')   # not of the first step
    if rate is not None:
      parts += [f'{rate:,.{0 if rate >= 10 else 1}f} images/s',
                f'{metrics["train/utilisation"]:.0%} of peak FLOP/s']
    note = '  '.join(parts)
    if self._bar:
      # A terminal of 80 columns has no room for more.
      self._bar.update(self._task, note=note.removesuffix(' FLOP/s'))
      return
    now = time.monotonic()
    if self._shown and now - self._shown < _LINE_SECONDS and (
        step != self._total):
      return
    self._shown = now
    left = (now - self._began) / max(step - self._first, 1) * (
        self._total - step)
    log.info('step %s/%s  %s  %s left', f'{step:,}', f'{self._total:,}', note,
             duration(left))

  def say(self, text: str) -> None:
    """Shows a line, above the bar if there is one."""
    if self._bar:
      self._bar.console.print(text, highlight=False)
    else:
      log.info('%s', text)


def duration(seconds: float) -> str:
  """Returns seconds as 'h:mm:ss'."""
  minutes, rest = divmod(int(seconds + 0.5), 60)
  return f'{minutes // 60}:{minutes % 60:02d}:{rest:02d}'
