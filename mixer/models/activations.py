"""Forms of GELU; which one is fast depends on the platform of the program.

All forms compute the same function. BENCHMARKS.md has the measurements.
"""
from collections.abc import Callable
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

Activation = Callable[[jax.Array], jax.Array]


def gelu(platform: str | None, *, train: bool, approximate: bool,
         separate: bool = False) -> Activation:
  """Returns GELU in the form that suits a program.

  Args:
    platform: 'cpu', 'gpu' or 'tpu', which the program is for; None decides
      where the program is lowered.
    train: whether the program has a backward pass.
    approximate: the tanh form; False is the exact erf form.
    separate: whether a TPU should finish the activation before the next product
      begins, in programs without a backward pass.
  """
  usual: Activation = functools.partial(nn.gelu, approximate=approximate)
  if train:
    on_tpu: Activation = functools.partial(_gelu, approximate)
  elif separate:
    on_tpu = lambda x: _apart(usual(x))
  else:
    return usual
  if platform is None:
    return lambda x: jax.lax.platform_dependent(x, tpu=on_tpu, default=usual)
  return on_tpu if platform == 'tpu' else usual


def _apart(x: jax.Array) -> jax.Array:
  """Returns x, which the compiler must not compute again for its readers.

  Else a TPU's compiler nests the product before the activation in the product
  after it, and computes it again for each of its tiles.
  """
  return jax.lax.optimization_barrier(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gelu(approximate: bool, x: jax.Array) -> jax.Array:
  """Returns GELU; its backward pass keeps x alone, and computes in float32."""
  return nn.gelu(x.astype(jnp.float32), approximate).astype(x.dtype)


def _forward(approximate: bool, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  return _gelu(approximate, x), x


def _backward(approximate: bool, x: jax.Array,
              gradient: jax.Array) -> tuple[jax.Array]:
  y = x.astype(jnp.float32)
  if approximate:
    scale = math.sqrt(2 / math.pi)
    tanh = jnp.tanh(scale * (y + 0.044715 * y**3))
    slope = (1 + tanh) / 2 + y / 2 * (1 - tanh**2) * scale * (
        1 + 3 * 0.044715 * y**2)
  else:
    normal = jnp.exp(-y**2 / 2) / math.sqrt(2 * math.pi)
    slope = (1 + jax.lax.erf(y / math.sqrt(2))) / 2 + y * normal
  return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


_gelu.defvjp(_forward, _backward)
