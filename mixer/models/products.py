"""Layers that more than one network may use.

Axes: B batch, N any leading axes, I inputs, O outputs of a dense layer.
"""
from typing import Any
import zlib

import flax
import jax
import jax.numpy as jnp


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


def patch_dot(images, kernel_HWIO, window_strides, padding, *, precision=None,
              preferred_element_type=None, **conventions):
  """A convolution whose windows are disjoint patches, as one matrix product.

  This is flax's `conv_general_dilated` for a stem: cuDNN's kernel for images of
  three channels is slow; to a TPU and a CPU it is all one (BENCHMARKS.md).
  """
  del window_strides, padding, conventions   # a stem's: patch, none, flax's
  height, width, in_channels, out_channels = kernel_HWIO.shape
  batch, rows, columns, _ = images.shape
  x = images.reshape(batch, rows // height, height, columns // width, width,
                     in_channels).swapaxes(2, 3)
  return jax.lax.dot_general(
      x.reshape(*x.shape[:3], -1), kernel_HWIO.reshape(-1, out_channels),
      (((3,), (0,)), ((), ())), precision=precision,
      preferred_element_type=preferred_element_type)


def token_dot(x_BCI, kernel_IO, dimension_numbers, precision=None,
              preferred_element_type=None):
  """x [B, C, I] times kernel [I, O], as a product an example: kernel^T x^T.

  For mixing tokens on a GPU: x comes transposed from [B, I, C], whose rows are
  aligned to 16 bytes where those of 196 tokens in bfloat16 are not, and the
  transpositions around it are none in memory (BENCHMARKS.md).
  """
  del dimension_numbers   # a dense layer's: the last axis with the first
  kernel_BOI = jnp.broadcast_to(
      kernel_IO.T, (x_BCI.shape[0], *kernel_IO.T.shape))
  out_BOC = jax.lax.dot_general(
      kernel_BOI, jnp.swapaxes(x_BCI, 1, 2), (((2,), (1,)), ((0,), (0,))),
      precision=precision, preferred_element_type=preferred_element_type)
  return jnp.swapaxes(out_BOC, 1, 2)


@flax.struct.dataclass
class Draws:
  """What training leaves out at random, of all blocks or of one.

  Attributes:
    dropout, depth: keys of dropout and of stochastic depth, or None for none;
      of all blocks [num_blocks].
    kept: float32, the probability of keeping a branch; likewise.
    rows_B: int32 [B], the rows of the global batch.
  """
  dropout: Any
  depth: Any
  kept: Any
  rows_B: Any

  def of_block(self, i):
    """Of all blocks, those of one."""
    at = lambda x: None if x is None else x[i]
    return Draws(dropout=at(self.dropout), depth=at(self.depth),
                 kept=self.kept[i], rows_B=self.rows_B)

  def keep(self, name, rate, shape):
    """Which units stay, bool [B, *shape]; `name` tells places of a block
    apart."""
    return keep_mask(_named(self.dropout, name), self.rows_B, 1 - rate, shape)

  def drop_path(self, name, branch_BSC):
    """A branch without the examples that leave it out."""
    if self.depth is None:
      return branch_BSC
    keep_B11 = keep_mask(_named(self.depth, name), self.rows_B, self.kept,
                         (1, 1))
    return branch_BSC * keep_B11.astype(branch_BSC.dtype)


def keep_mask(key, rows_B, kept, shape):
  """Bernoulli(kept) draws, one block of `shape` an example: [B, *shape].

  Example b draws from fold_in(key, rows_B[b]) alone, so its mask does not
  depend on how the global batch is cut into micro-batches or over devices.
  """
  def one(row):
    return jax.random.bernoulli(jax.random.fold_in(key, row), kept, shape)
  return jax.vmap(one)(rows_B)


def _named(key, name):
  return jax.random.fold_in(key, zlib.crc32(name.encode()))
