"""Augmentation on the device: keyed by example, and the same on any mesh.

RandAugment itself is tested in test_randaugment.py.
"""
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from mixer.core import errors
from mixer.images import augment
from mixer.images.rectangles import cut
from mixer.training import step as steps

B, SIDE, CLASSES = 16, 12, 5
SETTINGS = {
    'flip': dict(flip=True),
    'pad_crop': dict(pad_crop=3),
    'warp': dict(rotate=15.0, zoom=0.15, shift=0.1),
    'erase': dict(erase=1.0),
    'all': dict(flip=True, pad_crop=2, rotate=30.0, zoom=0.2, shift=0.2,
                randaugment_layers=2, randaugment_magnitude=15, erase=0.5),
}
SHAPES = ((12, 12, 3), (6, 40, 1), (40, 7, 3), (4, 4, 1))


def pixels(count=B, shape=(SIDE, SIDE, 3)):
  return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def targets(count=B):
  return np.eye(CLASSES, dtype=np.float32)[np.arange(count) % CLASSES]


def keys(count=B, epoch=0):
  return steps.of_examples(
      steps.stream(0, 'augment'), jnp.full(count, epoch, jnp.int32),
      jnp.arange(count, dtype=jnp.int32))


@functools.cache
def jitted(settings):
  return jax.jit(augment.make(**dict(settings)))


def apply(settings, images, examples, step=0):
  """Augmented images and targets, by the jitted function."""
  return jax.device_get(jitted(tuple(settings.items()))(
      images, targets(len(images)), examples, jax.random.key(step)))


def normalised(images):
  """The images normalised only, with the rounding of a jitted function."""
  return np.asarray(jax.jit(augment.normalise)(images))


def levels_of(images):
  """The levels from 0 to 255 of normalised images."""
  return np.rint(images * 127.5 + 127.5).astype(np.uint8)


def test_normalise_maps_levels_to_minus_one_to_one():
  """0 is -1 and 255 is 1, in float32; levels are 2/255 apart."""
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  out = np.asarray(augment.normalise(levels))
  assert out.dtype == np.float32
  np.testing.assert_allclose(
      out.ravel(), np.linspace(-1, 1, 256), rtol=0, atol=1e-7)
  assert out.min() == -1 and out.max() == 1
  np.testing.assert_array_equal(levels_of(out), levels)


@pytest.mark.parametrize('settings', ({}, dict(erase=0.0, cutmix=0.0)))
def test_without_settings_images_are_only_normalised(settings):
  images, labels = apply(settings, pixels(), keys())
  np.testing.assert_array_equal(levels_of(images), pixels())
  np.testing.assert_array_equal(labels, targets())


@pytest.mark.parametrize('name', SETTINGS)
def test_an_example_does_not_depend_on_its_batch(name):
  """Only its own key and pixels matter, bit for bit."""
  images, examples = pixels(), keys()
  together, _ = apply(SETTINGS[name], images, examples)
  reverse, _ = apply(SETTINGS[name], images[::-1], examples[::-1])
  np.testing.assert_array_equal(together, reverse[::-1])
  for i in (0, B - 1):
    alone, _ = apply(SETTINGS[name], images[i:i + 1], examples[i:i + 1])
    np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize('name', SETTINGS)
def test_examples_and_epochs_draw_differently(name):
  """All examples are the same picture here. A few may draw the same of few
  choices."""
  same = np.repeat(pixels()[:1], B, axis=0)
  first, _ = apply(SETTINGS[name], same, keys())
  later, _ = apply(SETTINGS[name], same, keys(epoch=1))
  again, _ = apply(SETTINGS[name], same, keys(), step=1)
  np.testing.assert_array_equal(first, again)   # the step is of the batch
  kinds = len(np.unique(first.reshape(B, -1), axis=0))
  assert kinds == 2 if name == 'flip' else kinds > B // 2
  changed = np.any(first != later, axis=(1, 2, 3)).sum()
  assert changed >= (3 if name == 'flip' else B // 2)


def test_flip_mirrors_half_of_the_images():
  n = 512
  images, _ = apply(dict(flip=True), pixels(n), keys(n))
  equal = lambda a, b: np.all(a == b, axis=(1, 2, 3))
  kept = equal(levels_of(images), pixels(n))
  mirrored = equal(levels_of(images), pixels(n)[:, :, ::-1])
  assert np.all(kept ^ mirrored)
  assert abs(mirrored.mean() - .5) < 4 * .5 / np.sqrt(n)


def test_pad_crop_is_a_window_of_the_padded_image():
  """Each of the 7 x 7 offsets is drawn, and the outside is zero."""
  pad, n = 3, 640
  images, _ = apply(dict(pad_crop=pad), pixels(n), keys(n))
  padded = np.pad(pixels(n), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  found = np.stack([
      np.all(padded[:, y:y + SIDE, x:x + SIDE] == levels_of(images),
             axis=(1, 2, 3))
      for y in range(7) for x in range(7)], 1)
  assert np.all(found.sum(1) == 1)
  counts, expected = found.sum(0), n / 49
  chi2 = np.sum((counts - expected)**2) / expected
  assert counts.min() > 0 and chi2 / 48 < 1 + 4 * np.sqrt(2 / 48)


@pytest.mark.parametrize('name', ('rotate', 'zoom', 'shift'))
def test_a_tiny_warp_is_the_identity(name):
  images, _ = apply({name: 1e-6}, pixels(), keys())
  np.testing.assert_array_equal(levels_of(images), pixels())


def test_warp_shifts_by_at_most_its_share():
  """The value of a ramp at the centre tells how far it was moved: up to 2 of 20
  pixels in either direction, vertically and horizontally."""
  side = 20
  y, x = np.mgrid[:side, :side].astype(np.uint8) * 10
  n = 256
  image = np.repeat(np.stack([y, x, x], -1)[None], n, axis=0)
  images, _ = apply(dict(shift=0.1), image, keys(n))
  moved = levels_of(images)[:, 10, 10, :2] / 10 - 10
  assert np.abs(moved).max() < 2.1
  for axis in (0, 1):
    assert moved[:, axis].min() < -1.8 and moved[:, axis].max() > 1.8
    assert abs(moved[:, axis].mean()) < .35
  assert abs(np.corrcoef(moved.T)[0, 1]) < .3


@pytest.mark.parametrize('settings,inside', (
    (dict(rotate=45.0), 0.6), (dict(zoom=0.5), 0.0), (dict(shift=0.5), 0.0)))
def test_warp_fills_with_black_and_keeps_the_range(settings, inside):
  """A white image stays white where it is still shown, and the outside is 0. A
  rotation about the centre keeps the inscribed disc."""
  side = 33
  white = np.full((B, side, side, 1), 255, np.uint8)
  images, _ = apply(settings, white, keys())
  out = levels_of(images)
  assert (out == 0).any()
  centre = (side - 1) / 2
  y, x = np.mgrid[:side, :side] - centre
  disc = np.hypot(y, x) < inside * centre
  assert (out[:, disc] == 255).all()


def test_warp_turns_about_the_centre_by_at_most_its_angle():
  """A white dot at distance r stays at distance r, up to `rotate` degrees away.
  """
  side, n = 33, 128
  image = np.zeros((n, side, side, 1), np.uint8)
  image[:, 15:18, 26:29] = 255   # 11 to the right of the centre
  images, _ = apply(dict(rotate=30.0), image, keys(n))
  weight = images[..., 0] + 1
  y, x = ((weight * axis).sum((1, 2)) / weight.sum((1, 2))
          for axis in np.mgrid[:side, :side] - 16)
  np.testing.assert_allclose(np.hypot(y, x), 11, atol=.3)
  angles = np.degrees(np.arctan2(y, x))
  assert np.abs(angles).max() < 31
  assert angles.min() < -24 and angles.max() > 24


@pytest.mark.parametrize('p', (0.2, 0.5, 0.8))
def test_mixup_follows_its_formula(p):
  """a x + (1 - a) of the example before, with one a >= 1/2 for a batch, for
  labels too."""
  shares = []
  for step in range(20):
    images, labels = apply(dict(mixup=p), pixels(), keys(), step=step)
    b = jax.random.beta(jax.random.key(step), p, p)
    a = max(float(b), 1 - float(b))
    assert .5 <= a <= 1
    shares.append(a)
    for got, before in ((images, (pixels() - 127.5) / 127.5),
                        (labels, targets())):
      partner = np.concatenate([before[-1:], before[:-1]])
      np.testing.assert_allclose(
          got, a * before + (1 - a) * partner, rtol=0, atol=1e-6)
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=0, atol=1e-6)
  assert np.std(shares) > .02


def test_mixup_draws_from_beta():
  """Its share has the mean of max(b, 1 - b), b ~ Beta(p, p)."""
  p, n = 0.5, 4000
  x = jnp.array([[[[0.]]], [[[1.]]]])
  share = lambda key: augment.mix(x, jnp.eye(2), key, p)[1][0, 0]
  a = np.asarray(jax.vmap(share)(jax.random.split(jax.random.key(1), n)))
  b = np.random.default_rng(0).beta(p, p, 10**6)
  expected = np.maximum(b, 1 - b)
  assert a.min() >= .5
  assert abs(a.mean() - expected.mean()) < 4 * expected.std() / np.sqrt(n)
  assert abs(a.std() - expected.std()) < .01


def rectangles(masks):
  """(top, left, height, width), each [B], of masks [B, H, W].

  Checks that each mask is a filled rectangle and not empty.
  """
  found = []
  for mask in masks:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    filled = np.zeros_like(mask)
    filled[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1] = True
    np.testing.assert_array_equal(mask, filled)
    found.append((rows[0], columns[0], len(rows), len(columns)))
  return np.array(found).T


def erased(shape, count, probability=1.0):
  """(images, where they are erased [B, H, W]) of black images.

  No noise is exactly -1, so black pixels tell what was not erased.
  """
  black = np.zeros((count, *shape), np.uint8)
  images, _ = apply(dict(erase=probability), black, keys(count))
  return images, (images != -1).any(-1)


@pytest.mark.parametrize('shape', SHAPES)
def test_erase_equals_a_numpy_version(shape):
  """Rectangle and noise are equal for the same draws, and the rest is unchanged
  bit for bit. A long image cuts some rectangles to its side; a tiny one widens
  some to a pixel."""
  n, (height, width, _) = 64, shape
  before = pixels(n, shape)
  images, _ = apply(dict(erase=0.7), before, keys(n))
  cut, widened, hit = 0, 0, 0
  for got, expected, key in zip(images, normalised(before).copy(), keys(n)):
    draw_key, noise_key = jax.random.split(jax.random.fold_in(key, 4))
    draw = np.asarray(jax.random.uniform(draw_key, (5,)), np.float64)
    area = height * width * (.02 + .31 * draw[1])
    aspect = np.exp(np.log(.3) + draw[2] * np.log(11))
    tall, wide = (area * aspect)**.5, (area / aspect)**.5
    cut += round(tall) > height or round(wide) > width
    widened += min(round(tall), round(wide)) < 1
    tall = min(max(round(tall), 1), height)
    wide = min(max(round(wide), 1), width)
    top = int(draw[3] * (height - tall + 1))
    left = int(draw[4] * (width - wide + 1))
    if draw[0] < .7:
      hit += 1
      noise = jax.random.uniform(noise_key, shape, minval=-1, maxval=1)
      expected[top:top + tall, left:left + wide] = noise[
          top:top + tall, left:left + wide]
    np.testing.assert_array_equal(got, expected)
  assert 0 < hit < n
  assert (cut > 5) == (height != width) and (widened > 0) == (width == 4)


def test_erase_draws_area_aspect_and_place_uniformly():
  """The area is uniform in 2% to 33%, the log of the aspect in log 0.3 to log
  3.3, and all are independent. At probability 0.25, a quarter of the images is
  erased."""
  side, n = 48, 3000
  _, masks = erased((side, side, 1), n)
  top, left, tall, wide = rectangles(masks)
  free = lambda start, length: (start + .5) / (side - length + 1)
  shares = np.stack([
      (tall * wide / side**2 - .02) / .31,
      (np.log(tall / wide) - np.log(.3)) / np.log(11),
      free(top, tall), free(left, wide)])
  ranks = (np.arange(n) + .5) / n
  for share in shares:   # Kolmogorov and Smirnov, and what rounding adds
    assert np.abs(np.sort(share) - ranks).max() < 1.95 / np.sqrt(n) + .01
  assert np.abs(np.corrcoef(shares) - np.eye(4)).max() < 4 / np.sqrt(n)
  assert top.min() == left.min() == 0
  assert (top + tall).max() == (left + wide).max() == side
  _, masks = erased((side, side, 1), n, .25)
  hit = masks.any((1, 2)).mean()
  assert abs(hit - .25) < 4 * np.sqrt(.25 * .75 / n)


def test_erase_fills_with_uniform_noise():
  """The noise is over [-1, 1], with independent values for each pixel, channel
  and example."""
  images, masks = erased((48, 48, 3), 64)
  noise = images[masks]
  n = len(noise)
  assert n > 10_000 and len(np.unique(noise)) > .99 * 3 * n
  assert noise.min() > -1 and noise.max() < 1
  ranks = (np.arange(3 * n) + .5) / (3 * n)
  assert np.abs((np.sort(noise.ravel()) + 1) / 2 - ranks).max() < (
      1.95 / np.sqrt(3 * n))
  neighbours = np.corrcoef([*noise[1:].T, *noise[:-1].T])
  assert np.abs(neighbours - np.eye(6)).max() < 4 / np.sqrt(n)


def test_erase_comes_after_the_other_ops_and_before_mixing():
  """The rectangle holds noise that no other op changed; mixup then blends it.
  """
  others = dict(flip=True, randaugment_layers=1, randaugment_magnitude=15)
  noise, masks = erased((SIDE, SIDE, 3), B)
  plain, _ = apply(others, pixels(), keys())
  expected = np.where(masks[..., None], noise, plain)
  images, _ = apply(dict(others, erase=1.0), pixels(), keys())
  np.testing.assert_array_equal(images, expected)
  mixed, labels = apply(dict(others, erase=1.0, mixup=0.5), pixels(), keys())
  a = labels[1].max()   # the first is of its partner's class
  np.testing.assert_allclose(
      mixed, a * expected + (1 - a) * np.roll(expected, 1, axis=0),
      rtol=0, atol=1e-6)


def unlike(shape, count=B):
  """Images that differ from the next ones in the batch in every pixel."""
  images = pixels(count, shape) // 2 * 2
  return images + (np.arange(count, dtype=np.uint8) % 2)[:, None, None, None]


def shown_partner(images, before):
  """Where each image shows its partner's pixels and not its own: [B, H, W]."""
  own = normalised(before)
  partner = np.concatenate([own[-1:], own[:-1]])
  shown = (images == partner).all(-1)
  np.testing.assert_array_equal(
      images, np.where(shown[..., None], partner, own))
  return shown


@pytest.mark.parametrize('p', (0.2, 1.0))
@pytest.mark.parametrize('shape', SHAPES)
def test_cutmix_equals_a_numpy_version(shape, p):
  """A batch has one box, from the same draws; labels are mixed by pixels."""
  shares, size = [], np.array(shape[:2])
  before = unlike(shape)
  for step in range(20):
    images, labels = apply(dict(cutmix=p), before, keys(), step=step)
    shown = shown_partner(images, before)
    ratio_key, centre_key = jax.random.split(jax.random.key(step))
    b = np.float64(jax.random.beta(ratio_key, p, p))
    sides = (size * np.sqrt(1 - b)).astype(int)
    start = np.asarray(jax.random.randint(
        centre_key, (2,), 0, size)) - sides // 2
    end = np.minimum(start + sides, size)
    box = np.zeros(shape[:2], bool)
    box[max(start[0], 0):end[0], max(start[1], 0):end[1]] = True
    np.testing.assert_array_equal(shown, np.repeat(box[None], B, axis=0))
    kept = 1 - box.mean()
    shares.append(kept)
    partner = np.concatenate([targets()[-1:], targets()[:-1]])
    np.testing.assert_allclose(   # float32's last bit and no more
        labels, kept * targets() + (1 - kept) * partner, rtol=0, atol=1e-7)
  assert np.std(shares) > .1


@pytest.mark.parametrize('p', (0.5, 1.0))
def test_cutmix_boxes_are_distributed_as_in_numpy(p):
  """The share of each pixel that is the partner's, and the mean share, are
  those of boxes that NumPy draws."""
  height, width, n, many = 9, 14, 4000, 40_000
  x = jnp.arange(2.)[:, None, None, None] * jnp.ones((1, height, width, 1))
  images, labels = jax.vmap(lambda k: cut(x, jnp.eye(2), k, p))(
      jax.random.split(jax.random.key(1), n))
  draw = np.random.default_rng(0)
  side = np.sqrt(1 - draw.beta(p, p, many))
  inside = []
  for size in (height, width):
    length = np.floor(side * size)[:, None]
    start = draw.integers(0, size, many)[:, None] - length // 2
    inside.append((np.arange(size) >= start)
                  & (np.arange(size) < start + length))
  box = inside[0][:, :, None] & inside[1][:, None, :]
  bound = 4 * .5 / np.sqrt(n)
  assert np.abs(np.asarray(images[:, 0, ..., 0]).mean(0)
                - box.mean(0)).max() < bound
  assert abs(np.asarray(labels[:, 0, 0]).mean() - 1 + box.mean()) < bound


def test_mixup_alone_uses_the_key_of_the_step_unchanged():
  """Its draws therefore do not depend on whether CutMix exists."""
  direct = jax.jit(lambda x, t, key: augment.mix(
      augment.normalise(x), t, key, 0.5))
  for step in range(5):
    got = apply(dict(mixup=0.5), pixels(), keys(), step=step)
    expected = direct(pixels(), targets(), jax.random.key(step))
    for a, b in zip(got, expected):
      np.testing.assert_array_equal(a, b)


def test_each_batch_uses_mixup_or_cutmix_at_even_odds():
  """A batch uses one of them only, and the choice is independent of the ratio.
  """
  n, before = 400, unlike((SIDE, SIDE, 3))
  own = normalised(before)
  partner = np.concatenate([own[-1:], own[:-1]])
  boxed, ratios = [], []
  for step in range(n):
    images, labels = apply(dict(mixup=0.8, cutmix=1.0), before, keys(),
                           step=step)
    ratios.append(labels[1, 1])
    boxed.append(np.all((images == own) | (images == partner)))
    if boxed[-1]:
      assert abs(shown_partner(images, before).mean() + ratios[-1] - 1) < 1e-6
    else:
      assert ratios[-1] >= .5
      np.testing.assert_allclose(
          images, ratios[-1] * own + (1 - ratios[-1]) * partner,
          rtol=0, atol=1e-6)
  boxed, ratios = np.array(boxed), np.array(ratios)
  assert abs(boxed.mean() - .5) < 4 * .5 / np.sqrt(n)
  b = np.random.default_rng(0).beta(.8, .8, 10**6)
  expected = np.maximum(b, 1 - b)
  assert abs(ratios[~boxed].mean() - expected.mean()) < (
      4 * expected.std() / np.sqrt((~boxed).sum()))


@pytest.mark.parametrize('name,mixing,steps', (
    ('all', dict(mixup=0.5), 1), pytest.param(
        'erase', dict(mixup=0.5, cutmix=1.0), 6, marks=pytest.mark.slow)))
def test_eight_devices_give_the_same_bits_as_one(name, mixing, steps):
  """Crops and ops of a sharded batch, and also mixup and CutMix, whose partner
  may lie on another device."""
  settings = dict(SETTINGS[name], **mixing)
  inputs = (pixels(), targets(), keys())
  mesh = Mesh(np.array(jax.devices()), ('data',))
  assert mesh.size == 8
  spread = NamedSharding(mesh, PartitionSpec('data'))
  placed = [jax.device_put(x, spread) for x in inputs]
  function = jax.jit(augment.make(**settings))
  for step in range(steps):
    one = apply(settings, inputs[0], inputs[2], step=step)
    eight = function(*placed, jax.random.key(step))
    assert eight[0].sharding.spec[0] == 'data'
    for a, b in zip(one, jax.device_get(eight)):
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('settings', (
    dict(randaugment_layers=-1), dict(randaugment_layers=11),
    dict(randaugment_layers=2, randaugment_magnitude=-1), dict(mixup=-0.1),
    dict(pad_crop=-1), dict(zoom=1.0), dict(zoom=-0.1), dict(rotate=-1.0),
    dict(shift=-0.1), dict(erase=-0.1), dict(erase=1.5),
    dict(erase=float('nan')), dict(cutmix=-0.1), dict(cutmix=float('inf'))))
def test_invalid_arguments_are_refused_with_key_and_value(settings):
  key, value = list(settings.items())[-1]
  with pytest.raises(errors.UserError) as error:
    augment.make(**settings)
  for part in ('augment', key.split('_')[-1], str(value)):
    assert part in str(error.value)


@pytest.mark.parametrize('settings,range_', (
    (dict(erase=25.0), 'from 0 to 1'), (dict(cutmix=-1.0), '>= 0')))
def test_errors_name_the_key_and_its_range(settings, range_):
  (key, value), = settings.items()
  with pytest.raises(errors.UserError) as error:
    augment.make(**settings)
  for part in (f'augment.{key}: ', range_, str(value)):
    assert part in str(error.value)
  assert '\n' not in str(error.value)
