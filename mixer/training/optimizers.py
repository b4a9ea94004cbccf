"""Optimizers, all from optax: clip, then SGD with momentum or Adam."""
import re

import jax
import optax

from mixer.core import errors
from mixer.core import trees


def make(*, schedule, name='sgd', clip_norm=1.0, momentum=0.9,
         momentum_dtype=None, b1=0.9, b2=0.999, weight_decay=0.0,
         decay_pattern='.*/kernel', frozen=None, rates=None):
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
    frozen: regular expression for whole names of parameters that stay as they
      are, such as '(stem|MixerBlock_[0-5])/.*'. They cost no gradient and no
      state, and the clipping does not count them.
    rates: factors of the learning rate by name, 'PATTERN=FACTOR,...'; the first
      pattern that matches the whole name holds, others have 1; none may have a
      comma inside.

  Returns:
    An optax gradient transformation. Its `init` raises a UserError if a pattern
    matches no parameter, or `frozen` all.
  """
  if name not in ('sgd', 'adam'):
    raise errors.unknown('optimizer.name', name, ['sgd', 'adam'])
  for key, value in dict(momentum=momentum, b1=b1, b2=b2).items():
    if not 0 <= value < 1:
      raise errors.UserError(f'optimizer.{key}: expected 0 <= x < 1, got '
                             f'{value}')
  if momentum_dtype not in (None, 'float32', 'bfloat16'):
    raise errors.unknown('optimizer.momentum_dtype', momentum_dtype,
                         ['float32', 'bfloat16'])
  if weight_decay < 0 or (clip_norm or 0) < 0:
    raise errors.UserError(
        'optimizer: expected weight_decay and clip_norm of at least 0, got '
        f'{weight_decay} and {clip_norm}')
  steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
  if name == 'sgd':
    steps.append(optax.trace(momentum, accumulator_dtype=momentum_dtype))
  else:
    steps.append(optax.scale_by_adam(b1, b2, mu_dtype=momentum_dtype))
  if weight_decay:
    _pattern('decay_pattern', decay_pattern)
    steps.append(optax.add_decayed_weights(
        weight_decay, mask=lambda p: trees.matches(p, decay_pattern)))
  steps.append(optax.scale_by_learning_rate(schedule))
  if rates:
    steps.append(_scaled(_factors(rates)))
  optimizer = optax.chain(*steps)
  if frozen:
    _pattern('frozen', frozen)
    optimizer = optax.partition(
        {False: optimizer, True: optax.set_to_zero()},
        lambda params: trees.matches(params, frozen))
  patterns = {'decay_pattern': [decay_pattern] if weight_decay else [],
              'frozen': [frozen] if frozen else [],
              'rates': [p for p, _ in _factors(rates)] if rates else []}
  return optax.GradientTransformationExtraArgs(
      lambda params: _checked(optimizer, patterns, params), optimizer.update)


def _checked(optimizer, patterns, params):
  names = list(trees.flatten(params))
  for key, listed in patterns.items():
    for pattern in listed:
      matched = sum(bool(re.fullmatch(pattern, name)) for name in names)
      if not matched or (key == 'frozen' and matched == len(names)):
        raise errors.UserError(
            f'optimizer.{key}: {pattern!r} matches ' + (
                'every parameter, and none is left to train' if matched else
                'no name of a parameter as a whole') +
            f'; they are such as {names[0]!r} (parameters.txt of a workdir has '
            'them all)')
  return optimizer.init(params)


def _scaled(factors):
  def update(updates, params):
    del params
    flat = {name: next((f for p, f in factors if re.fullmatch(p, name)), 1.0)
            for name in trees.flatten(updates)}
    return jax.tree.map(   # a factor above the empty nodes of frozen ones
        lambda factor, below: jax.tree.map(lambda u: factor * u, below),
        trees.unflatten(flat), updates)
  return optax.stateless(update)


def _factors(rates):
  """[(pattern, factor)] of 'PATTERN=FACTOR,...'."""
  out = []
  for part in rates.split(','):
    pattern, _, factor = part.strip().rpartition('=')
    try:
      factor = float(factor)
    except ValueError:
      factor = -1.0
    if not pattern or not 0 <= factor < float('inf'):
      raise errors.UserError(
          "optimizer.rates: expected 'PATTERN=FACTOR,...' with factors of at "
          f'least 0, got {rates!r}')
    out.append((_pattern('rates', pattern), factor))
  return out


def _pattern(key, pattern):
  try:
    re.compile(pattern)
  except re.error as e:
    raise errors.UserError(f'optimizer.{key}: {pattern!r} is no regular '
                           f'expression: {e}') from e
  return pattern
