"""Augmentations that cover a rectangle of an image: CutMix and random erasing.

Axes: B batch, H height, W width, C channels, K classes.
"""
import math

import jax
import jax.numpy as jnp


def cut(images: jax.Array, targets: jax.Array, key: jax.Array, p: float
        ) -> tuple[jax.Array, jax.Array]:
  """CutMix (https://arxiv.org/abs/1905.04899): x, and roll(x) within a box.

  The box has the image's proportions and 1 - b of its area, b ~ Beta(p, p). Its
  centre is uniform, and it is cut at the borders of the image. Labels are
  therefore mixed by the share of pixels that are left: a x + (1 - a) roll(x),
  where a is the share of x.

  Args:
    images: float32 [B, H, W, C].
    targets: float32 [B, K].
    key: PRNG key of the step.
    p: of the Beta distribution, above 0.

  Returns:
    (images, targets), mixed.
  """
  ratio_key, centre_key = jax.random.split(key)
  side = jnp.sqrt(1 - jax.random.beta(ratio_key, p, p))
  size = jnp.array(images.shape[1:3])
  sides = jnp.floor(side * size).astype(jnp.int32)
  corner = jax.random.randint(centre_key, (2,), 0, size) - sides // 2
  box = _box(images.shape[1:3], corner, sides)
  a = jnp.mean(~box)
  partner = lambda x: jnp.roll(x, 1, axis=0)
  return (jnp.where(box[None], partner(images), images),
          a * targets + (1 - a) * partner(targets))


def erase(image_HWC: jax.Array, key: jax.Array, probability: float
          ) -> jax.Array:
  """Random erasing (https://arxiv.org/abs/1708.04896) of a normalised image.

  The area is uniform in 2% to 33% of the image, and height over width is
  log-uniform in 0.3 to 3.3, as in torchvision; the place is uniform within the
  image. If a side does not fit, the paper draws again; here it is cut to the
  image's side. The noise is the paper's, a value in [0, 255] for each pixel and
  channel, which is uniform over [-1, 1] after normalisation.
  """
  draw_key, noise_key = jax.random.split(key)
  draw = jax.random.uniform(draw_key, (5,))
  size = jnp.array(image_HWC.shape[:2])
  area = (0.02 + draw[1] * (0.33 - 0.02)) * math.prod(image_HWC.shape[:2])
  aspect = 0.3 * (3.3 / 0.3)**draw[2]
  sides = jnp.sqrt(area * jnp.stack([aspect, 1 / aspect]))
  sides = jnp.clip(jnp.round(sides).astype(jnp.int32), 1, size)
  corner = (draw[3:] * (size - sides + 1)).astype(jnp.int32)
  box = _box(image_HWC.shape[:2], corner, sides)
  noise = jax.random.uniform(
      noise_key, image_HWC.shape, minval=-1.0, maxval=1.0)
  return jnp.where(box & (draw[0] < probability), noise, image_HWC)


def _box(shape, corner, sides):
  """Returns bool [H, W, 1], the pixels in a box; corner, sides: int32 [2]."""
  rows, columns = (
      (jnp.arange(n) >= start) & (jnp.arange(n) < start + side)
      for n, start, side in zip(shape, corner, sides))
  return rows[:, None, None] & columns[None, :, None]
