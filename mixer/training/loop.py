"""The training loop: steps through ready-made objects, and knows no config."""
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import math
import re
import time
from typing import Any
from typing import TYPE_CHECKING

import jax

from mixer.core import errors
from mixer.training import watchdog
from mixer.training.step import Metrics
from mixer.training.step import State
from mixer.training.step import Step

if TYPE_CHECKING:
  from mixer.training import metrics_file
  from mixer.training import progress


def due(step: int, every: int, total: int) -> bool:
  """Returns whether something is due once `step` updates are done.

  Args:
    step: number of updates done.
    every: period in steps; 0 means only after the last step.
    total: number of updates of the run; after the last one everything is due.
  """
  return step == total or bool(every and step % every == 0)


@dataclasses.dataclass(frozen=True)
class Job:
  """What the loop works with.

  Attributes:
    step_fn: (state, batch, resident) -> (state, metrics), jitted.
    batches: global batches on the devices, from the state's step on.
    resident: the split that lives on the devices, or None; goes to `step_fn`.
    evaluate: state -> {metric: float} over whole splits.
    save: (step, state, metrics of an evaluation) -> None; begins to save.
    writer: of metrics.
    progress: what the user sees.
    guard: says whether a signal asks to stop.
    skips: counts the updates that the step skipped.
    total_steps: number of updates of the run.
    log_every: period of training metrics, in steps.
    eval_every: period of evaluations, in steps.
    save_every: period of checkpoints, in steps.
    save_scored: whether to evaluate before every checkpoint.
    improves: whether metrics of an evaluation are a new best, which is saved.
    batch_size: images of one step.
    flops: FLOPs of one step, by formula.
    peak_flops: FLOPs per second of all devices together, for the utilisation.
    patience: how many evaluations without a new best end the run; 0: none do.
    stale: how many came since the last best before the run was resumed.
    devices: number of devices.
    spent: device-seconds that the run took before it was last resumed.
    phase: is told what the loop waits for, and the number of updates done.
  """
  step_fn: Step
  batches: Iterable[Any]
  resident: Any
  evaluate: Callable[[State], Mapping[str, float]]
  save: Callable[[int, State, Mapping[str, float]], None]
  writer: 'metrics_file.Writer'
  progress: 'progress.Progress'
  guard: 'watchdog.Guard'
  skips: 'watchdog.Skips'
  total_steps: int
  log_every: int
  eval_every: int
  save_every: int
  save_scored: bool
  batch_size: int
  flops: float
  peak_flops: float
  improves: Callable[[Mapping[str, float]], bool] = lambda scores: False
  patience: int = 0
  stale: int = 0
  devices: int = 1
  spent: float = 0.0
  phase: watchdog.Phase = lambda what, step: None


def train(state: State, job: Job) -> tuple[State, dict[str, float]]:
  """Trains from the state's step to the last one.

  Returns:
    (state, metrics of the final evaluation).

  Raises:
    Diverged: if too many updates were skipped; if the step skips none, at the
      first logged, evaluated or saved step with a metric that is not finite.
    Stopped: after a signal, once the save of the state has begun.
  """
  step = first = int(state.step)
  scores: dict[str, float] = {}
  stale, ended = job.stale, False
  # (step, metrics, records) of the last step, if not logged yet.
  pending: tuple[int, Metrics, Any] | None = None
  clock = _Clock(step, job)
  for batch in _read(job, lambda: step):
    job.phase(watchdog.COMPUTING if step > first else watchdog.COMPILING, step)
    with jax.transfer_guard('disallow'):
      state, metrics = job.step_fn(state, batch, job.resident)
    # Fetch the previous step's metrics while this step runs: the devices never
    # wait for the host, and at most two steps are in flight.
    if pending is not None:
      jax.block_until_ready(pending[1])
      _log(job, *pending, clock)
    step += 1
    pending = (step, metrics, batch['record'])
    job.progress.advance(step)
    if step == first + 1:
      jax.block_until_ready(metrics)
      clock.restart(step)   # the first step compiles; leave it out of the rate
    signal = job.guard.asked(step)
    stopping = bool(signal) and step < job.total_steps
    # A stopped run may be killed soon: it evaluates when it resumes.
    evaluating = due(step, job.eval_every, job.total_steps) and not stopping
    saving = due(step, job.save_every, job.total_steps)
    if evaluating or saving or stopping or job.skips.wary:
      jax.block_until_ready(metrics)
      _log(job, *pending, clock)
      _check_finite(step, metrics)
      job.skips.check(state, batch, job.resident)
      pending = None
    if evaluating or saving or stopping:
      scores = {}
      if evaluating or (saving and job.save_scored and not stopping):
        job.phase(watchdog.EVALUATING, step)
        scores = dict(job.evaluate(state))
        job.writer.write(step, scores)
        job.progress.say(f'evaluated at step {step:,}: {accuracies(scores)}')
        stale = 0 if job.improves(scores) else stale + 1
        ended = 0 < job.patience <= stale and step < job.total_steps
        saving = saving or stale == 0 or ended
      if saving or stopping:
        # Metrics first: a resumed run keeps them up to its checkpoint.
        job.writer.flush()
        job.phase(watchdog.SAVING, step)
        job.save(step, state, scores)
      clock.restart(step)
      if ended or step == job.total_steps:
        job.progress.say(
            f'training took {clock.logged / 3600:,.3g} device-hours')
      if ended:
        job.progress.say(early(step, stale))
        break
      if stopping:
        raise errors.Stopped(
            f'{signal} at step {step:,}, which is saved; run the same command '
            'again to resume')
  return state, scores


def early(step: int, stale: int) -> str:
  """Returns why a run ended at a step, after so many worse evaluations."""
  return (f'stopped early at step {step:,}: the last {stale} evaluations '
          'brought no new best (run.patience; a larger number goes on)')


def of_average(metric: str) -> str:
  """Returns the name of a metric of the averaged parameters, such as
  'eval/test/average/accuracy' of 'eval/test/accuracy'."""
  split, _, kind = metric.rpartition('/')
  return f'{split}/average/{kind}'


def accuracies(scores: Mapping[str, float]) -> str:
  """Returns the accuracies among metrics as text: 'accuracy on test 98.61%,
  5-shot accuracy on few 61.20%'."""
  found = ((re.fullmatch(r'eval/(.+)/accuracy(?:_(\d+shot))?', name), value)
           for name, value in scores.items())
  return ', '.join(
      f'{match[2].replace("shot", "-shot ") if match[2] else ""}accuracy on '
      f'{match[1]} {value:.2%}' for match, value in found if match)


def _read(job: Job, step: Callable[[], int]) -> Iterator[Any]:
  """Yields the batches, and says when the loop waits for one."""
  job.phase(watchdog.READING, step())
  for batch in job.batches:
    yield batch
    job.phase(watchdog.READING, step())


def _log(job: Job, step: int, metrics: Metrics, record: Any,
         clock: '_Clock') -> None:
  """Writes and shows the metrics of a step that is due or was skipped."""
  skipped = job.skips.look(step, metrics, record)
  if not skipped and not due(step, job.log_every, job.total_steps):
    return
  row = {f'train/{key}': float(value)
         for key, value in jax.device_get(metrics).items()}
  if 'skipped' in metrics:
    row['train/skipped'] = len(job.skips.skipped)
  if not skipped and not all(map(math.isfinite, row.values())):
    job.writer.write(step, row)   # the last line of a diverged run shows why
    job.writer.flush()
  _check_finite(step, metrics)
  if not skipped:
    job.skips.compare(step, row['train/loss'])
  seconds = clock.seconds_per_step(step)
  if seconds:
    speed = job.flops / seconds
    row.update({'train/images_per_second': job.batch_size / seconds,
                'train/flops_per_second': speed,
                'train/utilisation': speed / job.peak_flops})
  row['train/device_seconds'] = clock.logged = clock.device_seconds()
  job.writer.write(step, row)
  job.progress.metrics(step, row)


def _check_finite(step: int, metrics: Metrics) -> None:
  if int(metrics.get('skipped', 0)):
    return   # `skips` has reported it
  bad = [f'{key} = {float(value)}'
         for key, value in jax.device_get(metrics).items()
         if not math.isfinite(float(value))]
  if bad:
    raise errors.Diverged(
        f'step {step}: {", ".join(bad)}: the run has diverged. Earlier '
        'checkpoints are intact; try a lower schedule.learning_rate')


class _Clock:
  """Measures seconds per step, and device-seconds of the whole run.

  Attributes:
    logged: the device-seconds of the last line of metrics.
  """

  def __init__(self, step: int, job: Job):
    self.logged = job.spent
    self._began, self._job = time.monotonic(), job
    self.restart(step)

  def device_seconds(self) -> float:
    """Returns what the run took so far, all its starts together."""
    return self._job.spent + self._job.devices * (
        time.monotonic() - self._began)

  def restart(self, step: int) -> None:
    """Starts to measure seconds per step at `step`."""
    self._step, self._time = step, time.monotonic()

  def seconds_per_step(self, step: int) -> float | None:
    """Returns the mean since the last restart, and restarts."""
    now, steps = time.monotonic(), step - self._step
    seconds = now - self._time
    self.restart(step)
    return seconds / steps if steps > 0 else None
