"""Weights for other image sizes, patches and channels: what stays equal."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer import pretrained
from mixer.core import errors

SIZE = 12   # of small images, which have a grid of 3 x 3 patches


@functools.cache
def make(channels=3, size=(SIZE, SIZE), patch_size=4):
  """(a small network, its parameters), all of them random."""
  model = models.create(
      'Mixer-S/4', num_classes=5, hidden_dim=16, num_blocks=2,
      tokens_mlp_dim=7, channels_mlp_dim=24, in_channels=channels,
      patch_size=patch_size)
  params = jax.jit(model.init)(
      jax.random.key(0), images(1, *size, channels))['params']
  rng = np.random.default_rng(1)
  return model, jax.tree.map(
      lambda x: x + .3 * rng.standard_normal(x.shape, np.float32), params)


def images(count, height, width, channels=3):
  return np.random.default_rng(2).standard_normal(
      (count, height, width, channels), np.float32)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, x):
  return model.apply({'params': params}, x)


def close(a, b, tolerance=2e-5):
  np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('parts', [(2, 2), (3, 3), (1, 2), (3, 1), (1, 1)])
def test_enlarged_blocks_mix_each_part_as_the_small_network_did(parts):
  """Appendix C of the paper: the tokens of each part are equal after every
  block; pre-logits and logits are the means over the parts."""
  model, params = make()
  size = (SIZE * parts[0], SIZE * parts[1])
  larger, enlarged = pretrained.resize(model, params, image_size=size)
  assert larger.tokens_mlp_dim == 7 * parts[0] * parts[1]
  x = images(2, *size)
  logits, out = apply(larger, enlarged, x)
  grid = lambda tokens: tokens.reshape(2, size[0] // 4, size[1] // 4, -1)
  of_parts = []
  for row in range(parts[0]):
    for column in range(parts[1]):
      part = x[:, row * SIZE:(row + 1) * SIZE,
               column * SIZE:(column + 1) * SIZE]
      small, inside = apply(model, params, part)
      of_parts.append((small, inside['pre_logits']))
      for i in range(2):
        close(grid(out[f'block_{i}'])[:, 3 * row:3 * row + 3,
                                      3 * column:3 * column + 3],
              inside[f'block_{i}'].reshape(2, 3, 3, -1))
  mean = lambda i: np.mean([part[i] for part in of_parts], axis=0)
  close(logits, mean(0))
  close(out['pre_logits'], mean(1))


def test_an_enlarged_network_gives_a_tiled_image_the_logits_of_its_tile():
  model, params = make()
  x = images(2, SIZE, SIZE)
  larger, enlarged = pretrained.resize(model, params, image_size=2 * SIZE)
  close(apply(larger, enlarged, jnp.tile(x, (1, 2, 2, 1)))[0],
        apply(model, params, x)[0])


def test_training_changes_the_zeros_between_the_blocks():
  """Their gradients are not zero, so training couples the parts."""
  model, params = make()
  larger, enlarged = pretrained.resize(model, params, image_size=2 * SIZE)
  x = images(2, 2 * SIZE, 2 * SIZE)
  grads = jax.grad(lambda p: jnp.sum(apply(larger, p, x)[0] ** 2))(enlarged)
  first = lambda tree: tree['MixerBlock_0']['token_mixing']['Dense_0']['kernel']
  assert first(enlarged).shape == (36, 28)
  zeros = np.asarray(first(enlarged)) == 0
  assert zeros.mean() == .75 and np.all(np.asarray(first(grads))[zeros] != 0)


def test_the_same_size_leaves_model_and_parameters_unchanged():
  model, params = make()
  for method in ('block', 'resample'):
    same, kept = pretrained.resize(
        model, params, image_size=SIZE, method=method)
    assert same == model
    jax.tree.map(np.testing.assert_array_equal, kept, params)


@pytest.mark.parametrize('size', [(8, 8), (20, 20), (16, 28), (4, 36), (24, 24)])
def test_resampled_mixing_is_mixing_of_resampled_tokens(size):
  """W1' t = W1 (down t), and W2', b2' add `up` of what W2, b2 added."""
  model, params = make()
  new, resampled = pretrained.resize(
      model, params, image_size=size, method='resample')
  assert new.tokens_mlp_dim == 7
  old = params['MixerBlock_1']['token_mixing']
  mlp = resampled['MixerBlock_1']['token_mixing']
  grid = (size[0] // 4, size[1] // 4)
  t = images(1, *grid, 16)[0]
  down = jax.image.resize(t, (3, 3, 16), 'linear').reshape(9, 16)
  close(np.einsum('sd,sc->dc', mlp['Dense_0']['kernel'], t.reshape(-1, 16)),
        np.einsum('sd,sc->dc', old['Dense_0']['kernel'], down), 1e-4)
  close(mlp['Dense_0']['bias'], old['Dense_0']['bias'])
  h = images(1, 1, 7)[0, 0, :, 0]
  added = lambda m: h @ np.asarray(m['Dense_1']['kernel']) + np.asarray(
      m['Dense_1']['bias'])
  up = jax.image.resize(added(old).reshape(3, 3), grid, 'linear')
  close(added(mlp).reshape(grid), up, 1e-4)


@pytest.mark.parametrize('size', [(8, 8), (32, 20)])
def test_a_uniform_image_keeps_its_logits_after_resampling(size):
  """If W2 and b2 do not depend on the token, all tokens stay alike, and their
  number does not matter."""
  model, params = make()
  for i in range(2):
    second = params[f'MixerBlock_{i}']['token_mixing']['Dense_1']
    second.update(kernel=jnp.broadcast_to(second['kernel'][:, :1], (7, 9)),
                  bias=jnp.full(9, .4))
  new, resampled = pretrained.resize(
      model, params, image_size=size, method='resample')
  plain = lambda *s: jnp.broadcast_to(jnp.array([.3, -.5, .9]), (1, *s, 3))
  close(apply(new, resampled, plain(*size))[0],
        apply(model, params, plain(SIZE, SIZE))[0], 1e-4)


def test_the_papers_method_is_the_default_where_it_applies():
  model, params = make()
  widths = lambda size: pretrained.resize(
      model, params, image_size=size)[0].tokens_mlp_dim
  assert (widths(24), widths(36), widths((12, 24))) == (28, 63, 14)
  assert (widths(8), widths(16), widths((24, 16))) == (7, 7, 7)


def test_images_that_are_not_square_need_from_size():
  model, params = make(size=(8, 16))
  with pytest.raises(errors.UserError, match='from_size: .*for 8 tokens'):
    pretrained.resize(model, params, image_size=16)
  with pytest.raises(errors.UserError, match='from_size: .*3x4.*for 8'):
    pretrained.resize(model, params, image_size=16, from_size=(12, 16))
  larger, enlarged = pretrained.resize(
      model, params, image_size=(8, 32), from_size=(8, 16))
  x = images(1, 8, 32)
  halves = [apply(model, params, h)[0] for h in (x[:, :, :16], x[:, :, 16:])]
  close(apply(larger, enlarged, x)[0], np.mean(halves, axis=0))


@pytest.mark.parametrize('patch', [8, 6, (4, 8)])
def test_an_enlarged_patch_projects_to_what_the_patch_did(patch):
  model, params = make()
  height, width = (patch, patch) if isinstance(patch, int) else patch
  new, changed = pretrained.resize(
      model, params, image_size=(3 * height, 3 * width), patch_size=patch)
  small = images(1, 4, 4)
  # Each patch is enlarged by itself: its borders repeat its own edge.
  large = jax.image.resize(small, (1, height, width, 3), 'linear')
  tokens = lambda m, p, x: apply(m, p, jnp.tile(x, (1, 3, 3, 1)))[1]['stem']
  close(tokens(new, changed, large), tokens(model, params, small), 1e-4)


def test_a_smaller_patch_gives_a_projection_of_its_size():
  model, params = make()
  new, changed = pretrained.resize(
      model, params, image_size=6, patch_size=2)
  assert changed['stem']['kernel'].shape == (2, 2, 3, 16)
  assert apply(new, changed, images(1, 6, 6))[0].shape == (1, 5)


def test_finer_patches_of_the_same_image_are_resampled_by_default():
  """The grid grows by integer factors but the image does not, so this is not
  the paper's case."""
  model, params = make()
  resized = lambda **more: pretrained.resize(
      model, params, image_size=SIZE, patch_size=2, **more)[0]
  assert resized().tokens_mlp_dim == model.tokens_mlp_dim
  assert resized(method='block').tokens_mlp_dim == 4 * model.tokens_mlp_dim


@pytest.mark.parametrize('channels', [1, 2, 4, 6])
def test_a_grey_image_gives_the_same_logits_whatever_the_channels(channels):
  model, params = make()
  new, changed = pretrained.resize(
      model, params, image_size=SIZE, in_channels=channels)
  assert new.in_channels == channels
  grey = images(2, SIZE, SIZE, 1)
  close(apply(new, changed, jnp.tile(grey, (1, 1, 1, channels)))[0],
        apply(model, params, jnp.tile(grey, (1, 1, 1, 3)))[0])


@pytest.mark.parametrize('settings, message', [
    (dict(image_size=16, method='block'), 'from 3x3 to 4x4; use resample'),
    (dict(image_size=13), '13x13 is not a multiple.*4x4.*12 or 16'),
    (dict(image_size=2), '2x2 is not a multiple'),
    (dict(image_size=24, method='blocks'), "method.*did you mean 'block'"),
    (dict(image_size=1200), '10000 times the patches.*25.2 billion parameters'),
])
def test_sizes_and_methods_that_do_not_fit_are_refused(settings, message):
  model, params = make()
  with pytest.raises(errors.UserError, match=message):
    pretrained.resize(model, params, **settings)


def test_the_given_parameters_are_not_changed():
  model, params = make()
  before = jax.tree.map(np.array, params)
  pretrained.resize(model, params, image_size=24, in_channels=1, patch_size=8)
  jax.tree.map(np.testing.assert_array_equal, before, params)
