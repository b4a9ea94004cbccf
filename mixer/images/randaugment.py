"""RandAugment on batches of uint8 images, on the accelerator, inside jit.

RandAugment (https://arxiv.org/abs/1909.13719) as the Mixer paper uses it
(https://arxiv.org/abs/2105.01601, section 3 and Table 4): 2 layers of magnitude
m = 10, 15 or 20. The reference is big_vision's TensorFlow code,
`big_vision/pp/archive/autoaugment.py`. These properties of it are kept on
purpose:

  Every layer draws one of 16 ops, uniformly, and always applies it.
  Magnitudes run to 10, so 15 and 20 overshoot. Uncovered pixels become 128.
  Solarize: the threshold 256 m/10 is a uint8 and wraps. m = 15 solarizes at
    128; m = 10 and m = 20 have threshold 0 and invert the whole image.
  Contrast blends with a constant, not with the mean: it divides the sum of the
    histogram by 256, which is pixels / 256 (196 at 224x224), at most 255.
  SolarizeAdd adds below 128 only. Posterize keeps int(4 m/10) bits, at least 1.
  Rotate turns about the centre of the image, the shears about its first pixel.

Results equal TensorFlow's on a CPU bit for bit, with two exceptions that are
off by one level before the blend: the grey of 1 colour in 100,000 (Color), and
3x3 means that are whole numbers, where TensorFlow's sum may be slightly less
(Sharpness).

Switching between 16 functions under vmap would compute all 16. A layer is
instead a chain of shared primitives that leave an image unchanged unless its
op needs them: one warp, one table of 256 entries a channel, one blend, one
mask.

Axes: B batch, H height, W width, P pixels, C channels (3 or 1), K 256 levels.
"""
import jax
import jax.numpy as jnp
import numpy as np

from mixer.images import look_ups
from mixer.images import warps

OPS = (
    'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize',
    'Color', 'Contrast', 'Brightness', 'Sharpness', 'ShearX', 'ShearY',
    'TranslateX', 'TranslateY', 'Cutout', 'SolarizeAdd')

_FILL = 128
_INDEX = {name: i for i, name in enumerate(OPS)}


def randaugment(images: jax.Array, keys: jax.Array, *, layers: int,
                magnitude: float) -> jax.Array:
  """Applies `layers` random ops, one after another, to every image.

  Args:
    images: uint8 [B, H, W, C], C = 3 or 1.
    keys: typed PRNG keys [B]. All randomness of image b comes from keys[b], so
      its result does not depend on the rest of the batch.
    layers: number of ops that are applied to an image; 2 in the paper.
    magnitude: strength shared by all ops, not negative; static under jit.

  Returns:
    uint8 [B, H, W, C].
  """
  height, width = images.shape[1:3]
  # XLA stores the result of each turn of a loop. Without the loop it computes
  # the first layer again in each of the second layer's passes over the image
  # (1.7 times slower on a CPU).
  def one_layer(layer, images):
    ops, negate, centre = draw(keys, layer=layer, height=height, width=width)
    return apply_op(
        images, ops, negate=negate, centre=centre, magnitude=magnitude)
  return jax.lax.fori_loop(0, layers, one_layer, images)


def draw(keys: jax.Array, *, layer: jax.Array | int, height: int, width: int
         ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws what one layer does to each image, from the image's key alone.

  Args:
    keys: typed PRNG keys [B].
    layer: number of the layer, from 0.
    height: of the images.
    width: of the images.

  Returns:
    ops: int32 [B], indices into OPS, uniform.
    negate: bool [B], whether rotation, shear and translation change sign.
    centre: int32 [B, 2], row and column of the middle of the cutout, uniform.
  """
  def one(key):
    op_key, sign_key, centre_key = jax.random.split(
        jax.random.fold_in(key, layer), 3)
    return (
        jax.random.randint(op_key, (), 0, len(OPS)),
        jax.random.bernoulli(sign_key),
        jax.random.randint(centre_key, (2,), 0, jnp.array([height, width])))
  return jax.vmap(one)(keys)


def apply_op(images: jax.Array, ops: jax.Array, *, negate: jax.Array,
             centre: jax.Array, magnitude: float) -> jax.Array:
  """Applies to each image the op that is given for it.

  Args:
    images: uint8 [B, H, W, C], C = 3 or 1 (Color then changes nothing).
    ops: int32 [B], indices into OPS.
    negate: bool [B], used by rotation, shear and translation; see `draw`.
    centre: int32 [B, 2], used by Cutout; see `draw`.
    magnitude: strength shared by all ops, not negative; static under jit.

  Returns:
    uint8 [B, H, W, C].

  Raises:
    ValueError: if the images are of another dtype or number of channels.
  """
  if images.dtype != jnp.uint8 or images.shape[-1] not in (1, 3):
    raise ValueError('randaugment: expected uint8 images with 1 or 3 channels, '
                     f'got {images.dtype} {images.shape}')

  def drawn(name):
    return (ops == _INDEX[name])[:, None, None, None]

  # At most one primitive changes an image. So each may read `images` itself,
  # which lets XLA fuse all of them into one pass once the tables are there.
  mapped = look_ups.look_up(
      _tables(images, ops, magnitude),
      warps.warp(images, _moves(ops, negate), magnitude, _FILL)
  ).astype(jnp.float32)
  other = jnp.where(drawn('Color'), _grey(images), mapped)
  other = jnp.where(drawn('Sharpness'), _smooth(images), other)
  blended = _blend(other, mapped, _enhancement(magnitude))  # Neutral if equal.
  hole = drawn('Cutout') & _hole(images.shape, centre, magnitude)
  return jnp.where(hole, _FILL, blended).astype(jnp.uint8)


def _enhancement(magnitude):
  """Factor of Color, Contrast, Brightness and Sharpness; 1 changes nothing."""
  return magnitude / 10 * 1.8 + 0.1


def _halves(x):
  """Splits float32 values into two addends of 12 bits each, (hi, lo).

  A compiler may fuse a product with a sum, which then rounds once instead of
  twice; after truncation, a result close to an integer could differ from
  TensorFlow's by a level. A level times a half is exact, so x * hi + x * lo
  rounds once, fused or not.
  """
  x = np.asarray(x, np.float32)
  hi = (x.view(np.uint32) & np.uint32(0xFFFFF000)).view(np.float32)
  return hi, x - hi


def _blend(image1, image2, factor):
  """image1 + factor (image2 - image1) within [0, 255], rounded down; floats."""
  hi, lo = _halves(factor)
  difference = image2 - image1
  scaled = difference * hi + difference * lo
  return jnp.floor(jnp.clip(image1 + scaled, 0, 255))


def _moves(ops, negate):
  """The move of `warps.warp` for each image: int32 [B], 0 for other ops."""
  moves = np.zeros((2, len(OPS)), np.int32)  # By sign and op.
  moves[:, [_INDEX[name] for name in warps.MOVES]] = np.arange(1, 11).reshape(
      2, len(warps.MOVES))
  return jnp.asarray(moves)[negate.astype(jnp.int32), ops]


def _tables(images, ops, magnitude):
  """The new level of each level in each channel: uint8 [B, C, K]."""
  batch, height, width, channels = images.shape
  level, v = magnitude / 10, np.arange(256)
  # TensorFlow's shift is a uint8 as well, and limited to 7.
  shift = min((8 - int(level * 4)) % 256, 7)
  rows = {
      'Invert': 255 - v,
      'Posterize': v >> shift << shift,
      'Solarize': np.where(v < int(level * 256) % 256, v, 255 - v),
      'SolarizeAdd': np.where(v < 128, (v + int(level * 110)).clip(max=255), v)}
  for name, grey in ('Brightness', 0), ('Contrast', height * width // 256):
    rows[name] = _blend(np.float32(min(grey, 255)), v.astype(np.float32),
                        _enhancement(magnitude))
  fixed_BK = jnp.stack(
      [jnp.asarray(rows.get(name, v), jnp.uint8) for name in OPS])[ops]

  def of_channel(levels_BP):
    counts_BK = look_ups.histogram(levels_BP)
    table_BK = jnp.where((ops == _INDEX['Equalize'])[:, None],
                         _equalize(counts_BK), fixed_BK)
    return jnp.where((ops == _INDEX['AutoContrast'])[:, None],
                     _autocontrast(counts_BK), table_BK)

  # This is a loop for the same reason as above: XLA stores its result. It would
  # otherwise compute an entry again for every pixel that looks it up (1.4 times
  # slower on a CPU).
  levels_CBP = jnp.moveaxis(images, 3, 0).reshape(channels, batch, -1)
  return jnp.moveaxis(jax.lax.map(of_channel, levels_CBP), 0, 1)


def _equalize(counts_BK):
  """Tables that make the histogram flat, in PIL's integer way: uint8 [B, K]."""
  below = jnp.cumsum(counts_BK, axis=1) - counts_BK
  step = jnp.where(counts_BK > 0, below, 0).max(axis=1, keepdims=True) // 255
  table = jnp.clip((below + step // 2) // jnp.maximum(step, 1), 0, 255)
  unchanged = np.arange(256, dtype=np.int32)[None, :]
  return jnp.where(step == 0, unchanged, table).astype(jnp.uint8)


def _autocontrast(counts_BK):
  """Tables that stretch the levels in use to 0..255: uint8 [B, K]."""
  used = counts_BK > 0
  lowest = jnp.argmax(used, axis=1, keepdims=True)
  spread = 255 - jnp.argmax(used[:, ::-1], axis=1, keepdims=True) - lowest
  # Divided on the host, because not every device divides exactly.
  scales = np.float32(255) / np.maximum(np.arange(256, dtype=np.float32), 1)
  hi, lo = (jnp.asarray(half)[spread] for half in _halves(scales))
  levels = np.arange(256, dtype=np.float32)[None, :]
  stretched = jnp.clip(
      (levels * hi + levels * lo) - (lowest * hi + lowest * lo), 0, 255)
  return jnp.where(spread > 0, stretched, levels).astype(jnp.uint8)


def _grey(images):
  """tf.image.rgb_to_grayscale: float32 [B, H, W, 1], whole numbers.

  It weighs levels / 255 by (.2989, .587, .114), multiplies by 255.5 and
  truncates. Here the weights are whole numbers, so only one product rounds.
  """
  images = images.astype(jnp.float32)
  if images.shape[3] == 1:
    return images
  red, green, blue = (images[..., i:i + 1] for i in range(3))
  luma = red * 2989 + green * 5870 + blue * 1140
  return jnp.floor(luma * np.float32(255.5 / 255 / 10_000))


def _smooth(images):
  """Mean of 3x3 pixels, the middle one 5 times, rounded down.

  The pixels at the edges stay as they are. These are sums of slices and not a
  convolution, which accelerators round to fewer bits.
  """
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  padded, images = padded.astype(jnp.float32), images.astype(jnp.float32)
  rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
  total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + images * 4
  # Adding a half keeps multiples of 13 away from the next lower integer and
  # changes no other result.
  mean = jnp.floor((total + 0.5) * np.float32(1 / 13))
  return images.at[:, 1:-1, 1:-1].set(mean[:, 1:-1, 1:-1])


def _hole(shape, centre, magnitude):
  """Square of side 2 int(40 m/10), cut at the edges: bool [B, H, W, 1]."""
  reach = int(magnitude / 10 * 40)
  def within(size, middle_B1):
    distance = np.arange(size, dtype=np.int32)[None, :] - middle_B1
    return (distance >= -reach) & (distance < reach)
  rows = within(shape[1], centre[:, :1])[:, :, None, None]
  return rows & within(shape[2], centre[:, 1:])[:, None, :, None]
