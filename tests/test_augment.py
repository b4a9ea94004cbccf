"""Augmentation on the device: keyed an example, and equal on any mesh.

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

from mixer.core import checks
from mixer.core import rng
from mixer.data import augment

B, SIDE, CLASSES = 16, 12, 5
SETTINGS = {
    'flip': dict(flip=True),
    'pad_crop': dict(pad_crop=3),
    'warp': dict(rotate=15.0, zoom=0.15, shift=0.1),
    'all': dict(flip=True, pad_crop=2, rotate=30.0, zoom=0.2, shift=0.2,
                randaugment_layers=2, randaugment_magnitude=15),
}


def pixels(count=B):
  return np.random.default_rng(0).integers(
      0, 256, (count, SIDE, SIDE, 3), np.uint8)


def targets(count=B):
  return np.eye(CLASSES, dtype=np.float32)[np.arange(count) % CLASSES]


def keys(count=B, epoch=0):
  return rng.of_examples(
      rng.stream(0, 'augment'), jnp.full(count, epoch, jnp.int32),
      jnp.arange(count, dtype=jnp.int32))


@functools.cache
def jitted(settings):
  return jax.jit(augment.make(**dict(settings)))


def apply(settings, images, examples, step=0):
  """Augmented images and targets, by the jitted function."""
  return jax.device_get(jitted(tuple(settings.items()))(
      images, targets(len(images)), examples, jax.random.key(step)))


def grey(images):
  """Normalised images as the levels they were."""
  return np.rint(images * 127.5 + 127.5).astype(np.uint8)


def test_normalise_maps_levels_to_minus_one_to_one():
  """0 is -1 and 255 is 1, float32, levels are 2/255 apart."""
  levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  out = np.asarray(augment.normalise(levels))
  assert out.dtype == np.float32
  np.testing.assert_allclose(
      out.ravel(), np.linspace(-1, 1, 256), rtol=0, atol=1e-7)
  assert out.min() == -1 and out.max() == 1
  np.testing.assert_array_equal(grey(out), levels)


def test_nothing_asked_is_only_normalised():
  images, labels = apply({}, pixels(), keys())
  np.testing.assert_array_equal(grey(images), pixels())
  np.testing.assert_array_equal(labels, targets())


@pytest.mark.parametrize('name', SETTINGS)
def test_an_example_alone_is_as_in_a_batch(name):
  """Bit for bit: nothing but its own key and pixels matters."""
  images, examples = pixels(), keys()
  together, _ = apply(SETTINGS[name], images, examples)
  reverse, _ = apply(SETTINGS[name], images[::-1], examples[::-1])
  np.testing.assert_array_equal(together, reverse[::-1])
  for i in (0, B - 1):
    alone, _ = apply(SETTINGS[name], images[i:i + 1], examples[i:i + 1])
    np.testing.assert_array_equal(alone[0], together[i])


@pytest.mark.parametrize('name', SETTINGS)
def test_examples_and_epochs_draw_differently(name):
  """The same picture everywhere: examples differ, and so do epochs, but for
  the few that draw the same of few choices."""
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
  kept = equal(grey(images), pixels(n))
  mirrored = equal(grey(images), pixels(n)[:, :, ::-1])
  assert np.all(kept ^ mirrored)
  assert abs(mirrored.mean() - .5) < 4 * .5 / np.sqrt(n)


def test_pad_crop_is_a_window_of_the_padded_image():
  """Every offset of the 7 x 7 is drawn, zeros lie outside."""
  pad, n = 3, 640
  images, _ = apply(dict(pad_crop=pad), pixels(n), keys(n))
  padded = np.pad(pixels(n), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  found = np.stack([
      np.all(padded[:, y:y + SIDE, x:x + SIDE] == grey(images), axis=(1, 2, 3))
      for y in range(7) for x in range(7)], 1)
  assert np.all(found.sum(1) == 1)
  counts, expected = found.sum(0), n / 49
  chi2 = np.sum((counts - expected)**2) / expected
  assert counts.min() > 0 and chi2 / 48 < 1 + 4 * np.sqrt(2 / 48)


@pytest.mark.parametrize('name', ('rotate', 'zoom', 'shift'))
def test_a_tiny_warp_is_the_identity(name):
  images, _ = apply({name: 1e-6}, pixels(), keys())
  np.testing.assert_array_equal(grey(images), pixels())


def test_warp_shifts_by_at_most_its_share():
  """A ramp's value at the centre tells how far it was moved: up to 2 of 20
  pixels either way, down as well as across."""
  side = 20
  y, x = np.mgrid[:side, :side].astype(np.uint8) * 10
  n = 256
  image = np.repeat(np.stack([y, x, x], -1)[None], n, axis=0)
  images, _ = apply(dict(shift=0.1), image, keys(n))
  moved = grey(images)[:, 10, 10, :2] / 10 - 10
  assert np.abs(moved).max() < 2.1
  for axis in (0, 1):
    assert moved[:, axis].min() < -1.8 and moved[:, axis].max() > 1.8
    assert abs(moved[:, axis].mean()) < .35
  assert abs(np.corrcoef(moved.T)[0, 1]) < .3


@pytest.mark.parametrize('settings,inside', (
    (dict(rotate=45.0), 0.6), (dict(zoom=0.5), 0.0), (dict(shift=0.5), 0.0)))
def test_warp_fills_with_black_and_keeps_the_range(settings, inside):
  """A white image stays white where it is still seen; outside is 0. A turn
  about the centre keeps the inscribed disc."""
  side = 33
  white = np.full((B, side, side, 1), 255, np.uint8)
  images, _ = apply(settings, white, keys())
  out = grey(images)
  assert (out == 0).any()
  centre = (side - 1) / 2
  y, x = np.mgrid[:side, :side] - centre
  disc = np.hypot(y, x) < inside * centre
  assert (out[:, disc] == 255).all()


def test_warp_turns_about_the_centre_by_at_most_its_angle():
  """A white dot at distance r stays at r, up to `rotate` degrees away."""
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
def test_mixup_is_the_papers(p):
  """a x + (1 - a) of the example before, one a >= 1/2 a batch, labels too."""
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


def test_eight_devices_give_what_one_does():
  """Sharded over the batch: crops and ops bit for bit; mixup, whose partner
  may lie on another device, too."""
  settings = dict(SETTINGS['all'], mixup=0.5)
  inputs = (pixels(), targets(), keys())
  one = apply(settings, inputs[0], inputs[2])
  mesh = Mesh(np.array(jax.devices()), ('data',))
  assert mesh.size == 8
  spread = NamedSharding(mesh, PartitionSpec('data'))
  placed = [jax.device_put(x, spread) for x in inputs]
  function = jax.jit(augment.make(**settings))
  eight = function(*placed, jax.random.key(0))
  assert eight[0].sharding.spec[0] == 'data'
  for a, b in zip(one, jax.device_get(eight)):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('settings', (
    dict(randaugment_layers=-1), dict(randaugment_layers=11),
    dict(randaugment_layers=2, randaugment_magnitude=-1), dict(mixup=-0.1),
    dict(pad_crop=-1), dict(zoom=1.0), dict(zoom=-0.1), dict(rotate=-1.0),
    dict(shift=-0.1)))
def test_bad_arguments_are_refused_with_key_and_value(settings):
  key, value = list(settings.items())[-1]
  with pytest.raises(checks.UserError) as error:
    augment.make(**settings)
  for part in ('augment', key.split('_')[-1], str(value)):
    assert part in str(error.value)
