"""Augmentation and normalisation on the device, inside the training step.

What is random about one example comes from the example's own key, made from
(seed, epoch, record); what is random about the whole batch comes from the
step's key. So neither depends on how the batch is spread over devices.

Axes: B batch, H height, W width, C channels, K classes.
"""
from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from mixer.core import errors

# (images uint8 [B, H, W, C], targets [B, K], keys [B], key) -> (float32 images
# in [-1, 1], targets).
Augment = Callable[[jax.Array, jax.Array, jax.Array, jax.Array],
                   tuple[jax.Array, jax.Array]]


def make(*, flip: bool = False, pad_crop: int = 0, rotate: float = 0.0,
         zoom: float = 0.0, shift: float = 0.0, randaugment_layers: int = 0,
         randaugment_magnitude: float = 0, erase: float = 0.0,
         mixup: float = 0.0, cutmix: float = 0.0) -> Augment:
  """Makes the training augmentation from a config's `augment` section.

  Args:
    flip: whether to mirror left and right, with probability 1/2.
    pad_crop: pixels of zero padding around the image, from which a window of
      the image's own size is then cropped at random.
    rotate: largest angle in degrees, in either direction.
    zoom: largest change of scale: factors of 1 - zoom to 1 + zoom, drawn for
      each axis.
    shift: largest shift, as a share of the side.
    randaugment_layers: number of RandAugment ops in a row (2 in the paper).
    randaugment_magnitude: m of Table 4 (0, 10, 15 or 20).
    erase: probability that a rectangle of noise hides a part of the image.
    mixup: p of Beta(p, p), or 0 for no mixup. A batch has one ratio; the
      partner of an example is the one before it in the batch; labels are mixed
      too.
    cutmix: p of Beta(p, p), or 0 for no CutMix. A batch has one box, which
      shows the same partner; labels are mixed by area. With mixup too, each
      batch uses one of the two, at even odds.

  Returns:
    augment(images uint8 [B, H, W, C], targets [B, K], keys [B], key) ->
    (float32 images in [-1, 1], targets).

  Raises:
    UserError: if a value is out of range.
  """
  if not 0 <= randaugment_layers <= 10 or randaugment_magnitude < 0:
    raise errors.UserError(
        'augment: expected randaugment_layers from 0 to 10 and '
        'randaugment_magnitude >= 0, got '
        f'{randaugment_layers} and {randaugment_magnitude}')
  if mixup < 0 or pad_crop < 0 or not 0 <= zoom < 1:
    raise errors.UserError(
        f'augment: expected mixup >= 0, pad_crop >= 0 and 0 <= zoom < 1, got '
        f'{mixup}, {pad_crop} and {zoom}')
  if rotate < 0 or shift < 0:
    raise errors.UserError('augment: expected rotate >= 0 and shift >= 0, got '
                           f'{rotate} and {shift}')
  if not 0 <= erase <= 1:
    raise errors.UserError(
        f'augment.erase: expected a probability from 0 to 1, got {erase}')
  if not 0 <= cutmix < math.inf:
    raise errors.UserError(
        f'augment.cutmix: expected a finite number >= 0, got {cutmix}')
  if randaugment_layers and randaugment_magnitude:
    from mixer.images import randaugment

  def augment(images, targets, keys, key):
    stream = lambda n: jax.vmap(lambda k: jax.random.fold_in(k, n))(keys)
    if pad_crop:
      images = jax.vmap(lambda x, k: _pad_crop(x, k, pad_crop))(
          images, stream(0))
    if flip:
      images = jax.vmap(_flip)(images, stream(1))
    if rotate or zoom or shift:
      images = jax.vmap(lambda x, k: _warp(x, k, rotate, zoom, shift))(
          images, stream(2))
    if randaugment_layers and randaugment_magnitude:
      images = randaugment.randaugment(
          images, stream(3), layers=randaugment_layers,
          magnitude=randaugment_magnitude)
    images = normalise(images)
    if erase:
      from mixer.images import rectangles  # few runs cover any
      images = jax.vmap(lambda x, k: rectangles.erase(x, k, erase))(
          images, stream(4))
    return _mixed(images, targets, key, mixup, cutmix)

  return augment


def _mixed(images, targets, key, mixup, cutmix):
  """Mixup, CutMix, or one of the two at random."""
  if not cutmix:
    return mix(images, targets, key, mixup) if mixup else (images, targets)
  from mixer.images import rectangles  # few runs cover any
  if not mixup:
    return rectangles.cut(images, targets, key, cutmix)
  choice, key = jax.random.split(key)
  return jax.lax.cond(
      jax.random.bernoulli(choice), lambda x, t: mix(x, t, key, mixup),
      lambda x, t: rectangles.cut(x, t, key, cutmix), images, targets)


def normalise(images: jax.Array) -> jax.Array:
  """Returns pixel values from 0 to 255 as float32 in [-1, 1]."""
  return (images.astype(jnp.float32) - 127.5) / 127.5


def mix(images: jax.Array, targets: jax.Array, key: jax.Array, p: float
        ) -> tuple[jax.Array, jax.Array]:
  """Mixup: a x + (1 - a) roll(x), a = max(b, 1 - b), b ~ Beta(p, p).

  Args:
    images: float32 [B, H, W, C].
    targets: float32 [B, K].
    key: PRNG key of the step.
    p: of the Beta distribution, above 0.

  Returns:
    (images, targets), mixed.
  """
  b = jax.random.beta(key, p, p)
  a = jnp.maximum(b, 1 - b)
  blend = lambda x: a * x + (1 - a) * jnp.roll(x, 1, axis=0)
  return blend(images), blend(targets)


def _flip(image_HWC, key):
  return jnp.where(jax.random.bernoulli(key), image_HWC[:, ::-1], image_HWC)


def _pad_crop(image_HWC, key, pad):
  padded = jnp.pad(image_HWC, ((pad, pad), (pad, pad), (0, 0)))
  top, left = jax.random.randint(key, (2,), 0, 2 * pad + 1)
  return jax.lax.dynamic_slice(padded, (top, left, 0), image_HWC.shape)


def _warp(image_HWC, key, rotate, zoom, shift):
  """A bilinear affine warp about the centre; the outside is black."""
  height, width, _ = image_HWC.shape
  draw = jax.random.uniform(key, (5,), minval=-1.0, maxval=1.0)
  angle = draw[0] * rotate * (jnp.pi / 180)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
  x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
  y = y - draw[3] * shift * height
  x = x - draw[4] * shift * width
  from_y = (cos * y - sin * x) * (1 + draw[1] * zoom) + (height - 1) / 2
  from_x = (sin * y + cos * x) * (1 + draw[2] * zoom) + (width - 1) / 2
  sample = lambda channel: jax.scipy.ndimage.map_coordinates(
      channel, [from_y, from_x], order=1, mode='constant', cval=0.0)
  warped = jax.vmap(sample, in_axes=2, out_axes=2)(
      image_HWC.astype(jnp.float32))
  return jnp.round(warped).astype(image_HWC.dtype)
