"""RandAugment on batches of uint8 images, on the accelerator, inside jit.

RandAugment (https://arxiv.org/abs/1909.13719) as the Mixer paper used it
(https://arxiv.org/abs/2105.01601, section 3 and Table 4): 2 layers of magnitude
10, 15 or 20. The reference is big_vision's TensorFlow code,
`big_vision/pp/archive/autoaugment.py`; its traits below are kept on purpose.

  Every layer draws one of 16 ops, uniformly, and always applies it.
  Magnitudes run to 10, so 15 and 20 overshoot. What is uncovered becomes 128.
  Solarize: the threshold 256 m/10 is a uint8 and wraps. m = 15 solarizes at
    128; m = 10 and m = 20 have threshold 0 and invert the whole image.
  Contrast: blends with a constant level that is not the mean of the image. The
    "mean" is the sum of the histogram over 256, hence pixels / 256: 196 at
    224x224, and 255, the limit, from 256x256 on.
  SolarizeAdd adds below 128 only. Posterize keeps int(4 m/10) bits, at least 1.
  Rotate turns about the centre of the image, the shears about its first pixel.

Results equal TensorFlow's on a CPU bit for bit but for two roundings, each of
one level before the blend: the grey of 1 colour in 100,000 (Color), and 3x3
means that are exact integers, where TensorFlow's sum may fall just short of the
integer, depending on its build (Sharpness).

Switching between 16 functions under vmap computes all 16, so a layer is instead
a chain of shared primitives, neutral for the examples that drew another op: one
nearest-neighbour warp, one table of 256 entries a channel, one blend, one mask.

Axes: B batch, H height, W width, C channels (3, or 1), K the 256 levels.
"""
import jax
import jax.numpy as jnp
import numpy as np

OPS = (
    'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize',
    'Color', 'Contrast', 'Brightness', 'Sharpness', 'ShearX', 'ShearY',
    'TranslateX', 'TranslateY', 'Cutout', 'SolarizeAdd')

_FILL = 128
_INDEX = {name: i for i, name in enumerate(OPS)}


def randaugment(images, keys, *, layers, magnitude):
  """Applies `layers` random ops, one after another, to every image.

  Args:
    images: uint8 [B, H, W, C], C = 3 or 1.
    keys: typed PRNG keys [B]. All that is random about example b comes from
      keys[b], so its result does not depend on the rest of the batch.
    layers: number of ops an image goes through; 2 in the paper.
    magnitude: strength shared by all ops, not negative; static under jit.

  Returns:
    uint8 [B, H, W, C].
  """
  height, width = images.shape[1:3]
  # A loop, which XLA does not unroll: otherwise it recomputes the first layer
  # inside each of the passes over the image that the second one makes.
  def one_layer(layer, images):
    ops, negate, centre = draw(keys, layer=layer, height=height, width=width)
    return apply_op(
        images, ops, negate=negate, centre=centre, magnitude=magnitude)
  return jax.lax.fori_loop(0, layers, one_layer, images)


def draw(keys, *, layer, height, width):
  """What one layer draws for each example.

  Args:
    keys: typed PRNG keys [B].
    layer: index of the layer; layers draw independently.
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


def apply_op(images, ops, *, negate, centre, magnitude):
  """Applies to each image the op that is given for it.

  Args:
    images: uint8 [B, H, W, C], C = 3 or 1.
    ops: int32 [B], indices into OPS.
    negate: bool [B], whether to change the sign of the angle, shear or shift;
      of no effect on the other ops.
    centre: int32 [B, 2], row and column of the middle of the cutout; of no
      effect on the other ops.
    magnitude: strength shared by all ops, not negative; static under jit.

  Returns:
    uint8 [B, H, W, C].
  """
  if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[3] not in (
      1, 3):
    raise ValueError('randaugment: images should be uint8 [B, H, W, 1 or 3], '
                     f'but they are {images.dtype} {list(images.shape)}')

  def drawn(name):
    return (ops == _INDEX[name])[:, None, None, None]

  # At most one primitive of an example is not neutral: each may therefore read
  # `images` itself, which leaves XLA one fused pass after the histogram.
  warped = _warp(images, ops, negate, magnitude)
  mapped = _look_up(_tables(images, ops, magnitude), warped)
  mapped = mapped.astype(jnp.float32)
  other = jnp.where(drawn('Color'), _grey(images), mapped)
  other = jnp.where(drawn('Sharpness'), _smooth(images), other)
  blended = _blend(other, mapped, _enhancement(magnitude))  # Neutral if equal.
  hole = drawn('Cutout') & _hole(images.shape, centre, magnitude)
  return jnp.where(hole, _FILL, blended).astype(jnp.uint8)


def _enhancement(magnitude):
  """Factor of Color, Contrast, Brightness and Sharpness; 1 changes nothing."""
  return magnitude / 10 * 1.8 + 0.1


def _halves(x):
  """Splits a float32 number or array into two addends of 12 bits each.

  A compiler may join a product and a sum into one operation that rounds once,
  and then a result just below an integer is truncated to another level than
  TensorFlow's. The product of a half and of a level (9 bits with its sign) is
  exact, hence x * hi + x * lo rounds once on any machine, joined or not.
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


def _transforms(magnitude, height, width):
  """Maps from output to input coordinates.

  Returns:
    float32 NumPy [2, 16, 2, 3]: for both signs and every op a matrix that takes
    the output's (x, y, 1) to the input's (x, y), as tfa.image.transform does.
  """
  level = magnitude / 10
  maps = np.tile(np.eye(2, 3, dtype=np.float32), (2, len(OPS), 1, 1))
  for signed, sign in zip(maps, (1, -1)):
    angle = np.float32(sign * level * 30) * np.float32(np.pi / 180)
    cos, sin = np.cos(angle), np.sin(angle)
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    signed[_INDEX['Rotate']] = (
        (cos, -sin, (right - (cos * right - sin * bottom)) / 2),
        (sin, cos, (bottom - (sin * right + cos * bottom)) / 2))
    signed[_INDEX['ShearX'], 0, 1] = sign * level * 0.3
    signed[_INDEX['ShearY'], 1, 0] = sign * level * 0.3
    signed[_INDEX['TranslateX'], 0, 2] = sign * level * 100
    signed[_INDEX['TranslateY'], 1, 2] = sign * level * 100
  return maps


def _warp(images, ops, negate, magnitude):
  """Rotates, shears or shifts, by nearest neighbour; uint8 [B, H, W, C]."""
  batch, height, width, channels = images.shape
  maps = _transforms(magnitude, height, width)
  # Products are made here and only added on the device, so that pixels half-way
  # between two neighbours (a diagonal, at 45 degrees) round alike everywhere.
  by_column = maps[..., :1] * np.arange(width, dtype=np.float32)
  by_row = maps[..., 1:2] * np.arange(height, dtype=np.float32)
  sign = negate.astype(jnp.int32)
  x_BHW, y_BHW = (
      jax.lax.round(
          jnp.asarray(by_column[:, :, i])[sign, ops][:, None, :]
          + jnp.asarray(by_row[:, :, i])[sign, ops][:, :, None]
          + jnp.asarray(maps[:, :, i, 2])[sign, ops][:, None, None],
          jax.lax.RoundingMethod.AWAY_FROM_ZERO)
      for i in (0, 1))
  inside = (x_BHW >= 0) & (x_BHW < width) & (y_BHW >= 0) & (y_BHW < height)
  position = (jnp.clip(y_BHW, 0, height - 1) * width
              + jnp.clip(x_BHW, 0, width - 1)).astype(jnp.int32)
  pixels = images.reshape(batch, height * width, channels)
  return jnp.where(
      inside[..., None], _take(pixels, position), jnp.uint8(_FILL))


def _take(values, positions):
  """values[b, positions[b, ...]]; every position has to be in range."""
  def one(v, p):
    return v.at[p].get(mode='promise_in_bounds')
  return jax.vmap(one)(values, positions)


def _tables(images, ops, magnitude):
  """What becomes of each level in each channel: uint8 [B, C, 256]."""
  height, width = images.shape[1:3]
  level = magnitude / 10
  v = np.arange(256)
  # TensorFlow's shift is a uint8 too, and limited to 7.
  dropped = min((8 - int(level * 4)) % 256, 7)
  fixed = np.tile(v, (len(OPS), 1))
  fixed[_INDEX['Invert']] = 255 - v
  fixed[_INDEX['Posterize']] = v >> dropped << dropped
  fixed[_INDEX['Solarize']] = np.where(v < int(level * 256) % 256, v, 255 - v)
  fixed[_INDEX['SolarizeAdd']] = np.where(
      v < 128, np.clip(v + int(level * 110), 0, 255), v)
  levels = jnp.asarray(v, jnp.float32)
  grey = min(height * width // 256, 255)
  tables_BK = jnp.asarray(fixed, jnp.uint8).at[
      np.array([_INDEX['Brightness'], _INDEX['Contrast']])].set(jnp.stack([
          _blend(jnp.float32(start), levels, _enhancement(magnitude))
          for start in (0, grey)]).astype(jnp.uint8))[ops]

  counts_BCK = jax.lax.platform_dependent(
      images, tpu=_count_by_comparing, default=_count_by_adding)
  def drawn(name):
    return (ops == _INDEX[name])[:, None, None]
  tables_BCK = jnp.where(
      drawn('Equalize'), _equalize(counts_BCK), tables_BK[:, None, :])
  return jnp.where(
      drawn('AutoContrast'), _autocontrast(counts_BCK), tables_BCK)


# Adding into 256 counters is one cheap step a pixel on CPUs and GPUs (50 times
# faster than comparing, measured on a CPU). A TPU does it one pixel at a time;
# there, 256 comparisons a pixel that fuse with their sum suit its vector unit.
def _count_by_adding(images):
  """Histogram of every channel: int32 [B, C, 256]."""
  batch, height, width, channels = images.shape
  shelf = np.arange(channels, dtype=np.int32)[None, None, None, :] * 256
  def one(p):
    return jnp.zeros(channels * 256, jnp.int32).at[p.reshape(-1)].add(
        1, mode='promise_in_bounds')
  return jax.vmap(one)(images + shelf).reshape(batch, channels, 256)


def _count_by_comparing(images):
  """Histogram of every channel: int32 [B, C, 256]."""
  levels = np.arange(256, dtype=np.uint8)[None, None, None, None, :]
  return jnp.sum(images[..., None] == levels, axis=(1, 2), dtype=jnp.int32)


def _extremes(counts_BCK):
  """Lowest and highest level in use, each int32 [B, C, 1]."""
  used = counts_BCK > 0
  lowest = jnp.argmax(used, axis=-1, keepdims=True)
  highest = 255 - jnp.argmax(used[..., ::-1], axis=-1, keepdims=True)
  return lowest, highest


def _equalize(counts_BCK):
  """Tables that make the histogram flat, PIL's integer way."""
  _, highest = _extremes(counts_BCK)
  pixels = jnp.sum(counts_BCK, axis=-1, keepdims=True)
  last = jnp.take_along_axis(counts_BCK, highest, axis=-1)
  step = (pixels - last) // 255
  below = jnp.cumsum(counts_BCK, axis=-1) - counts_BCK
  # lax.div and not //, whose care for negative numbers costs a second division.
  table = jax.lax.div(below + step // 2, jnp.maximum(step, 1))
  same = np.arange(256, dtype=np.int32)[None, None, :]
  return jnp.where(step == 0, same, jnp.minimum(table, 255)).astype(jnp.uint8)


def _autocontrast(counts_BCK):
  """Tables that stretch the levels in use to 0..255."""
  lowest, highest = _extremes(counts_BCK)
  spread = highest - lowest
  # Divided here, because not every device divides exactly.
  scales = np.float32(255) / np.maximum(np.arange(256, dtype=np.float32), 1)
  hi, lo = (jnp.asarray(half)[spread] for half in _halves(scales))
  same = np.arange(256, dtype=np.float32)[None, None, :]
  stretched = (same * hi + same * lo) - (lowest * hi + lowest * lo)
  stretched = jnp.clip(stretched, 0, 255)
  return jnp.where(spread > 0, stretched, same).astype(jnp.uint8)


def _look_up(tables_BCK, images):
  """tables[b, c, images[b, h, w, c]] for every pixel: uint8 [B, H, W, C]."""
  batch, channels, levels = tables_BCK.shape
  shelf = np.arange(channels, dtype=np.int32)[None, None, None, :] * levels
  return _take(tables_BCK.reshape(batch, channels * levels), images + shelf)


def _grey(images):
  """tf.image.rgb_to_grayscale: float32 [B, H, W, 1], whole numbers.

  It maps 0..255 to 0..1, weighs by (.2989, .587, .114), multiplies by 255.5
  and truncates. Here the weights are whole, so that only one product rounds.
  """
  images = images.astype(jnp.float32)
  if images.shape[3] == 1:
    return images
  red, green, blue = (images[..., i:i + 1] for i in range(3))
  luma = red * 2989 + green * 5870 + blue * 1140
  return jnp.floor(luma * np.float32(255.5 / 255 / 10_000))


def _smooth(images):
  """Mean of 3x3 pixels, the middle one 5 times: float32, whole numbers.

  Rounded down; the outermost pixels stay. Sums of slices and not a convolution,
  which accelerators would round to fewer bits.
  """
  height, width = images.shape[1:3]
  padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  padded = padded.astype(jnp.float32)
  rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
  total = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + images * 4
  # The half keeps multiples of 13 clear of the edge and moves nothing else.
  mean = jnp.floor((total + 0.5) * np.float32(1 / 13))
  inner = np.zeros((1, height, width, 1), bool)
  inner[:, 1:-1, 1:-1] = True
  return jnp.where(inner, mean, images)


def _hole(shape, centre, magnitude):
  """Square of side 2 int(40 m/10), cut at the edges: bool [B, H, W, 1]."""
  reach = int(magnitude / 10 * 40)
  rows, columns = (
      np.arange(size, dtype=np.int32)[None, :] - centre[:, i:i + 1]
      for i, size in enumerate(shape[1:3]))
  rows, columns = ((d >= -reach) & (d < reach) for d in (rows, columns))
  return (rows[:, :, None] & columns[:, None, :])[..., None]
