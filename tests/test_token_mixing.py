"""The table of token mixing: cost, function and change of size of each row."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer import pretrained
from mixer.core import errors
from mixer.core import trees
from mixer.models import catalog
from mixer.models import cost
from mixer.models import mixer
from mixer.models import token_mixing

# S, C and D_S of Mixer-B/32 on 224x224 images.
TOKENS, CHANNELS, HIDDEN = 49, 768, 384
# Parameters and multiply-adds of the token mixing of one block of that size.
GOLDEN = {
    'tied': (38_065, 28_901_376),
}


def block(name):
  """(a block of Mixer-B/32 with almost no channel mixing, its input)."""
  return mixer.MixerBlock(HIDDEN, 1, mixing=name, grid=(7, 7)), (
      jax.ShapeDtypeStruct((1, TOKENS, CHANNELS), jnp.float32))


def test_every_row_has_golden_counts():
  assert set(GOLDEN) == set(token_mixing.TABLE)


@pytest.mark.parametrize('name', token_mixing.TABLE)
def test_counts_are_those_of_the_block(name):
  """Of its parameters, and of XLA's FLOPs, which include elementwise ones."""
  row, (module, x) = token_mixing.TABLE[name], block(name)
  parameters, multiply_adds = GOLDEN[name]
  assert row.parameters(TOKENS, CHANNELS, HIDDEN) == parameters
  assert row.multiply_adds(TOKENS, CHANNELS, HIDDEN) == multiply_adds
  init = lambda x: module.init(jax.random.key(0), x, train=False)['params']
  params = jax.eval_shape(init, x)
  assert trees.count(params.get('token_mixing', {})) == parameters
  apply = lambda p, x: module.apply({'params': p}, x, train=False)
  flops = jax.jit(apply).lower(params, x).cost_analysis()['flops']
  channel_mixing = 2 * TOKENS * CHANNELS
  elementwise = 12 * CHANNELS * (TOKENS + HIDDEN)   # GELU, LayerNorm, skips
  assert 0 <= flops - 2 * (multiply_adds + channel_mixing) < elementwise


@pytest.mark.parametrize('name', token_mixing.TABLE)
def test_a_network_with_the_row_learns_and_keeps_images_apart(name):
  model = models.create('Mixer-S/4', num_classes=5, hidden_dim=12, num_blocks=2,
                        tokens_mlp_dim=7, channels_mlp_dim=20,
                        token_mixing=name)
  images = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype('f4')
  params = model.init(jax.random.key(0), images)['params']
  params = jax.tree.map(lambda x: x + .1 * jnp.ones_like(x), params)
  run = jax.jit(lambda p, x: model.apply({'params': p}, x, train=True)[0])
  grads = jax.grad(lambda p: jnp.sum(run(p, images)**2))(params)
  assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))
  other = images.copy()
  other[0] = 7
  np.testing.assert_array_equal(run(params, images)[1], run(params, other)[1])
  assert trees.count(params) == cost.parameters(model, (8, 12))


def linear(block, x_BSC, drop, *, train):
  """One linear map over tokens, shared by all channels."""
  del drop, train
  y_BCS = nn.Dense(x_BSC.shape[1], dtype=block.dtype, name='token_mixing')(
      jnp.swapaxes(x_BSC, 1, 2))
  return jnp.swapaxes(y_BCS, 1, 2)


@pytest.fixture
def with_linear(monkeypatch):
  """A table with a second row, and a small network of that row."""
  monkeypatch.setitem(
      token_mixing.TABLE, 'linear', token_mixing.TokenMixing(
          linear, parameters=lambda s, c, d: s * s + s,
          multiply_adds=lambda s, c, d: c * s * s))
  return mixer.MlpMixer(
      num_classes=5, hidden_dim=12, num_blocks=2, tokens_mlp_dim=7,
      channels_mlp_dim=20, patch_size=4, token_mixing='linear')


def test_a_function_and_a_row_are_all_that_a_new_token_mixing_needs(
    with_linear):
  model, images = with_linear, jnp.ones((1, 8, 12, 3))
  params = model.init(jax.random.key(0), images)['params']
  assert params['MixerBlock_1']['token_mixing']['kernel'].shape == (6, 6)
  tied = model.clone(token_mixing='tied')
  assert trees.count(params) == cost.parameters(model, (8, 12))
  assert cost.parameters(tied, (8, 12)) - cost.parameters(model, (8, 12)) == (
      2 * (2 * 6 * 7 + 7 + 6 - (36 + 6)))
  assert cost.forward_flops(tied, (8, 12)) - cost.forward_flops(
      model, (8, 12)) == 2 * 2 * 12 * (2 * 6 * 7 - 36)
  with pytest.raises(errors.UserError, match='block is not .*linear'):
    pretrained.resize(model, params, image_size=(16, 24), from_size=(8, 12))


def test_the_card_names_token_mixing_only_if_it_is_not_the_papers(with_linear):
  assert catalog.describe(with_linear)['token_mixing'] == 'linear'
  assert catalog.title(catalog.describe(with_linear)).endswith(
      'token_mixing linear')
  assert 'token_mixing' not in catalog.describe(
      with_linear.clone(token_mixing='tied'))
