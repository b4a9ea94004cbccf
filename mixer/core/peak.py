"""The matrix-product rate of the machine at hand, measured, not looked up."""
import time

import jax
import jax.numpy as jnp


def flops_per_second(dtype='float32', seconds=0.3):
  """The best rate of a square matrix product over all local devices.

  Args:
    dtype: of both operands, 'float32' or 'bfloat16'.
    seconds: to spend, after a first run that compiles.

  Returns:
    Floating-point operations a second. Fake CPU devices share the cores, so
    they count as one.
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
