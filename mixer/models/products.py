"""Forms of the matrix products of layers, and of the GELU between two of them.

All forms compute the same function; which one is fast depends on the platform
that the program is for (BENCHMARKS.md has the measurements). How fast this
machine multiplies at best is measured here too.

Axes: B batch, N any leading axes, I inputs, O outputs of a dense layer.
"""
from collections.abc import Callable
import functools
import math
import time
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

PLATFORMS = ('cpu', 'gpu', 'tpu')
# What flax calls the `dot_general` of a dense layer.
Dot = Callable[..., jax.Array]
Activation = Callable[[jax.Array], jax.Array]


class Forms(NamedTuple):
  """The form of an MLP's products, and of its GELU: approximate -> function."""
  dot: Dot
  gelu: Callable[[bool], Activation]


def token_mlp(platform: str | None, *, train: bool) -> Forms:
  """Returns the forms of an MLP over tokens; see `over_tokens`."""
  return Forms(over_tokens(platform, train=train),
               functools.partial(gelu, platform, train=train))


def channel_mlp(platform: str | None, *, train: bool) -> Forms:
  """Returns the forms of an MLP over channels; see `over_tokens`."""
  return Forms(dense(train=train), functools.partial(
      gelu, platform, train=train, separate=True))


def dense(*, train: bool) -> Dot:
  """Returns the `dot_general` of a dense layer over channels."""
  return training_dot if train else jax.lax.dot_general


def over_tokens(platform: str | None, *, train: bool) -> Dot:
  """Returns the `dot_general` of a dense layer over tokens.

  Args:
    platform: 'cpu', 'gpu' or 'tpu', which the program is for; None decides
      where the program is lowered, so that one exported for several platforms
      contains the form of each.
    train: whether the program has a backward pass.
  """
  other = dense(train=train)
  on_tpu = token_dot if train else other
  if platform is not None:
    return dict(gpu=token_dot, tpu=on_tpu).get(platform, other)

  def dot(x, kernel, dimension_numbers, precision=None,
          preferred_element_type=None):
    gpu, tpu, elsewhere = (functools.partial(
        form, dimension_numbers=dimension_numbers, precision=precision,
        preferred_element_type=preferred_element_type)
                           for form in (token_dot, on_tpu, other))
    return jax.lax.platform_dependent(
        x, kernel, cuda=gpu, rocm=gpu, tpu=tpu, default=elsewhere)

  return dot


def training_dot(x_NI: jax.Array, kernel_IO: jax.Array, dimension_numbers: Any,
                 precision: Any = None,
                 preferred_element_type: Any = None) -> jax.Array:
  """Returns x [..., I] times kernel [I, O], as one product of two matrices.

  XLA's CPU backend runs the backward pass of two matrices faster than that of
  a batch of them. The forward pass alone is not faster, because the reshape
  keeps XLA from folding a transposition into the product. A TPU gets the same
  program from both.
  """
  del dimension_numbers   # a dense layer's: the last axis with the first
  out = jax.lax.dot_general(
      x_NI.reshape(-1, x_NI.shape[-1]), kernel_IO, (((1,), (0,)), ((), ())),
      precision=precision, preferred_element_type=preferred_element_type)
  return out.reshape(*x_NI.shape[:-1], kernel_IO.shape[-1])


def token_dot(x_BCI: jax.Array, kernel_IO: jax.Array, dimension_numbers: Any,
              precision: Any = None,
              preferred_element_type: Any = None) -> jax.Array:
  """Returns x [B, C, I] times kernel [I, O], as kernel^T x^T for each example.

  This is for mixing tokens on a GPU, and in training on a TPU. A GPU then has x
  as a transposed [B, I, C], whose rows are aligned to 16 bytes; rows of 196
  tokens in bfloat16 are not. The transpositions around this product need no
  memory.
  """
  del dimension_numbers   # a dense layer's: the last axis with the first
  kernel_BOI = jnp.broadcast_to(
      kernel_IO.T, (x_BCI.shape[0], *kernel_IO.T.shape))
  out_BOC = jax.lax.dot_general(
      kernel_BOI, jnp.swapaxes(x_BCI, 1, 2), (((2,), (1,)), ((0,), (0,))),
      precision=precision, preferred_element_type=preferred_element_type)
  return jnp.swapaxes(out_BOC, 1, 2)


def patch_dot(images: jax.Array, kernel_HWIO: jax.Array, window_strides: Any,
              padding: Any, *, precision: Any = None,
              preferred_element_type: Any = None,
              **conventions: Any) -> jax.Array:
  """Returns a convolution over disjoint patches, as one matrix product.

  This is flax's `conv_general_dilated` for a stem whose stride is its window.
  cuDNN's kernel is slow for images of three channels, and a TPU's program has
  fewer cycles with a product; on a CPU both forms are equally fast.
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


def gelu(platform: str | None, approximate: bool, *, train: bool,
         separate: bool = False) -> Activation:
  """Returns GELU in the form that suits a program; a TPU's is in float32.

  Args:
    platform: 'cpu', 'gpu' or 'tpu', which the program is for; None decides
      where the program is lowered.
    approximate: the tanh form; False is the exact erf form.
    train: whether the program has a backward pass.
    separate: whether a TPU should finish the activation before the next product
      begins, in programs without a backward pass.
  """
  usual: Activation = functools.partial(nn.gelu, approximate=approximate)
  on_tpu: Activation = functools.partial(
      _with_slope if train else _gelu, approximate=approximate)
  if separate and not train:
    short = on_tpu
    on_tpu = lambda x: _apart(short(x))
  if platform is None:
    return lambda x: jax.lax.platform_dependent(x, tpu=on_tpu, default=usual)
  return on_tpu if platform == 'tpu' else usual


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


def _apart(x: jax.Array) -> jax.Array:
  """Returns x, which the compiler must not compute again for its readers.

  Else a TPU's compiler nests the product before the activation in the product
  after it, and computes it again for each of its tiles.
  """
  return jax.lax.optimization_barrier(x)


# GELU of a TPU and its derivative compute in float32, as the TPU's vector units
# do. The tanh form is y (1 + tanh(y (a + b y^2))) / 2, for few operations.
_LINEAR = math.sqrt(2 / math.pi)
_CUBIC = 0.044715 * _LINEAR


def _gelu(x: jax.Array, approximate: bool) -> jax.Array:
  """Returns GELU, computed in float32 and rounded once."""
  y = x.astype(jnp.float32)
  if approximate:
    y *= 0.5 + 0.5 * jnp.tanh(y * (_LINEAR + _CUBIC * y**2))
  else:
    y = nn.gelu(y, approximate=False)
  return y.astype(x.dtype)


def _with_slope(x: jax.Array, approximate: bool) -> jax.Array:
  """Returns GELU; its backward pass keeps x alone."""
  gelu = jax.custom_vjp(functools.partial(_gelu, approximate=approximate))
  gelu.defvjp(lambda x: (_gelu(x, approximate), x), lambda x, gradient: (
      (gradient.astype(jnp.float32) * _slope(x, approximate)).astype(x.dtype),))
  return gelu(x)


def _slope(x: jax.Array, approximate: bool) -> jax.Array:
  """Returns the derivative of GELU, in float32."""
  y = x.astype(jnp.float32)
  if approximate:
    cubic = _CUBIC * y**2
    tanh = jnp.tanh(y * (_LINEAR + cubic))
    return 0.5 + 0.5 * tanh + (1 - tanh**2) * y * (
        0.5 * _LINEAR + 1.5 * cubic)
  normal = jnp.exp(-y**2 / 2) / math.sqrt(2 * math.pi)
  return (1 + jax.lax.erf(y / math.sqrt(2))) / 2 + y * normal
