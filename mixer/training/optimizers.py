"""Optimizers and learning rates from optax.

An optimizer clips the gradient, then is SGD with momentum or Adam. The learning
rate grows linearly in a warm-up, then decays.
"""
from collections.abc import Callable
from collections.abc import Mapping
import math
import re
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mixer.core import errors
from mixer.core import trees
from mixer.core.log import log

NAMES = ('sgd', 'adam')
# name -> (peak, steps, final fraction of the peak) -> schedule
_DECAYS: dict[str, Callable[[float, int, float], optax.Schedule]] = {
    'cosine': lambda peak, steps, end: optax.cosine_decay_schedule(
        peak, steps, end),
    'linear': lambda peak, steps, end: optax.linear_schedule(
        peak, peak * end, steps),
    'constant': lambda peak, steps, end: optax.constant_schedule(peak),
}


class Averaged(NamedTuple):
  """The state of `averaged`.

  Attributes:
    made: int32 scalar, the number of updates done.
    average: the averaged parameters.
    inner: the state of the optimizer itself.
  """
  made: jax.Array
  average: Any
  inner: optax.OptState


def make(*, schedule: optax.Schedule, name: str = 'sgd',
         clip_norm: float | None = 1.0, momentum: float = 0.9,
         momentum_dtype: str | None = None, b1: float = 0.9, b2: float = 0.999,
         weight_decay: float = 0.0, decay_pattern: str = '.*/kernel',
         frozen: str | None = None, rates: str | None = None
         ) -> optax.GradientTransformationExtraArgs:
  """Returns the optimizer; a config's `optimizer` section.

  Args:
    schedule: number of updates already done -> learning rate.
    name: 'sgd' or 'adam'.
    clip_norm: the gradient is scaled down to this global norm if it is larger;
      None or 0 for no clipping.
    momentum: of 'sgd'.
    momentum_dtype: dtype of the momentum (of Adam's first moment); 'bfloat16'
      halves its memory, None means the parameters' dtype.
    b1, b2: decay rates of Adam's moments.
    weight_decay: decoupled weight decay: each update subtracts schedule(step) *
      weight_decay * parameter from the parameters that `decay_pattern` matches.
      This is how table 4 of the paper counts it. (The official config writes
      the product of both numbers, 1e-3 * 0.1 = 1e-4.)
    decay_pattern: regular expression that must match the whole name of a
      parameter. The default matches all kernels, and no biases or LayerNorm
      scales, as in the official code.
    frozen: regular expression for the whole names of parameters that are not
      trained, such as '(stem|MixerBlock_[0-5])/.*'. Their gradients are not
      computed, they have no optimizer state, and the gradient norm that is
      clipped leaves them out.
    rates: factors on the learning rate, as 'PATTERN=FACTOR,...'. The first
      pattern that matches the whole name of a parameter counts; a parameter
      that none matches has factor 1. A pattern must not contain a comma.

  Returns:
    An optax gradient transformation. Its `init` raises a UserError if a pattern
    matches no parameter, or if `frozen` matches all of them.

  Raises:
    UserError: if a value is unknown or out of range.
  """
  _check(name, clip_norm, momentum, momentum_dtype, b1, b2, weight_decay)
  factors: list[tuple[str, float]] = []
  if rates:
    from mixer.training import layer_rates  # few runs need it
    factors = layer_rates.parse(rates)
  # The order of this chain is the layout of saved optimizer states.
  transforms = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  if name == 'sgd':
    transforms.append(optax.trace(momentum, accumulator_dtype=momentum_dtype))
  else:
    transforms.append(optax.scale_by_adam(b1, b2, mu_dtype=momentum_dtype))
  if weight_decay:
    trees.compiled('optimizer.decay_pattern', decay_pattern)
    transforms.append(optax.add_decayed_weights(
        weight_decay, mask=lambda params: trees.matches(params, decay_pattern)))
  transforms.append(optax.scale_by_learning_rate(schedule))
  if factors:
    transforms.append(layer_rates.scaled(factors))
  optimizer = optax.chain(*transforms)
  if frozen:
    trees.compiled('optimizer.frozen', frozen)
    optimizer = optax.partition(
        {False: optimizer, True: optax.set_to_zero()},
        lambda params: trees.matches(params, frozen))
  patterns = {'decay_pattern': [decay_pattern] if weight_decay else [],
              'frozen': [frozen] if frozen else [],
              'rates': [pattern for pattern, _ in factors]}

  def init(params: Mapping[str, Any]) -> optax.OptState:
    _check_matches(patterns, params)
    return optimizer.init(params)

  return optax.GradientTransformationExtraArgs(init, optimizer.update)


def schedule(*, learning_rate: float, total_steps: int, warmup_steps: int = 0,
             decay: str = 'cosine', end_fraction: float = 0.0
             ) -> optax.Schedule:
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


def averaged(optimizer: optax.GradientTransformationExtraArgs, decay: float
             ) -> optax.GradientTransformationExtraArgs:
  """Returns an optimizer that also keeps an average of the parameters.

  After update t, the average moves to the parameters by 1 - d of the way, where
  d = min(decay, (1 + t) / (10 + t)): early on it forgets fast, so that it does
  not hold on to initial values.

  Args:
    optimizer: as `make` makes it.
    decay: from 0 to below 1.
  """
  def init(params: Any) -> Averaged:
    return Averaged(jnp.zeros((), jnp.int32), params, optimizer.init(params))

  def update(updates: Any, state: Averaged, params: Any = None,
             **more: Any) -> tuple[Any, Averaged]:
    updates, inner = optimizer.update(updates, state.inner, params, **more)
    made = state.made + 1
    keep = jnp.minimum(decay, (1 + made) / (10 + made))
    average = jax.tree.map(lambda a, p: a + (1 - keep) * (p - a), state.average,
                           optax.apply_updates(params, updates))
    return updates, Averaged(made, average, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def average_of(state: Any) -> Any:
  """Returns the averaged parameters in an optimizer's state, or None."""
  return state.average if isinstance(state, Averaged) else None


def averaging_from(state: Any, params: Any) -> Any:
  """Returns an optimizer's state whose average, if any, is a copy of params."""
  if average_of(state) is None:
    return state
  return state._replace(average=jax.tree.map(jnp.copy, params))


def trained(params: Mapping[str, Any], frozen: str | None) -> int:
  """Returns how many of the parameters are trained, that is not frozen.

  Args:
    params: of the network, or their shapes.
    frozen: as `make` takes it.
  """
  return trees.count([x for name, x in trees.flatten(params).items()
                      if not frozen or not re.fullmatch(frozen, name)])


def _check(name: str, clip_norm: float | None, momentum: float,
           momentum_dtype: str | None, b1: float, b2: float,
           weight_decay: float) -> None:
  if name not in NAMES:
    raise errors.unknown('optimizer.name', name, NAMES)
  for key, value in dict(momentum=momentum, b1=b1, b2=b2).items():
    if not 0 <= value < 1:
      raise errors.UserError(f'optimizer.{key}: expected 0 <= x < 1, got '
                             f'{value}')
  if momentum_dtype not in (None, 'float32', 'bfloat16'):
    raise errors.unknown('optimizer.momentum_dtype', momentum_dtype,
                         ['float32', 'bfloat16'])
  for key, value in dict(weight_decay=weight_decay,
                         clip_norm=clip_norm or 0).items():
    if value < 0:
      raise errors.UserError(
          f'optimizer.{key}: expected at least 0, got {value}')


def _check_matches(patterns: Mapping[str, list[str]],
                   params: Mapping[str, Any]) -> None:
  """Raises a UserError if a pattern does nothing, or leaves nothing to train.
  """
  names = list(trees.flatten(params))
  for key, listed in patterns.items():
    for pattern in listed:
      matched = sum(bool(re.fullmatch(pattern, name)) for name in names)
      if key == 'frozen' and matched == len(names):
        raise errors.UserError(
            f'optimizer.frozen: {pattern!r} matches every parameter, so none '
            'is left to train; narrow it')
      if not matched:
        raise errors.UserError(
            f'optimizer.{key}: {pattern!r} does not match the whole name of '
            f'any parameter; names look like {names[0]!r} (parameters.txt in a '
            'workdir lists them all)')
