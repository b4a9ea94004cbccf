"""Look-ups and histograms on the device, in a form for each kind of device.

On CPUs and GPUs each pixel cheaply reads or counts at an address of its own. A
TPU would do so one pixel after the other; whole vectors are faster there,
though they take many times the arithmetic. Both forms give the same bits (XLA's
estimates are in BENCHMARKS.md).

Axes: B batch, H height, W width, P pixels, C channels, K 256 levels.
"""
import jax
import jax.numpy as jnp
import numpy as np


def take(values: jax.Array, places: jax.Array) -> jax.Array:
  """Returns values[b, places[b, ...]]; every place has to be in range."""
  def one(v, p):
    return v.at[p].get(mode='promise_in_bounds')
  return jax.vmap(one)(values, places)


def histogram(levels: jax.Array) -> jax.Array:
  """Counts the pixels of each level.

  Args:
    levels: uint8 [B, P], at most 2^24 pixels.

  Returns:
    int32 [B, K].
  """
  return jax.lax.platform_dependent(
      levels, tpu=_count_by_products, default=_count_by_adding)


def look_up(tables: jax.Array, images: jax.Array) -> jax.Array:
  """Returns tables[b, c, images[b, h, w, c]] for every pixel.

  Args:
    tables: uint8 [B, C, K].
    images: uint8 [B, H, W, C].

  Returns:
    uint8 [B, H, W, C].
  """
  return jax.lax.platform_dependent(
      tables, images, tpu=_look_up_by_products, default=_look_up)


def _count_by_adding(levels_BP):
  counts = jnp.zeros(256, jnp.int32)
  return jax.vmap(lambda levels: counts.at[levels].add(1))(levels_BP)


def _count_by_products(levels_BP):
  counts_BIJ = jnp.einsum(
      'bip,bjp->bij', *_split(levels_BP), preferred_element_type=jnp.float32)
  return counts_BIJ.reshape(-1, 256).astype(jnp.int32)


def _split(levels):
  """One-hot high (I) and low (J) 4 bits of [B, ...]: bfloat16 [B, 16, ...]."""
  return (jax.nn.one_hot(bits, 16, axis=1, dtype=jnp.bfloat16)
          for bits in (levels >> 4, levels & 15))


def _look_up(tables_BCK, images):
  batch, channels, levels = tables_BCK.shape
  shelf = np.arange(channels, dtype=np.int32)[None, None, None, :] * levels
  return take(tables_BCK.reshape(batch, channels * levels), images + shelf)


def _look_up_by_products(tables_BCK, images):
  """A product takes 16 entries by I, a sum takes one of them by J."""
  tables_BCIJ = tables_BCK.reshape(*tables_BCK.shape[:2], 16, 16)
  high_BIHWC, low_BJHWC = _split(images)
  # Exact: bfloat16 holds every level, and all addends but one are zero.
  entries_BJHWC = jnp.einsum(
      'bcij,bihwc->bjhwc', tables_BCIJ.astype(jnp.bfloat16), high_BIHWC,
      preferred_element_type=jnp.float32)
  return jnp.sum(entries_BJHWC * low_BJHWC, axis=1).astype(jnp.uint8)
