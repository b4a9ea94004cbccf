"""Gathers the parameters of FSDP once a step, and divides their gradients.

A step gathers the parameters once, and divides their gradients. XLA alone may
divide a layer's work by its parameters instead, and send activations: on a TPU
the stem took seven times as long.
"""
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from mixer.training import sharding

# (params, ...) -> (gradients, anything)
Gradient = Callable[..., tuple[Any, Any]]


def of(parts: Any) -> Callable[[Gradient], Gradient]:
  """Returns a wrapper of gradient functions.

  It gathers the parameters before the call, and divides the gradients after it.

  Args:
    parts: the shardings of the parameters, from `sharding.Plan.state`.
  """
  def gather(gradient: Gradient) -> Gradient:
    def of_parts(params: Any, *inputs: Any) -> tuple[Any, Any]:
      whole = jax.tree.map(
          lambda x, part: jax.lax.with_sharding_constraint(x, _whole(part)),
          params, parts)
      grads, rest = gradient(whole, *inputs)
      return jax.lax.with_sharding_constraint(grads, parts), rest
    return of_parts
  return gather


def _whole(part: NamedSharding) -> NamedSharding:
  """Returns a sharding without the mesh axis 'fsdp'."""
  def without(axes: sharding.Axes) -> tuple[str, ...] | None:
    axes = (axes,) if isinstance(axes, str) else axes or ()
    return tuple(axis for axis in axes if axis != 'fsdp') or None
  return NamedSharding(part.mesh, PartitionSpec(*map(without, part.spec)))
