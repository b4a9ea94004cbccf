"""Measures how fast this machine multiplies matrices."""
import time

import jax
import jax.numpy as jnp


def flops_per_second(dtype: str = 'float32', seconds: float = 0.3) -> float:
  """Returns the best rate of a square matrix product on all local devices.

  Args:
    dtype: of both matrices, 'float32' or 'bfloat16'.
    seconds: how long to measure, after a first product that compiles.

  Returns:
    Floating-point operations per second of all local devices together. On a
    CPU the number of JAX devices does not matter: they share the same cores.
  """
  cpu = jax.default_backend() == 'cpu'
  side = 1536 if cpu else 8192
  x = jax.random.normal(jax.random.key(0), (side, side)).astype(dtype)
  product = jax.jit(jnp.dot)
  product(x, x).block_until_ready()
  best, end = 0.0, time.monotonic() + seconds
  while time.monotonic() < end:
    began = time.perf_counter()
    product(x, x).block_until_ready()
    best = max(best, 2 * side**3 / (time.perf_counter() - began))
  return best * (1 if cpu else jax.local_device_count())
