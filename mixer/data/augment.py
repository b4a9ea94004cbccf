"""Augmentation and normalisation on the device, inside the training step.

Per-example draws come from the example's own key, made from (seed, epoch,
record); what concerns the whole batch comes from the step's key. So neither
depends on how the batch is spread over devices.

Axes: B batch, H height, W width, C channels, K classes.
"""
import jax
import jax.numpy as jnp

from mixer.core import checks
from mixer.data import randaugment


def make(*, flip=False, pad_crop=0, rotate=0.0, zoom=0.0, shift=0.0,
         randaugment_layers=0, randaugment_magnitude=0, mixup=0.0):
  """The training augmentation; a config's `augment` section.

  Args:
    flip: whether to mirror left and right, with probability 1/2.
    pad_crop: pixels of zero padding around the image before a crop of its own
      size is cut at random.
    rotate: largest angle, in degrees, either way.
    zoom: largest change of scale: factors of 1 - zoom to 1 + zoom, one an
      axis.
    shift: largest shift, as a share of the side.
    randaugment_layers: RandAugment operations in a row (the paper: 2).
    randaugment_magnitude: m of table 4 (0, 10, 15 or 20).
    mixup: p of Beta(p, p), 0 for none. One ratio a batch; the partner of an
      example is the one before it in the batch; labels are mixed too.

  Returns:
    augment(images uint8 [B, H, W, C], targets [B, K], keys [B], key) ->
    (float32 images in [-1, 1], targets).
  """
  if not 0 <= randaugment_layers <= 10 or randaugment_magnitude < 0:
    raise checks.UserError(
        'augment: expected 0 to 10 randaugment_layers and a magnitude of at '
        f'least 0, got {randaugment_layers} and {randaugment_magnitude}')
  if mixup < 0 or pad_crop < 0 or not 0 <= zoom < 1:
    raise checks.UserError(
        f'augment: expected mixup >= 0, pad_crop >= 0 and 0 <= zoom < 1, got '
        f'{mixup}, {pad_crop} and {zoom}')
  if rotate < 0 or shift < 0:
    raise checks.UserError('augment: expected rotate >= 0 and shift >= 0, got '
                           f'{rotate} and {shift}')

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
    if mixup:
      images, targets = mix(images, targets, key, mixup)
    return images, targets

  return augment


def normalise(images):
  """Pixel values 0 to 255 as float32 in [-1, 1]."""
  return (images.astype(jnp.float32) - 127.5) / 127.5


def mix(images, targets, key, p):
  """Mixup: a x + (1 - a) roll(x), a = max(b, 1 - b), b ~ Beta(p, p)."""
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
  """A bilinear affine warp about the centre; outside is black."""
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
