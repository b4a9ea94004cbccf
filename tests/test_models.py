"""The network against the paper's equations, in NumPy and float64."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer.core import trees
from mixer.core.errors import UserError
from mixer.models import catalog
from mixer.models import cost
from mixer.models import mixer as mixer_lib
from mixer.models import products

# PAPER: table 1 and the counts that follow from it, with 1,000 classes.
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
  return models.create('Mixer-S/16', **dict(SMALL, **overrides))


def images(n=3, height=8, width=12, channels=3, seed=0):
  return np.random.default_rng(seed).normal(
      size=(n, height, width, channels)).astype(np.float32)


def variables_of(model, x, seed=1):
  """Random values for every parameter, the zero ones too."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda s: jnp.asarray(0.3 * rng.normal(size=s.shape), s.dtype), shapes)


def gelu(x, approximate=True):
  if approximate:
    return 0.5 * x * (1 + np.tanh(
        np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
  return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def reference(params, x, patch, approximate=True):
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


@pytest.mark.parametrize('approximate', [True, False])
def test_equals_the_papers_equations(approximate):
  model, x = small(approximate_gelu=approximate), images()
  variables = variables_of(model, x)
  logits, out = jax.jit(model.apply)(variables, x)
  expected = reference(variables['params'], x, 4, approximate)
  np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)
  assert set(out) == {'stem', 'input_tokens', 'block_0', 'block_1', 'block_2',
                      'pre_logits', 'logits'}
  assert out['block_1'].shape == (3, 6, 12)


def test_zeroed_mlps_make_a_block_the_identity():
  block, x = mixer_lib.MixerBlock(7, 20), images().reshape(3, 24, 12)
  init = functools.partial(block.init, train=False)
  variables = jax.jit(init)(jax.random.key(0), x)
  mlps = {k: jax.tree.map(np.zeros_like, v) if 'mixing' in k else v
          for k, v in variables['params'].items()}
  y = block.apply({'params': mlps}, x, train=False)
  np.testing.assert_array_equal(y, x)


def test_a_block_is_a_depthwise_then_a_1x1_convolution():
  """Section 2's reading of Mixer as a CNN: token mixing is a depth-wise
  convolution of full receptive field whose kernel all channels share."""
  block, x = mixer_lib.MixerBlock(7, 20), images().reshape(3, 24, 12)
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


def test_only_token_mixing_sees_the_order_of_patches():
  model, x = small(), images()
  variables = variables_of(model, x)
  order = np.random.default_rng(3).permutation(6)
  patches = x.reshape(3, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5)
  shuffled = patches.reshape(3, 6, 4, 4, 3)[:, order].reshape(
      3, 2, 3, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(x.shape)
  run = lambda v, x: model.apply(v, x)[1]['block_2']
  assert np.abs(run(variables, x)[:, order] - run(variables, shuffled)).max() > 1
  without = {'params': {
      k: dict(v, token_mixing=jax.tree.map(jnp.zeros_like, v['token_mixing']))
      if k.startswith('MixerBlock') else v
      for k, v in variables['params'].items()}}
  np.testing.assert_allclose(run(without, x)[:, order], run(without, shuffled),
                             rtol=1e-5, atol=1e-5)


def test_one_image_never_moves_another():
  model, x = small(), images()
  variables = variables_of(model, x)
  other = x.copy()
  other[0] = 7
  a, b = model.apply(variables, x)[0], model.apply(variables, other)[0]
  np.testing.assert_array_equal(a[1:], b[1:])
  assert np.abs(a[0] - b[0]).max() > 1e-3


@pytest.mark.parametrize('name', models.names())
def test_scales_have_the_papers_counts(name):
  model = models.create(name)
  shapes = jax.eval_shape(model.init, jax.random.key(0),
                          jnp.zeros((1, 224, 224, 3)))['params']
  assert trees.count(shapes) == COUNTS[name] == cost.parameters(model, 224)
  assert round(cost.forward_flops(model, 224) / 2e9, 4) == GMACS[name]
  assert len(jax.tree.leaves(shapes)) == 6 + 12 * model.num_blocks


def test_the_counts_are_complete():
  assert set(COUNTS) == set(GMACS) == set(models.names())


def test_names_and_shapes_are_the_released_ones():
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


def test_initial_values_are_flaxs():
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


def test_stochastic_depth_grows_linearly_and_does_not_rescale():
  """Block i of n leaves a branch out with probability i / (n - 1) * rate,
  each example and branch for itself, and adds it as it is otherwise."""
  model = small(num_blocks=3, stochastic_depth=0.5)
  x = np.broadcast_to(images(1), (4000, 8, 12, 3))
  variables = variables_of(small(), x[:1])
  run = jax.jit(lambda k: model.apply(
      variables, x, train=True, rngs={'stochastic_depth': k})[1])
  out = jax.device_get(run(jax.random.key(0)))
  plain = model.apply(variables, x[:1])[1]
  np.testing.assert_allclose(
      out['block_0'], np.broadcast_to(plain['block_0'], out['block_0'].shape),
      rtol=1e-5, atol=1e-5)   # the first block always stays
  block = mixer_lib.MixerBlock(7, 20)
  params = {'params': variables['params']['MixerBlock_1']}
  full = block.apply(params, plain['block_0'], train=False)
  kept = np.isclose(out['block_1'], full, atol=1e-4).all((1, 2)).mean()
  gone = np.isclose(out['block_1'], plain['block_0'], atol=1e-4).all(
      (1, 2)).mean()
  assert abs(kept - 0.75**2) < 0.03 and abs(gone - 0.25**2) < 0.02


def test_masks_belong_to_rows_not_to_the_cut_of_the_batch():
  model = small(stochastic_depth=0.5, dropout_rate=0.3)
  x = jnp.asarray(images(8))
  variables = variables_of(small(), x)
  rngs = {'dropout': jax.random.key(1), 'stochastic_depth': jax.random.key(2)}
  run = jax.jit(lambda rows: model.apply(
      variables, x[rows], train=True, rngs=rngs, rows=rows)[0])
  whole = run(np.arange(8))
  np.testing.assert_allclose(run(np.array([5, 2])), whole[np.array([5, 2])],
                             rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('train', [False, True])
def test_the_form_for_gpus_is_the_same_network(train, monkeypatch):
  model, x = small(dropout_rate=0.3), images()
  variables = variables_of(model, x)

  def outcome():
    def objective(variables):
      logits, _ = model.apply(variables, x, train=train,
                              rngs={'dropout': jax.random.key(1)})
      return jnp.sum(logits**2), logits
    return jax.jit(jax.grad(objective, has_aux=True))(variables)

  grads, logits = outcome()
  calls, real = [], products.token_dot
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(products, 'token_dot', lambda x, *args, **more: (
      calls.append(x.shape) or real(x, *args, **more)))
  of_gpu, logits_of_gpu = outcome()
  assert calls == [(3, 12, 6), (3, 12, 7)] * 3   # [B, C, S], [B, C, D_S]
  np.testing.assert_allclose(logits_of_gpu, logits, rtol=1e-4, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(
      a, b, rtol=1e-3, atol=1e-4), of_gpu, grads)


def test_bfloat16_keeps_float32_parameters_and_logits():
  model, x = small(dtype='bfloat16'), images()
  variables = jax.jit(model.init)(jax.random.key(0), x)
  assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  logits, out = jax.jit(model.apply)(variables, x)
  assert logits.dtype == jnp.float32 and out['block_0'].dtype == jnp.bfloat16


def test_without_a_head_the_representation_comes_out():
  x = images()
  for classes in (None, 0):
    model = small(num_classes=classes)
    variables = model.init(jax.random.key(0), x)
    assert 'head' not in variables['params']
    assert model.apply(variables, x)[0].shape == (3, 12)


@pytest.mark.parametrize('make, words', [
    (lambda: models.create('Mixer-B16'), ['Mixer-B16', 'Mixer-B/16']),
    (lambda: models.create('Mixer-X/16'), ['Mixer-X/16', 'Mixer-S/16']),
    (lambda: small(hiden_dim=3), ['hiden_dim', 'hidden_dim']),
    (lambda: small(hidden_dim=0), ['hidden_dim', '0']),
    (lambda: small(stochastic_depth=1.5), ['stochastic_depth', '1.5']),
    (lambda: small().init(jax.random.key(0), images(height=10)),
     ['10x12', '4x4', '8 or 12']),
    (lambda: small().init(jax.random.key(0), images(channels=1)),
     ['1 channels', 'in_channels=3']),
    (lambda: small().apply(variables_of(small(), images()), images(height=16)),
     ['16x12', '12 tokens', '6']),
])
def test_errors_name_the_value_and_the_choices(make, words):
  with pytest.raises(UserError) as e:
    make()
  for word in words:
    assert word in str(e.value)


def test_a_title_tells_what_differs_from_the_name():
  plain = models.create('Mixer-B/16', num_classes=7)
  assert catalog.title(catalog.describe(plain)) == 'Mixer-B/16'
  other = models.create('Mixer-B/16', patch_size=8, hidden_dim=48)
  assert catalog.title(catalog.describe(other, 'Mixer-B/16')) == (
      'Mixer-B/16, patch_size 8, hidden_dim 48')
  assert models.create(**catalog.describe(other, 'Mixer-B/16')) == other
