"""Optimizers, all from optax: clip, then SGD with momentum or Adam."""
import optax

from mixer.core import checks
from mixer.core import trees


def make(*, schedule, name='sgd', clip_norm=1.0, momentum=0.9,
         momentum_dtype=None, b1=0.9, b2=0.999, weight_decay=0.0,
         decay_pattern='.*/kernel'):
  """The optimizer; a config's `optimizer` section.

  Args:
    schedule: updates done -> learning rate.
    name: 'sgd' or 'adam'.
    clip_norm: largest global norm of the gradient; None or 0 for no clipping.
    momentum: of 'sgd'.
    momentum_dtype: of the accumulator (for 'adam' of the first moment):
      'bfloat16' halves its memory; None for the parameters'.
    b1, b2: of 'adam'.
    weight_decay: decoupled: each update takes schedule(step) * weight_decay of
      the parameters whose name matches, as the paper's table 4 counts it. (The
      official config writes the product of both, 1e-3 * 0.1 = 1e-4.)
    decay_pattern: regular expression for whole parameter names; the default is
      every kernel, no bias and no LayerNorm, as in the official code.

  Returns:
    An optax gradient transformation.
  """
  if name not in ('sgd', 'adam'):
    raise checks.unknown('optimizer.name', name, ['sgd', 'adam'])
  for key, value in dict(momentum=momentum, b1=b1, b2=b2).items():
    if not 0 <= value < 1:
      raise checks.UserError(f'optimizer.{key}: expected 0 <= x < 1, got '
                             f'{value}')
  if momentum_dtype not in (None, 'float32', 'bfloat16'):
    raise checks.unknown('optimizer.momentum_dtype', momentum_dtype,
                         ['float32', 'bfloat16'])
  if weight_decay < 0 or (clip_norm or 0) < 0:
    raise checks.UserError(
        'optimizer: expected weight_decay and clip_norm of at least 0, got '
        f'{weight_decay} and {clip_norm}')
  steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  if name == 'sgd':
    steps.append(optax.trace(momentum, accumulator_dtype=momentum_dtype))
  else:
    steps.append(optax.scale_by_adam(b1, b2, mu_dtype=momentum_dtype))
  if weight_decay:
    steps.append(optax.add_decayed_weights(
        weight_decay, mask=lambda p: trees.matches(p, decay_pattern)))
  return optax.chain(*steps, optax.scale_by_learning_rate(schedule))
