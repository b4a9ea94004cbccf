"""The Mixer network against the paper's equations, in NumPy and float64."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer.core import errors
from mixer.core import trees
from mixer.models import catalog
from mixer.models import grid
from mixer.models import interface
from mixer.models import mixer
from mixer.models import recognition

# Table 1 of the paper, and the counts that follow from it with 1,000 classes.
COUNTS = {
    'Mixer-S/32': 19_104_624, 'Mixer-S/16': 18_528_264,
    'Mixer-B/32': 60_293_428, 'Mixer-B/16': 59_880_472,
    'Mixer-L/32': 206_939_264, 'Mixer-L/16': 208_196_168,
    'Mixer-H/14': 432_350_952,
}
GMACS = {
    'Mixer-S/32': 1.0024, 'Mixer-S/16': 3.7770, 'Mixer-B/32': 3.2377,
    'Mixer-B/16': 12.6018, 'Mixer-L/32': 11.2533, 'Mixer-L/16': 44.5477,
    'Mixer-H/14': 120.9899,
}
SMALL = dict(num_classes=5, hidden_dim=12, num_blocks=3, tokens_mlp_dim=7,
             channels_mlp_dim=20, patch_size=4)


def small(**overrides):
  """A network with patches of 4x4, for `images`."""
  return models.create('Mixer-S/16', **dict(SMALL, **overrides))


def images(n=3, height=8, width=12, channels=3, seed=0):
  """Random images, by default of 2 x 3 patches."""
  return np.random.default_rng(seed).normal(
      size=(n, height, width, channels)).astype(np.float32)


def random_variables(model, x, seed=1):
  """Random values for every parameter, also for those that start at zero."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), s.dtype), shapes)


def gelu(x, approximate=True):
  if approximate:
    return 0.5 * x * (1 + np.tanh(
        np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def reference_logits(params, x, patch, approximate=True):
  """Section 2 of the paper, token by token; x [B, H, W, c] -> logits."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x = np.asarray(x, np.float64)

  def norm(x, q):
    mean = x.mean(-1, keepdims=True)
    var = ((x - mean)**2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * q['scale'] + q['bias']

  out = []
  for image in x:
    tokens = []
    for i in range(0, image.shape[0], patch):
      for j in range(0, image.shape[1], patch):
        piece = image[i:i + patch, j:j + patch].reshape(-1)
        kernel = p['stem']['kernel'].reshape(len(piece), -1)
        tokens.append(piece @ kernel + p['stem']['bias'])
    x_SC = np.stack(tokens)
    for b in range(len([k for k in p if k.startswith('MixerBlock')])):
      q = p[f'MixerBlock_{b}']
      w1, w2 = q['token_mixing']['Dense_0'], q['token_mixing']['Dense_1']
      n_SC, u_SC = norm(x_SC, q['LayerNorm_0']), x_SC.copy()
      for c in range(x_SC.shape[1]):
        h = gelu(w1['kernel'].T @ n_SC[:, c] + w1['bias'], approximate)
        u_SC[:, c] += w2['kernel'].T @ h + w2['bias']
      w3, w4 = q['channel_mixing']['Dense_0'], q['channel_mixing']['Dense_1']
      n_SC, y_SC = norm(u_SC, q['LayerNorm_1']), u_SC.copy()
      for s in range(x_SC.shape[0]):
        h = gelu(w3['kernel'].T @ n_SC[s] + w3['bias'], approximate)
        y_SC[s] += w4['kernel'].T @ h + w4['bias']
      x_SC = y_SC
    pre = norm(x_SC, p['pre_head_layer_norm']).mean(0)
    out.append(pre @ p['head']['kernel'] + p['head']['bias'])
  return np.stack(out)


# ---- The function that the network computes.


@pytest.mark.parametrize('approximate', [True, False])
def test_logits_equal_the_papers_equations(approximate):
  model, x = small(approximate_gelu=approximate), images()
  variables = random_variables(model, x)
  logits, out = jax.jit(model.apply)(variables, x)
  expected = reference_logits(variables['params'], x, 4, approximate)
  np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)
  assert set(out) == {'stem', 'input_tokens', 'block_0', 'block_1', 'block_2',
                      'pre_logits', 'logits'}
  assert out['block_1'].shape == (3, 6, 12)


def test_a_block_with_zeroed_mlps_is_the_identity():
  block, x = mixer.MixerBlock(7, 20), images().reshape(3, 24, 12)
  init = functools.partial(block.init, train=False)
  variables = jax.jit(init)(jax.random.key(0), x)
  mlps = {k: jax.tree.map(np.zeros_like, v) if 'mixing' in k else v
          for k, v in variables['params'].items()}
  y = block.apply({'params': mlps}, x, train=False)
  np.testing.assert_array_equal(y, x)


def test_a_block_is_a_depthwise_then_a_1x1_convolution():
  """Section 2 reads the Mixer as a CNN: token mixing is a depth-wise
  convolution of full receptive field whose kernel all channels share."""
  block, x = mixer.MixerBlock(7, 20), images().reshape(3, 24, 12)
  shapes = jax.eval_shape(
      lambda k: block.init(k, x, train=False), jax.random.key(0))
  rng = np.random.default_rng(0)
  p = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.3,
                                         s.dtype), shapes)['params']
  norm = lambda x, q: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(
      x.var(-1, keepdims=True) + 1e-6) * q['scale'][None, None] + q[
          'bias'][None, None]

  def depthwise(x_BSC, dense):
    # One output position a kernel: D filters of S taps, for each channel.
    kernel_SD, (_, d), c = dense['kernel'], dense['kernel'].shape, x_BSC.shape[
        2]
    filters = jnp.tile(kernel_SD[:, None, :], (1, 1, c))   # [S, 1, C * D]
    y = jax.lax.conv_general_dilated(
        x_BSC, filters, (1,), 'VALID', feature_group_count=c,
        dimension_numbers=('NWC', 'WIO', 'NWC'))           # [B, 1, C * D]
    return y.reshape(-1, c, d).swapaxes(1, 2) + dense['bias'][None, :, None]

  def pointwise(x_BSC, dense):
    y = jax.lax.conv_general_dilated(
        x_BSC, dense['kernel'][None], (1,), 'VALID',
        dimension_numbers=('NWC', 'WIO', 'NWC'))
    return y + dense['bias'][None, None]

  tokens, channels = p['token_mixing'], p['channel_mixing']
  u = x + depthwise(jax.nn.gelu(depthwise(
      norm(x, p['LayerNorm_0']), tokens['Dense_0'])), tokens['Dense_1'])
  y = u + pointwise(jax.nn.gelu(pointwise(
      norm(u, p['LayerNorm_1']), channels['Dense_0'])), channels['Dense_1'])
  got = block.apply({'params': p}, x, train=False)
  np.testing.assert_allclose(got, y, rtol=1e-4, atol=1e-4)


def test_only_token_mixing_depends_on_the_order_of_patches():
  model, x = small(), images()
  variables = random_variables(model, x)
  order = np.random.default_rng(3).permutation(6)
  patches = x.reshape(3, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5)
  shuffled = patches.reshape(3, 6, 4, 4, 3)[:, order].reshape(
      3, 2, 3, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
  run = lambda v, x: model.apply(v, x)[1]['block_2']
  moved = run(variables, x)[:, order] - run(variables, shuffled)
  assert np.abs(moved).max() > 1
  without = {'params': {
      k: dict(v, token_mixing=jax.tree.map(jnp.zeros_like, v['token_mixing']))
      if k.startswith('MixerBlock') else v
      for k, v in variables['params'].items()}}
  np.testing.assert_allclose(run(without, x)[:, order], run(without, shuffled),
                             rtol=1e-5, atol=1e-5)


def test_one_image_never_changes_the_logits_of_another():
  model, x = small(), images()
  variables = random_variables(model, x)
  other = x.copy()
  other[0] = 7
  a, b = model.apply(variables, x)[0], model.apply(variables, other)[0]
  np.testing.assert_array_equal(a[1:], b[1:])
  assert np.abs(a[0] - b[0]).max() > 1e-3


def test_bfloat16_keeps_float32_parameters_and_logits():
  model, x = small(dtype='bfloat16'), images()
  variables = jax.jit(model.init)(jax.random.key(0), x)
  assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  logits, out = jax.jit(model.apply)(variables, x)
  assert logits.dtype == jnp.float32 and out['block_0'].dtype == jnp.bfloat16


def test_a_network_without_a_head_returns_its_pre_logits():
  x = images()
  for classes in (None, 0):
    model = small(num_classes=classes)
    variables = model.init(jax.random.key(0), x)
    assert 'head' not in variables['params']
    logits, out = model.apply(variables, x)
    assert logits.shape == (3, 12) and 'logits' not in out
    np.testing.assert_array_equal(logits, out['pre_logits'])


# ---- Sizes, names and initial values.


@pytest.mark.parametrize('name', mixer.MlpMixer.NAMES)
def test_each_scale_has_the_counts_of_table_1(name):
  model = models.create(name)
  shapes = jax.eval_shape(model.init, jax.random.key(0),
                          jnp.zeros((1, 224, 224, 3)))['params']
  assert trees.count(shapes) == COUNTS[name] == model.parameters(224)
  assert round(model.forward_flops(224) / 2e9, 4) == GMACS[name]
  assert model.training_flops(224) == 3 * model.forward_flops(224)
  assert grid.tokens(224, model.patch_size) == (224 // model.patch_size)**2
  assert len(jax.tree.leaves(shapes)) == 6 + 12 * model.num_blocks


def test_counts_are_given_for_every_scale():
  assert set(COUNTS) == set(GMACS) == set(mixer.MlpMixer.NAMES)


def test_parameter_names_and_shapes_are_those_of_the_released_files():
  model = models.create('Mixer-B/16')
  shapes = jax.eval_shape(model.init, jax.random.key(0),
                          jnp.zeros((1, 224, 224, 3)))['params']
  flat = {k: v.shape for k, v in trees.flatten(shapes).items()}
  expected = {
      'stem/kernel': (16, 16, 3, 768), 'stem/bias': (768,),
      'pre_head_layer_norm/scale': (768,), 'pre_head_layer_norm/bias': (768,),
      'head/kernel': (768, 1000), 'head/bias': (1000,)}
  for i in range(12):
    b = f'MixerBlock_{i}'
    for n in (0, 1):
      expected[f'{b}/LayerNorm_{n}/scale'] = (768,)
      expected[f'{b}/LayerNorm_{n}/bias'] = (768,)
    for mlp, side, hidden in (('token', 196, 384), ('channel', 768, 3072)):
      d = f'{b}/{mlp}_mixing/Dense'
      expected.update({
          f'{d}_0/kernel': (side, hidden), f'{d}_0/bias': (hidden,),
          f'{d}_1/kernel': (hidden, side), f'{d}_1/bias': (side,)})
  assert flat == expected


def test_initial_values_are_those_of_the_official_code():
  model = models.create('Mixer-S/16', num_classes=10, head_bias=-2.5)
  params = jax.jit(model.init)(jax.random.key(0),
                               jnp.zeros((1, 224, 224, 3)))['params']
  flat = trees.flatten(params)
  for name, value in flat.items():
    if name == 'head/bias':
      assert (value == -2.5).all()
    elif name.endswith('scale'):
      assert (value == 1).all()
    elif name.endswith('bias') or name == 'head/kernel':
      assert (value == 0).all(), name
    else:
      fan_in = np.prod(value.shape[:-1])
      assert abs(value.std() * np.sqrt(fan_in) - 1) < 0.05, name
      assert np.abs(value).max() * np.sqrt(fan_in) < 2.3, name  # truncated


# ---- Dropout and stochastic depth.


def test_stochastic_depth_grows_linearly_and_does_not_rescale():
  """Block i of n drops a branch with probability i / (n - 1) * rate, for each
  example and branch independently. A branch that is kept is added as it is."""
  model = small(num_blocks=3, stochastic_depth=0.5)
  x = np.broadcast_to(images(1), (4000, 8, 12, 3))
  variables = random_variables(small(), x[:1])
  run = jax.jit(lambda k: model.apply(
      variables, x, train=True, rngs={'stochastic_depth': k})[1])
  out = jax.device_get(run(jax.random.key(0)))
  plain = model.apply(variables, x[:1])[1]
  np.testing.assert_allclose(
      out['block_0'], np.broadcast_to(plain['block_0'], out['block_0'].shape),
      rtol=1e-5, atol=1e-5)   # the first block always stays
  block = mixer.MixerBlock(7, 20)
  params = {'params': variables['params']['MixerBlock_1']}
  full = block.apply(params, plain['block_0'], train=False)
  kept = np.isclose(out['block_1'], full, atol=1e-4).all((1, 2)).mean()
  gone = np.isclose(out['block_1'], plain['block_0'], atol=1e-4).all(
      (1, 2)).mean()
  assert abs(kept - 0.75**2) < 0.03 and abs(gone - 0.25**2) < 0.02


def test_masks_belong_to_rows_not_to_the_cut_of_the_batch():
  model = small(stochastic_depth=0.5, dropout_rate=0.3)
  x = jnp.asarray(images(8))
  variables = random_variables(small(), x)
  rngs = {'dropout': jax.random.key(1), 'stochastic_depth': jax.random.key(2)}
  run = jax.jit(lambda rows: model.apply(
      variables, x[rows], train=True, rngs=rngs, rows=rows)[0])
  whole = run(np.arange(8))
  np.testing.assert_allclose(run(np.array([5, 2])), whole[np.array([5, 2])],
                             rtol=1e-5, atol=1e-5)


# ---- The catalog.


@pytest.mark.parametrize('make, words', [
    (lambda: models.create('Mixer-B16'), ['Mixer-B16', 'Mixer-B/16']),
    (lambda: models.create('Mixer-X/16'), ['Mixer-X/16', 'Mixer-S/16']),
    (lambda: models.create('mixer-b/16'), ["did you mean 'Mixer-B/16'"]),
    (lambda: small(hiden_dim=3), ['hiden_dim', 'hidden_dim']),
    (lambda: small(hidden_dim=0), ['hidden_dim', '0']),
    (lambda: small(hidden_dim=1.5), ['hidden_dim', '1.5']),
    (lambda: small(num_classes=-1), ['model.num_classes', '-1']),
    (lambda: small(patch_size=(4, 0)), ['patch_size', '(4, 0)']),
    (lambda: small(stochastic_depth=1.5), ['stochastic_depth', '1.5']),
    (lambda: small(remat='blocks'), ['model.remat', "did you mean 'block'"]),
    (lambda: small(platform='cuda'), ['model.platform', 'gpu']),
    (lambda: models.create('ViT-Q/16'), ['ViT-Q/16', 'ViT-S/16']),
    (lambda: models.create('ViT-B/16', pool='max'), ['model.pool', 'token']),
    (lambda: models.create('BiT-R51x1'), ['BiT-R51x1', 'BiT-R50x1']),
    (lambda: models.create('BiT-R50x1', dropout_rate=0.1),
     ['model.dropout_rate', 'BiT-R50x1 has none, got 0.1',
      '--config.model.dropout_rate=0.0']),
    (lambda: small(token_mixing='tyed'),
     ['model.token_mixing', "did you mean 'tied'"]),
    (lambda: small().init(jax.random.key(0), images(height=10)),
     ['10x12', '4x4', '8 or 12 by 12']),
    (lambda: small().init(jax.random.key(0), images(channels=1)),
     ['1 channels', 'in_channels=3']),
    (lambda: small().apply(random_variables(small(), images()),
                           images(height=16)),
     ['16x12', '12 tokens', '6']),
])
def test_errors_name_the_value_and_the_choices(make, words):
  with pytest.raises(errors.UserError) as e:
    make()
  for word in words:
    assert word in str(e.value)


def test_a_title_shows_what_differs_from_the_name():
  plain = models.create('Mixer-B/16', num_classes=7)
  assert catalog.title(catalog.describe(plain)) == 'Mixer-B/16'
  other = models.create('Mixer-B/16', patch_size=8, hidden_dim=48)
  assert catalog.title(catalog.describe(other, 'Mixer-B/16')) == (
      'Mixer-B/8, hidden_dim 48')
  oblong = models.create('Mixer-B/16', patch_size=(8, 16))
  assert catalog.title(catalog.describe(oblong, 'Mixer-B/16')).startswith(
      'Mixer-B/16, patch_size ')
  assert models.create(**catalog.describe(other, 'Mixer-B/16')) == other


def test_every_network_of_the_catalog_brings_what_others_ask_for():
  for family, row in catalog.FAMILIES.items():
    network = catalog.class_of(family)
    assert issubclass(network, interface.Model) and row[1] == network.__name__
    for name in network.NAMES[:3:2]:   # tracing takes long
      model = models.create(name)
      described = catalog.describe(model)
      assert described['name'] == name and models.create(**described) == model
      shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(
          (1, 224, 224, model.in_channels)))['params']
      assert recognition.infer(shapes) == (model, (224, 224))
      widths = recognition.widths(shapes)
      assert widths and all(getattr(model, k) == v for k, v in widths.items())
      assert model.parameters(224) == trees.count(shapes)
      assert model.forward_flops(224) > 0
      assert network.SHARDING_RULES[-1][0] == '.*'
