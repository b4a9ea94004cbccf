"""Learning rate by step: a linear warm-up, then a decay."""
from collections.abc import Callable
import math

import optax

from mixer.core import errors
from mixer.core.log import log


def make(*, learning_rate: float, total_steps: int, warmup_steps: int = 0,
         decay: str = 'cosine', end_fraction: float = 0.0) -> optax.Schedule:
  """Returns the learning-rate schedule; a config's `schedule` section.

  Args:
    learning_rate: the peak, which is reached at the end of the warm-up.
    total_steps: length of the run; the decay ends there.
    warmup_steps: steps of linear growth from 0. A warm-up that is not shorter
      than the run is cut to a tenth of the run, and a log line says so.
    decay: 'cosine', 'linear' or 'constant'.
    end_fraction: final learning rate, as a fraction of the peak.

  Returns:
    An optax schedule: number of updates already done -> learning rate.

  Raises:
    UserError: if a value is unknown or out of range.
  """
  if not 0 < learning_rate < math.inf:
    raise errors.UserError('schedule.learning_rate: expected a finite number '
                           f'above 0, got {learning_rate}')
  if warmup_steps < 0 or not 0 <= end_fraction <= 1:
    raise errors.UserError(
        'schedule: expected warmup_steps >= 0 and 0 <= end_fraction <= 1, got '
        f'warmup_steps={warmup_steps} and end_fraction={end_fraction}')
  if decay not in _DECAYS:
    raise errors.unknown('schedule.decay', decay, list(_DECAYS))
  if warmup_steps and warmup_steps >= total_steps:
    shorter = total_steps // 10
    log.info('schedule.warmup_steps: %s is too long for a run of %s steps; '
             'using %s', f'{warmup_steps:,}', f'{total_steps:,}',
             f'{shorter:,}')
    warmup_steps = shorter
  after = max(total_steps - warmup_steps, 1)
  return optax.join_schedules(
      [optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1)),
       _DECAYS[decay](learning_rate, after, end_fraction)], [warmup_steps])


# name -> (peak, steps, final fraction of the peak) -> schedule
_DECAYS: dict[str, Callable[[float, int, float], optax.Schedule]] = {
    'cosine': lambda peak, steps, end: optax.cosine_decay_schedule(
        peak, steps, end),
    'linear': lambda peak, steps, end: optax.linear_schedule(
        peak, peak * end, steps),
    'constant': lambda peak, steps, end: optax.constant_schedule(peak),
}
