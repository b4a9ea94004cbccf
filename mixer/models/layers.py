"""Layers that more than one network may use.

Axes: B batch, N any leading axes, I inputs, O outputs of a dense layer.
"""
import jax


def training_dot(x, kernel, dimension_numbers, precision=None,
              preferred_element_type=None):
  """x [..., I] times kernel [I, O], in the form the platform is fastest at.

  XLA's CPU backend is faster at the backward pass of two matrices than of a
  batch of them; forward alone it is not, nor are TPUs, where 196 tokens do not
  fill whole tiles (BENCHMARKS.md). So this is for training only, and the choice
  is made when the program is lowered: it follows the platform it is for.
  """
  def batched(x, kernel):
    return jax.lax.dot_general(
        x, kernel, dimension_numbers, precision=precision,
        preferred_element_type=preferred_element_type)

  def flat(x_NI, kernel_IO):
    rows = x_NI.reshape(-1, x_NI.shape[-1])
    out = jax.lax.dot_general(
        rows, kernel_IO, (((1,), (0,)), ((), ())), precision=precision,
        preferred_element_type=preferred_element_type)
    return out.reshape(*x_NI.shape[:-1], kernel_IO.shape[-1])

  return jax.lax.platform_dependent(x, kernel, cpu=flat, default=batched)


def keep_mask(key, rows_B, rate, shape):
  """Bernoulli(1 - rate) draws, one block of `shape` an example: [B, *shape].

  Example b draws from fold_in(key, rows_B[b]) alone, so its mask does not
  depend on how the global batch is cut into micro-batches or over devices.
  """
  def one(row):
    return jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, shape)
  return jax.vmap(one)(rows_B)
