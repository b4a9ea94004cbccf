"""Shows what a run is about to do, and its progress.

The progress is a bar on a terminal, and log lines elsewhere.
"""
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import logging
import os
import sys
import time
from types import TracebackType

from clu import parameter_overview
from rich import console
from rich import progress
from rich import table
from rich import text as rich_text

from mixer.core import files
from mixer.core import processes
from mixer.core import trees
from mixer.core import workdir
from mixer.core.log import log
from mixer.data import class_counts
from mixer.data import pipeline
from mixer.models import interface
from mixer.training import sharding
from mixer.training import step as steps
from mixer.training import watchdog
from mixer.training.settings import Settings

_LINE_SECONDS = 5.0   # between log lines; a script that logs needs no more
_SLOW_SECONDS = 2.0   # a batch that takes longer is shown as such
_BAR_COLUMNS = 8   # of a terminal, which the note leaves to the bar
_STATE = dict(replicate='every device holds the whole state',
              fsdp='the state is split over the devices')


def introduce(*, path: str, title: str, settings: Settings, plan: sharding.Plan,
              data: pipeline.Data, evals: Mapping[str, pipeline.Data],
              model: interface.Model, state: steps.State, trained: int,
              image_flops: int, total_steps: int,
              paper_core_days: int | None, code: str = '') -> None:
  """Logs what is about to run, and writes the table of all parameters.

  Args:
    path: the workdir.
    title: the model's name and what differs from it.
    settings: of the config's `run` section.
    plan: of the devices.
    data: the training split.
    evals: {name: evaluation split}.
    model: the network.
    state: shapes of the training state.
    trained: how many of the parameters are not frozen.
    image_flops: FLOPs of one image in training.
    total_steps: length of the run.
    paper_core_days: TPUv3 core-days of the same run in the paper, or None.
    code: commit and versions, '' if they are not known.
  """
  say = log.info
  device, count = plan.mesh.devices.flat[0], trees.count(state.params)
  say('model    %s', title)
  of_them = '' if trained == count else f', {trained:,} of them trained'
  say('         %s parameters%s; %.3g GFLOPs per image in a forward pass',
      f'{count:,}', of_them,
      model.forward_flops(settings.image_size) / 1e9)
  say('data     %s, split %s: %s images of %d classes', data.source.title,
      data.split.spec, f'{len(data):,}', data.source.num_classes)
  for name, split in evals.items():
    say('         evaluation %r on %s, split %s: %s images', name,
        split.source.title, split.split.spec, f'{len(split):,}')
  if classes := class_counts.overview(data):
    say('classes  %s', classes)
  mesh = ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.shape.items()
                    if size > 1)
  say('devices  %d x %s, computing in %s; %s%s', plan.mesh.size,
      device.device_kind, settings.dtype_on(plan.platform),
      _STATE[plan.strategy], f' ({mesh})' if mesh else '')
  say('run      %s steps of %d images: %.1f epochs', f'{total_steps:,}',
      settings.batch_size, total_steps * settings.batch_size / len(data))
  held = [sharding.held(tree, plan.state(tree, model.SHARDING_RULES))
          for tree in (state.params, state.opt_state)]
  say('memory   parameters %s MiB, optimizer state %s MiB on each device',
      *(f'{number / 2**20:,.1f}' for number in held))
  say('cost     %s', '; '.join(_cost(
      image_flops, total_steps * settings.batch_size * image_flops,
      plan.platform, device.device_kind, paper_core_days)))
  if code:
    say('code     %s', code)
  say('workdir  %s', path)
  if processes.several():
    for number, host, devices in processes.table():
      say('process  %d on %s: %s', number, host, devices)
  if processes.first():
    files.write(
        os.path.join(path, workdir.PARAMETERS),
        parameter_overview.get_parameter_overview(
            state.params, include_stats=False) + '\n')


def _cost(image: float, total: float, platform: str, kind: str,
          paper_core_days: int | None) -> Iterator[str]:
  """Yields what is known of the cost, as phrases.

  Args:
    image: FLOPs of training on one image.
    total: FLOPs of the whole run.
    platform: of the devices.
    kind: JAX's `device_kind` of the devices.
    paper_core_days: TPUv3 core-days of the same run in the paper, or None.
  """
  yield (f'training takes {image / 1e9:.3g} GFLOPs per image, {total:.3g} '
         'FLOPs in total')
  if platform != 'cpu':
    from mixer.core import accelerators
    yield from accelerators.hours(kind, total)
  if paper_core_days:
    yield f'the paper took {paper_core_days:,} TPUv3 core-days'


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
    self._first, self._total, self._step = first, total, first
    self._began = self._shown = 0.0   # 0 means not yet
    self._phase, self._parts = ('starting', time.monotonic()), ['training']
    self._bar: progress.Progress | None = None
    # Jupyter turns colours on although its output is a pipe, which would show
    # every movement of the bar as a new line.
    moves = self._screen.is_terminal and self._screen.file.isatty()
    if moves and first < total:
      self._bar = progress.Progress(
          progress.BarColumn(bar_width=None),
          progress.TextColumn('{task.completed:,}/{task.total:,}'),
          _Column(self._note),
          console=self._screen, refresh_per_second=4, expand=True)
      self._task = self._bar.add_task('', total=total, completed=first)

  def __enter__(self) -> 'Progress':
    if self._bar:
      self._handlers = [h for h in log.handlers if isinstance(
          h, logging.StreamHandler) and h.stream is sys.stdout]
      self._bar.start()
      self._follow()
    return self

  def __exit__(self, kind: type[BaseException] | None,
               error: BaseException | None,
               traceback: TracebackType | None) -> None:
    if self._bar:
      self._bar.stop()
      self._follow()

  def _follow(self) -> None:
    """Sends log lines to standard output, which is the bar's while it is shown:
    it puts them above itself."""
    for handler in self._handlers:
      handler.setStream(sys.stdout)

  def advance(self, step: int) -> None:
    """Shows that `step` updates are done.

    The time that is left is estimated from the second step on: the first one
    compiles.
    """
    self._step = step
    if not self._began:
      self._began, self._first = time.monotonic(), step
    if self._bar:
      self._bar.update(self._task, completed=step)

  def phase(self, what: str) -> None:
    """Notes what the run does from now on; the bar shows it.

    Args:
      what: one of the phases of `watchdog`.
    """
    self._phase = what, time.monotonic()

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
    if self._bar:
      self._parts = parts
      return
    now = time.monotonic()
    if self._shown and now - self._shown < _LINE_SECONDS and (
        step != self._total):
      return
    self._shown = now
    log.info('step %s/%s  %s  %s left', f'{step:,}', f'{self._total:,}',
             '  '.join(parts), duration(self._left(step)))

  def say(self, text: str) -> None:
    """Shows a line, above the bar if there is one."""
    if self._bar:
      self._bar.console.print(text, highlight=False)
    else:
      log.info('%s', text)

  def _left(self, step: int) -> float:
    """Returns the seconds that are left after `step` updates."""
    return (time.monotonic() - self._began) / max(step - self._first, 1) * (
        self._total - step)

  def _note(self) -> str:
    """Returns what stands beside the bar: metrics, or what the run waits for.

    Metrics that have no room on the terminal are left out, the last ones first.
    """
    what, since = self._phase
    seconds = time.monotonic() - since
    training = self._began and (
        what == watchdog.COMPUTING or
        what == watchdog.READING and seconds < _SLOW_SECONDS)
    if not training:
      return f'{what} {duration(seconds)}'
    left = f'{duration(self._left(self._step))} left' if (
        self._step > self._first) else ''
    parts = [part.removesuffix(' FLOP/s') for part in self._parts]
    room = self._screen.width - _BAR_COLUMNS - len(
        f' {self._step:,}/{self._total:,} ')
    while parts and len('  '.join([*parts, left])) > room:
      parts.pop()
    return '  '.join([*parts, left])


class _Column(progress.ProgressColumn):
  """Shows the text that a function returns, anew with every refresh."""

  def __init__(self, note: Callable[[], str]):
    # Only the bar gives way if the terminal is narrow.
    super().__init__(table.Column(no_wrap=True))
    self._note = note

  def render(self, task: progress.Task) -> rich_text.Text:
    """Returns the text of now."""
    return rich_text.Text(self._note(), style='cyan')


def duration(seconds: float) -> str:
  """Returns seconds as 'h:mm:ss'."""
  minutes, rest = divmod(int(seconds + 0.5), 60)
  return f'{minutes // 60}:{minutes % 60:02d}:{rest:02d}'
