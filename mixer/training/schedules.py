"""Learning rate by step: linear warm-up, then cosine or linear decay."""
import math

import optax

from mixer.core import errors
from mixer.core.log import log


def make(*, learning_rate, total_steps, warmup_steps=0, decay='cosine',
         end_fraction=0.0):
  """The schedule; a config's `schedule` section.

  Args:
    learning_rate: the peak, reached at the end of the warm-up.
    total_steps: of the run; the decay ends there.
    warmup_steps: of linear growth from 0. One that does not fit the run is
      shortened to a tenth of it, and that is logged.
    decay: 'cosine', 'linear' or 'constant'.
    end_fraction: of the peak, what is left at the end.

  Returns:
    An optax schedule: updates already done -> learning rate.
  """
  if not 0 < learning_rate < math.inf:
    raise errors.UserError('schedule.learning_rate: expected a number above '
                           f'0, got {learning_rate}')
  if warmup_steps < 0 or not 0 <= end_fraction <= 1:
    raise errors.UserError(
        'schedule: expected warmup_steps >= 0 and 0 <= end_fraction <= 1, got '
        f'{warmup_steps} and {end_fraction}')
  if decay not in _DECAYS:
    raise errors.unknown('schedule.decay', decay, list(_DECAYS))
  if warmup_steps and warmup_steps >= total_steps:
    log.info('schedule.warmup_steps: %d are too many for %d steps; '
                 'shortened to %d', warmup_steps, total_steps,
                 total_steps // 10)
    warmup_steps = total_steps // 10
  after = max(total_steps - warmup_steps, 1)
  return optax.join_schedules(
      [optax.linear_schedule(0.0, learning_rate, max(warmup_steps, 1)),
       _DECAYS[decay](learning_rate, after, end_fraction)], [warmup_steps])


_DECAYS = {
    'cosine': lambda peak, steps, end: optax.cosine_decay_schedule(
        peak, steps, end),
    'linear': lambda peak, steps, end: optax.linear_schedule(
        peak, peak * end, steps),
    'constant': lambda peak, steps, end: optax.constant_schedule(peak),
}
