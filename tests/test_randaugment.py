"""RandAugment against PIL, and against NumPy where PIL differs.

The images are two photos and noise, with H != W so that axes cannot be
exchanged. All comparisons are exact unless a tolerance is stated with its
reason.
"""
import functools
import re

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pictures
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps
import pytest

from mixer.images import look_ups
from mixer.images import randaugment
from mixer.images import warps

HEIGHT, WIDTH = 120, 160
SIGNED = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY')
MAGNITUDES = (10, 15, 20)  # Those of the paper's Table 4.


@functools.cache
def photos(height=HEIGHT, width=WIDTH):
  """Two photos, noise, and noise of few levels: uint8 [4, H, W, 3]."""
  china, flower = pictures.photos()
  rng = np.random.default_rng(0)
  noise = rng.integers(0, 256, (height, width, 3), np.uint8)
  # Another range in each channel, so that channels cannot share a table.
  dull = rng.integers(
      [9, 60, 100], [77, 199, 131], (height, width, 3), np.uint8)
  return np.stack([china[100:100 + height, 200:200 + width],
                   flower[150:150 + height, 250:250 + width], noise, dull])


@functools.partial(jax.jit, static_argnames='magnitude')
def jitted_op(images, ops, negate, centre, magnitude):
  return randaugment.apply_op(
      images, ops, negate=negate, centre=centre, magnitude=magnitude)


def apply(name, images, magnitude, negate=False, centre=(0, 0)):
  """Applies the op `name` to every image of a NumPy batch."""
  batch = len(images)
  return np.asarray(jitted_op(
      jnp.asarray(images),
      jnp.full(batch, randaugment.OPS.index(name), jnp.int32),
      jnp.full(batch, negate), jnp.tile(jnp.array([centre], jnp.int32),
                                        (batch, 1)), magnitude))


def by_pil(function, images):
  return np.stack([np.asarray(function(Image.fromarray(i))) for i in images])


def blend(image1, image2, factor):
  """Blends with PIL, which computes in float32 and truncates as TensorFlow
  does."""
  return np.asarray(Image.blend(
      Image.fromarray(image1), Image.fromarray(image2), factor))


def factor(magnitude):
  return 1.8 * magnitude / 10 + 0.1


def levels_off(images1, images2):
  return np.abs(images1.astype(int) - images2.astype(int)).max()


def test_ops_have_the_names_and_order_of_the_reference():
  assert randaugment.OPS == (
      'AutoContrast', 'Equalize', 'Invert', 'Rotate', 'Posterize', 'Solarize',
      'Color', 'Contrast', 'Brightness', 'Sharpness', 'ShearX', 'ShearY',
      'TranslateX', 'TranslateY', 'Cutout', 'SolarizeAdd')


# Tables of 256 entries.


def test_invert_and_equalize_equal_pil():
  images = photos()
  np.testing.assert_array_equal(
      apply('Invert', images, 10), by_pil(ImageOps.invert, images))
  np.testing.assert_array_equal(
      apply('Equalize', images, 10), by_pil(ImageOps.equalize, images))


def test_equalize_keeps_images_of_few_pixels_and_of_one_level():
  few = photos()[:, :12, :16]  # Under 255 pixels: the step is 0.
  np.testing.assert_array_equal(apply('Equalize', few, 10), few)
  flat = np.full((1, HEIGHT, WIDTH, 3), 77, np.uint8)
  np.testing.assert_array_equal(apply('Equalize', flat, 10), flat)


def test_autocontrast_stretches_each_channel_to_the_full_range():
  images = photos()
  got = apply('AutoContrast', images, 10)
  lo = images.min(axis=(1, 2), keepdims=True).astype(np.float32)
  hi = images.max(axis=(1, 2), keepdims=True).astype(np.float32)
  scale = np.float32(255) / (hi - lo)
  oracle = np.clip(images * scale + -lo * scale, 0, 255).astype(np.uint8)
  np.testing.assert_array_equal(got, oracle)
  # PIL computes in float64, so it may truncate to another level.
  assert levels_off(got, by_pil(ImageOps.autocontrast, images)) <= 1
  assert np.ptp(got[3]) >= 254 > np.ptp(images[3])
  flat = np.full((1, HEIGHT, WIDTH, 3), 77, np.uint8)
  np.testing.assert_array_equal(apply('AutoContrast', flat, 10), flat)


@pytest.mark.parametrize('magnitude, bits', [(5, 2), (10, 4), (15, 6), (20, 8)])
def test_posterize_equals_pil(magnitude, bits):
  images = photos()
  np.testing.assert_array_equal(
      apply('Posterize', images, magnitude),
      by_pil(lambda i: ImageOps.posterize(i, bits), images))


def test_posterize_keeps_at_least_one_bit():
  np.testing.assert_array_equal(
      apply('Posterize', photos(), 0), photos() & 0x80)


@pytest.mark.parametrize(
    'magnitude, threshold', [(5, 128), (10, 0), (15, 128), (20, 0), (17, 179)])
def test_the_threshold_of_solarize_wraps(magnitude, threshold):
  images = photos()
  np.testing.assert_array_equal(
      apply('Solarize', images, magnitude),
      by_pil(lambda i: ImageOps.solarize(i, threshold), images))


@pytest.mark.parametrize('magnitude, addition', [(10, 110), (15, 165)])
def test_solarize_add_brightens_dark_pixels_only(magnitude, addition):
  images = photos()
  bright = np.minimum(images.astype(int) + addition, 255)
  np.testing.assert_array_equal(
      apply('SolarizeAdd', images, magnitude),
      np.where(images < 128, bright, images))


# Blends.


@pytest.mark.parametrize('magnitude', (0, 3, 5) + MAGNITUDES)
def test_brightness_equals_pil(magnitude):
  images = photos()
  np.testing.assert_array_equal(
      apply('Brightness', images, magnitude),
      by_pil(lambda i: ImageEnhance.Brightness(i).enhance(factor(magnitude)),
             images))


@pytest.mark.parametrize('magnitude', (0,) + MAGNITUDES)
@pytest.mark.parametrize(
    'size, level', [((120, 160), 75), ((224, 224), 196), ((260, 300), 255)])
def test_contrast_blends_with_a_constant(size, level, magnitude):
  images = photos(*size)
  constant = np.full_like(images[0], level)
  np.testing.assert_array_equal(
      apply('Contrast', images, magnitude),
      [blend(constant, i, factor(magnitude)) for i in images])


@pytest.mark.parametrize('magnitude', (0,) + MAGNITUDES)
def test_color_blends_with_the_grey_of_the_reference(magnitude):
  images = photos()
  weighted = images.astype(int) @ np.array([2989, 5870, 1140])
  grey = (weighted * 511 // (510 * 10_000)).astype(np.uint8)
  grey = np.repeat(grey[..., None], 3, axis=-1)
  got = apply('Color', images, magnitude)
  np.testing.assert_array_equal(
      got, [blend(g, i, factor(magnitude)) for g, i in zip(grey, images)])
  # PIL rounds its grey to the nearest level, which can change a level by one
  # times |1 - factor|; truncating adds to it.
  by_eye = by_pil(
      lambda i: ImageEnhance.Color(i).enhance(factor(magnitude)), images)
  assert levels_off(got, by_eye) <= np.ceil(abs(1 - factor(magnitude)))


@pytest.mark.parametrize('magnitude', (0,) + MAGNITUDES)
def test_sharpness_blends_with_a_smoothed_image(magnitude):
  images = photos()
  smooth = images.copy()
  near = np.lib.stride_tricks.sliding_window_view(images, (3, 3), (1, 2))
  total = near.sum((-1, -2), dtype=int) + 4 * images[:, 1:-1, 1:-1].astype(int)
  smooth[:, 1:-1, 1:-1] = total // 13
  got = apply('Sharpness', images, magnitude)
  np.testing.assert_array_equal(
      got, [blend(s, i, factor(magnitude)) for s, i in zip(smooth, images)])
  # PIL rounds its mean to the nearest level, as above.
  by_eye = by_pil(
      lambda i: ImageEnhance.Sharpness(i).enhance(factor(magnitude)), images)
  assert levels_off(got, by_eye) <= np.ceil(abs(1 - factor(magnitude)))


def test_blends_with_factor_one_change_nothing():
  for name in 'Color', 'Contrast', 'Brightness', 'Sharpness':
    np.testing.assert_array_equal(apply(name, photos(), 5), photos())


# Warps.


def warp(images, matrix):
  """The expected warp: pixel (x, y) shows `matrix` (x, y, 1), else 128."""
  height, width = images.shape[1:3]
  y, x = np.indices((height, width), np.float32)
  (a, b, c), (d, e, f) = np.asarray(matrix, np.float32)
  u, v = a * x + b * y + c, d * x + e * y + f
  # To the nearest, half-way cases away from zero.
  u, v = (np.trunc(w + np.copysign(np.float32(0.5), w)).astype(int)
          for w in (u, v))
  inside = (0 <= u) & (u < width) & (0 <= v) & (v < height)
  moved = images[:, v.clip(0, height - 1), u.clip(0, width - 1)]
  return np.where(inside[None, :, :, None], moved, 128)


def share_differing(images1, images2):
  return np.any(images1 != images2, axis=-1).mean()


def pil_warp(images, matrix):
  """PIL's nearest-neighbour affine map, whose pixels begin at their corners."""
  (a, b, c), (d, e, f) = matrix
  corner = (a, b, c - (a + b - 1) / 2, d, e, f - (d + e - 1) / 2)
  return by_pil(lambda i: i.transform(
      i.size, Image.Transform.AFFINE, corner, Image.Resampling.NEAREST,
      fillcolor=(128,) * 3), images)


@pytest.mark.parametrize('negate', [False, True])
@pytest.mark.parametrize('magnitude', (3,) + MAGNITUDES)
def test_shears_equal_a_nearest_neighbour_warp(magnitude, negate):
  images = photos()
  s = 0.3 * magnitude / 10 * (-1 if negate else 1)
  for name, matrix in (('ShearX', ((1, s, 0), (0, 1, 0))),
                       ('ShearY', ((1, 0, 0), (s, 1, 0)))):
    got = apply(name, images, magnitude, negate)
    np.testing.assert_array_equal(got, warp(images, matrix))
    # One row in ten of a shear by 0.45 falls half-way between pixels, and PIL
    # rounds some of them the other way. A wrong sign or axis would change most
    # pixels.
    assert share_differing(got, pil_warp(images, matrix)) < 0.1


@pytest.mark.parametrize('negate', [False, True])
@pytest.mark.parametrize('magnitude', (3,) + MAGNITUDES)
def test_rotation_equals_a_nearest_neighbour_warp(magnitude, negate):
  images = photos()
  degrees = 30 * magnitude / 10 * (-1 if negate else 1)
  got = apply('Rotate', images, magnitude, negate)
  c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  x, y = (WIDTH - 1) / 2, (HEIGHT - 1) / 2
  matrix = ((c, -s, x - c * x + s * y), (s, c, y - s * x - c * y))
  # Half-way pixels depend on the last bit of the coordinates. At most 0.6% are
  # half-way: the diagonal at 45 degrees.
  assert share_differing(got, warp(images, matrix)) < 0.01
  assert share_differing(got, by_pil(lambda i: i.rotate(
      degrees, Image.Resampling.NEAREST, fillcolor=(128,) * 3), images)) < 0.01


@pytest.mark.parametrize('negate', [False, True])
def test_translations_shift_by_whole_pixels_and_fill_with_grey(negate):
  images = photos()
  for magnitude, pixels in (5, 50), (10, 100):
    x, y = (np.full_like(images, 128) for _ in range(2))
    if negate:
      x[:, :, pixels:] = images[:, :, :-pixels]
      y[:, pixels:] = images[:, :-pixels]
    else:
      x[:, :, :-pixels] = images[:, :, pixels:]
      y[:, :-pixels] = images[:, pixels:]
    np.testing.assert_array_equal(
        apply('TranslateX', images, magnitude, negate), x)
    np.testing.assert_array_equal(
        apply('TranslateY', images, magnitude, negate), y)
  np.testing.assert_array_equal(
      apply('TranslateY', images, 15, negate), np.full_like(images, 128))


# Cutout.


@pytest.mark.parametrize('magnitude, reach', [(3, 12), (10, 40), (15, 60)])
@pytest.mark.parametrize('centre', [(50, 70), (0, 0), (119, 3), (30, 159)])
def test_cutout_fills_a_square_with_grey(magnitude, reach, centre):
  images = photos()
  expected = images.copy()
  row, column = centre
  expected[:, max(row - reach, 0):row + reach,
           max(column - reach, 0):column + reach] = 128
  np.testing.assert_array_equal(
      apply('Cutout', images, magnitude, centre=centre), expected)
  np.testing.assert_array_equal(apply('Cutout', images, 0), images)


# All ops.


@pytest.mark.parametrize('name', randaugment.OPS)
def test_one_channel_is_treated_like_each_of_three(name):
  grey = photos()[..., :1]
  got = apply(name, grey, 15, centre=(50, 70))
  assert got.shape == grey.shape
  if name == 'Color':
    np.testing.assert_array_equal(got, grey)
  else:
    tiled = apply(name, np.tile(grey, (1, 1, 1, 3)), 15, centre=(50, 70))
    np.testing.assert_array_equal(got, tiled[..., :1])
    assert (got != grey).any()


def test_only_moves_depend_on_the_sign():
  for name in randaugment.OPS:
    same = np.array_equal(apply(name, photos(), 10, negate=False),
                          apply(name, photos(), 10, negate=True))
    assert same == (name not in SIGNED), name


def test_a_batch_of_different_ops_equals_each_op_alone():
  images = np.stack([photos()[i % 4] for i in range(16)])
  negate, centre = np.arange(16) % 3 == 0, np.arange(32).reshape(16, 2) * 4
  mixed = np.asarray(jitted_op(
      jnp.asarray(images), jnp.arange(16), jnp.asarray(negate),
      jnp.asarray(centre, jnp.int32), 15))
  for b, name in enumerate(randaugment.OPS):
    alone = apply(name, images[b:b + 1], 15, negate[b], centre[b])
    np.testing.assert_array_equal(mixed[b], alone[0], err_msg=name)


# The forms for TPUs, which run on any device, against the others.


def test_both_histograms_agree():
  levels = photos()[..., 0].reshape(4, -1).copy()
  levels[0] = 77  # More than bfloat16 can count.
  expected = [np.bincount(row, minlength=256) for row in levels]
  for count in look_ups._count_by_adding, look_ups._count_by_products:
    np.testing.assert_array_equal(count(jnp.asarray(levels)), expected)


@pytest.mark.parametrize('channels', [1, 3])
def test_both_look_ups_agree(channels):
  images = photos()[..., :channels]
  tables = np.random.default_rng(0).integers(
      0, 256, (4, channels, 256), np.uint8)
  example = np.arange(4)[:, None, None, None]
  expected = tables[example, np.arange(channels), images]
  for look_up in look_ups._look_up, look_ups._look_up_by_products:
    got = look_up(jnp.asarray(tables), jnp.asarray(images))
    assert got.dtype == jnp.uint8
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize('magnitude', (3,) + MAGNITUDES)
def test_both_warps_agree(magnitude):
  places = jnp.asarray(warps._places(magnitude, HEIGHT, WIDTH))
  moves = jnp.asarray(np.random.default_rng(0).permutation(11))
  pixels = jnp.asarray(np.random.default_rng(1).integers(
      0, 256, (11, HEIGHT * WIDTH + 1, 3), np.uint8))
  got = [move(pixels, places, moves) for move in (
      warps._move_each, warps._move_all)]
  assert got[0].dtype == got[1].dtype == jnp.uint8
  np.testing.assert_array_equal(*got)
  for b, move in enumerate(moves):
    np.testing.assert_array_equal(got[1][b], pixels[b][places[move]])


@pytest.mark.parametrize('platform, addresses, products', [
    ('tpu', HEIGHT * WIDTH, 2), ('cuda', 4 * HEIGHT * WIDTH * 3, 0),
    ('cpu', 4 * HEIGHT * WIDTH * 3, 0)])
def test_a_program_for_tpus_gathers_whole_rows_of_the_batch_only(
    platform, addresses, products):
  """The program before compilation shows this by its largest gather and its
  products."""
  program = jitted.trace(
      photos(), keys_of(0, 4), layers=1, magnitude=15).lower(
          lowering_platforms=(platform,)).as_text()
  shapes = re.findall(r'"stablehlo.gather".*, tensor<([0-9x]+)x1xi32>', program)
  sizes = [np.prod([int(n) for n in shape.split('x')]) for shape in shapes]
  assert max(sizes) == addresses
  assert program.count('stablehlo.dot_general') == products


# Draws and layers.


def keys_of(seed, batch):
  return jax.random.split(jax.random.key(seed), batch)


jitted = jax.jit(randaugment.randaugment,
                 static_argnames=('layers', 'magnitude'))


def test_draws_are_uniform_and_independent():
  count = 16 * 1000
  draws = [randaugment.draw(keys_of(0, count), layer=layer, height=5, width=8)
           for layer in (0, 1)]
  (ops0, negate0, centre0), (ops1, negate1, _) = jax.tree.map(np.asarray, draws)

  def chi2(cells, number):
    mean = count / number
    return ((np.bincount(cells, minlength=number) - mean)**2).sum() / mean
  # Bounds: the 99.9th percentiles for number - 1 degrees of freedom.
  assert chi2(ops0, 16) < 37.7
  assert chi2(ops1, 16) < 37.7
  assert chi2(ops0 * 16 + ops1, 256) < 330.5
  assert chi2(ops0 * 2 + negate0, 32) < 61.1
  assert chi2(negate0 * 2 + negate1, 4) < 16.3
  assert chi2(centre0[:, 0] * 8 + centre0[:, 1], 40) < 72.1
  assert chi2(ops0 * 8 + centre0[:, 1], 128) < 182.0


def test_randaugment_applies_the_drawn_ops_one_after_another():
  images, keys = photos(), keys_of(1, 4)
  expected = jnp.asarray(images)
  for layer in range(3):
    expected = jitted_op(expected, *randaugment.draw(
        keys, layer=layer, height=HEIGHT, width=WIDTH), 15)
  got = jitted(images, keys, layers=3, magnitude=15)
  np.testing.assert_array_equal(got, expected)
  np.testing.assert_array_equal(
      jitted(images, keys, layers=0, magnitude=15), images)


def test_an_example_does_not_depend_on_its_batch():
  images = np.concatenate([photos()] * 4)
  keys = keys_of(2, len(images))
  whole = np.asarray(jitted(images, keys, layers=2, magnitude=15))
  assert whole.dtype == np.uint8 and (whole != images).any((1, 2, 3)).sum() > 8
  for b in range(0, len(images), 3):
    alone = jitted(
        images[b:b + 1], keys[b:b + 1], layers=2, magnitude=15)
    np.testing.assert_array_equal(alone[0], whole[b])
  order = np.random.default_rng(0).permutation(len(images))
  moved = jitted(images[order], keys[order], layers=2, magnitude=15)
  np.testing.assert_array_equal(moved, whole[order])


def test_results_are_the_same_with_and_without_jit():
  images, keys = photos(), keys_of(3, 4)
  first = jitted(images, keys, layers=2, magnitude=15)
  again = jitted(images, keys, layers=2, magnitude=15)
  plain = randaugment.randaugment(
      jnp.asarray(images), keys, layers=2, magnitude=15)
  np.testing.assert_array_equal(first, again)
  np.testing.assert_array_equal(first, plain)
  other = jitted(images, keys_of(4, 4), layers=2, magnitude=15)
  assert (np.asarray(first) != np.asarray(other)).any()


def test_a_sharded_batch_needs_no_communication():
  mesh = Mesh(np.array(jax.devices()), ('data',))
  split = NamedSharding(mesh, PartitionSpec('data'))
  images = np.tile(photos()[:, :40, :48], (jax.device_count(), 1, 1, 1))
  keys = keys_of(5, len(images))
  args = jax.device_put((images, keys), split)
  step = jax.jit(
      functools.partial(randaugment.randaugment, layers=2, magnitude=15),
      in_shardings=split, out_shardings=split)
  compiled = step.lower(*args).compile()
  for collective in 'all-gather', 'all-reduce', 'all-to-all', 'collective-':
    assert collective not in compiled.as_text(), collective
  np.testing.assert_array_equal(
      compiled(*args), jitted(images, keys, layers=2, magnitude=15))


@pytest.mark.parametrize('images', [
    np.zeros((2, 8, 8, 3), np.float32), np.zeros((2, 8, 8, 4), np.uint8)])
def test_images_of_another_dtype_or_number_of_channels_are_refused(images):
  with pytest.raises(ValueError, match=f'{images.dtype}.*{images.shape[-1]}'):
    randaugment.randaugment(
        jnp.asarray(images), keys_of(0, 2), layers=1, magnitude=15)
