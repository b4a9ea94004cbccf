"""Steps through ready-made objects: it builds nothing and knows no config."""
import dataclasses
import math
import time
from typing import Any

import jax

from mixer.core import errors


def due(step, every, total):
  """Is something of period `every` due, `step` updates being done?

  The last step is always due; a period of 0 means only then.
  """
  return step == total or bool(every and step % every == 0)


@dataclasses.dataclass(frozen=True)
class Job:
  """What the loop works with.

  Attributes:
    step_fn: (state, batch, resident) -> (state, metrics), jitted.
    batches: iterator of global batches on the device, from the state's step.
    resident: what `step_fn` takes as it is.
    evaluate: state -> {metric: float}, counted over whole splits.
    save: (step, state, metrics) -> None, begins a checkpoint.
    writer: of metrics, `writer.Writer`.
    progress: `progress.Progress`.
    guard: `stop.Guard`.
    total_steps, log_every, eval_every, save_every: in steps.
    save_scored: whether an evaluation goes before every checkpoint.
    batch_size: images a step.
    flops: of one step, by formula.
    peak_flops: per second, of all devices together; for utilisation.
    devices: how many there are.
    spent: device-seconds of the run before this start.
  """
  step_fn: Any
  batches: Any
  resident: Any
  evaluate: Any
  save: Any
  writer: Any
  progress: Any
  guard: Any
  total_steps: int
  log_every: int
  eval_every: int
  save_every: int
  save_scored: bool
  batch_size: int
  flops: float
  peak_flops: float
  devices: int = 1
  spent: float = 0.0


def train(state, job):
  """Trains from the state's step to the last one.

  Returns:
    (state, metrics of the final evaluation).

  Raises:
    Diverged: at the first logged step whose loss is not finite.
    Stopped: after a signal, when the state has been saved.
  """
  step = first = int(state.step)
  behind = None
  clock = _Clock(step, job)
  for batch in job.batches:
    with jax.transfer_guard('disallow'):
      state, metrics = job.step_fn(state, batch, job.resident)
    # The last step's numbers are fetched while this one runs, so that the
    # device never waits, and no more than two steps are ever under way.
    if behind is not None:
      jax.block_until_ready(behind[1])
      _log(job, behind, clock)
    step += 1
    behind = (step, metrics)
    job.progress.advance(step)
    if step == first + 1:
      jax.block_until_ready(metrics)
      clock.restart(step)   # leaves the compilation out of the rate
    asked = job.guard.asked(step)
    stopping = bool(asked) and step < job.total_steps
    # Whoever asks a run to stop does not wait for an evaluation.
    evaluating = due(step, job.eval_every, job.total_steps) and not stopping
    saving = due(step, job.save_every, job.total_steps)
    if evaluating or saving or stopping:
      jax.block_until_ready(metrics)
      _log(job, behind, clock)
      _finite(step, jax.device_get(metrics))
      behind, scores = None, {}
      if evaluating or (saving and job.save_scored and not stopping):
        scores = job.evaluate(state)
        job.writer.write(step, scores)
        job.progress.say(f'step {step:,}: ' + summary(scores))
      if saving or stopping:
        # The line of this step must be there before its checkpoint is.
        job.writer.flush()
        job.save(step, state, scores)
      clock.restart(step)
      if step == job.total_steps:
        job.progress.say(f'took {clock.device_seconds() / 3600:,.3g} '
                         'device-hours')
      if stopping:
        raise errors.Stopped(
            f'{asked} at step {step:,}, which is saved; the same '
            'command goes on from there')
  return state, scores


def summary(scores):
  """The accuracies among metrics, for people."""
  return '  '.join(f'{k.removeprefix("eval/")} {v:.2%}'
                   for k, v in scores.items() if k.endswith('/accuracy'))


def _log(job, behind, clock):
  step, metrics = behind
  if not due(step, job.log_every, job.total_steps):
    return
  row = {f'train/{k}': float(v) for k, v in jax.device_get(metrics).items()}
  if not all(map(math.isfinite, row.values())):
    job.writer.write(step, row)
    job.writer.flush()
  _finite(step, metrics)
  seconds = clock.seconds_per_step(step)
  if seconds:
    speed = job.flops / seconds
    row.update({'train/images_per_second': job.batch_size / seconds,
                'train/flops_per_second': speed,
                'train/utilisation': speed / job.peak_flops})
  row['train/device_seconds'] = clock.device_seconds()
  job.writer.write(step, row)
  job.progress.metrics(step, row)


def _finite(step, metrics):
  bad = [f'{k} = {float(v)}' for k, v in jax.device_get(metrics).items()
         if not math.isfinite(float(v))]
  if bad:
    raise errors.Diverged(
        f'step {step}: {", ".join(bad)}; the run has diverged. Earlier '
        'checkpoints are intact; try a lower schedule.learning_rate')


class _Clock:
  """Seconds a step since the last look, and what the run has taken in all."""

  def __init__(self, step, job):
    self._began, self._job = time.monotonic(), job
    self.restart(step)

  def device_seconds(self):
    return self._job.spent + self._job.devices * (
        time.monotonic() - self._began)

  def restart(self, step):
    self._step, self._time = step, time.monotonic()

  def seconds_per_step(self, step):
    now, steps = time.monotonic(), step - self._step
    seconds = now - self._time
    self.restart(step)
    return seconds / steps if steps > 0 else None
