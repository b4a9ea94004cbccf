"""Layers that more than one network may use.

Axes: B batch, N any leading axes, I inputs, O outputs of a dense layer.
"""
import jax


def training_dot(x_NI, kernel_IO, dimension_numbers, precision=None,
                 preferred_element_type=None):
  """x [..., I] times kernel [I, O], as one product of two matrices.

  XLA's CPU backend is faster at the backward pass of two matrices than of a
  batch of them; forward alone it is not, since the reshape keeps it from
  folding a transposition into the product. To a TPU both are the same program
  (BENCHMARKS.md). So this is flax's `dot_general` for training.
  """
  del dimension_numbers   # a dense layer's: the last axis with the first
  out = jax.lax.dot_general(
      x_NI.reshape(-1, x_NI.shape[-1]), kernel_IO, (((1,), (0,)), ((), ())),
      precision=precision, preferred_element_type=preferred_element_type)
  return out.reshape(*x_NI.shape[:-1], kernel_IO.shape[-1])


def keep_mask(key, rows_B, rate, shape):
  """Bernoulli(1 - rate) draws, one block of `shape` an example: [B, *shape].

  Example b draws from fold_in(key, rows_B[b]) alone, so its mask does not
  depend on how the global batch is cut into micro-batches or over devices.
  """
  def one(row):
    return jax.random.bernoulli(jax.random.fold_in(key, row), 1 - rate, shape)
  return jax.vmap(one)(rows_B)
