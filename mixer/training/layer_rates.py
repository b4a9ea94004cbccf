"""Factors of the learning rate by layer; a config's `optimizer.rates`."""
from collections.abc import Mapping
import re
from typing import Any

import jax
import optax

from mixer.core import errors
from mixer.core import trees


def parse(rates: str) -> list[tuple[str, float]]:
  """Returns [(pattern, factor)] for 'PATTERN=FACTOR,...'.

  Raises:
    UserError: if a part has another form, or a pattern is wrong.
  """
  factors = []
  for part in rates.split(','):
    pattern, _, text = part.strip().rpartition('=')
    try:
      factor = float(text)
    except ValueError:
      factor = -1.0   # is reported below
    if not pattern or not 0 <= factor < float('inf'):
      raise errors.UserError(
          "optimizer.rates: expected 'PATTERN=FACTOR,...' with factors of at "
          f'least 0, got {rates!r}')
    trees.compiled('optimizer.rates', pattern)
    factors.append((pattern, factor))
  return factors


def scaled(factors: list[tuple[str, float]]) -> optax.GradientTransformation:
  """Returns a transformation that multiplies each update by its factor.

  Args:
    factors: as `parse` returns them; the first pattern that matches the whole
      name of a parameter decides, and the others keep their updates.
  """
  def update(updates: Mapping[str, Any], params: Any) -> Mapping[str, Any]:
    del params
    of_name = {
        name: next((factor for pattern, factor in factors
                    if re.fullmatch(pattern, name)), 1.0)
        for name in trees.flatten(updates)}
    # In the place of a frozen parameter there is an empty node, not a leaf, so
    # each factor is mapped over whatever lies below it.
    return jax.tree.map(
        lambda factor, below: jax.tree.map(lambda u: factor * u, below),
        trees.unflatten(of_name), updates)
  return optax.stateless(update)
