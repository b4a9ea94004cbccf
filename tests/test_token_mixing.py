"""The table of token mixing: cost, function and change of size of each row."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_networks

from mixer import models
from mixer import pretrained
from mixer.core import errors
from mixer.core import trees
from mixer.models import blocks
from mixer.models import catalog
from mixer.models import mixer
from mixer.models import recognition
from mixer.models import tied_mixing
from mixer.models import token_mixing
from mixer.pretrained import export
from mixer.training import sharding

# S, C and D_S of Mixer-B/32 on 224x224 images.
TOKENS, CHANNELS, HIDDEN = 49, 768, 384
# Parameters and multiply-adds of the token mixing of one block of that size,
# with G = 2 and n = 2, that is S' = 4 * 4, and 12 heads.
#   tied       2 S D_S + D_S + S               2 C S D_S
#   untied     C (2 S D_S + D_S + S)           2 C S D_S
#   grouped    2 G S D_S + D_S + G S           2 (C / G) (G S) D_S
#   views      2 C^2 + those of grouped        2 S C^2 + those of grouped
#   pyramid    S D_S + D_S + D_S S' + S'       C D_S (S + S')
#   affine     S^2 + S                         C S^2
#   gating     (C + 1) 2 D_S + 2 D_S           2 S C D_S
#              + S^2 + S + (D_S + 1) C         + D_S S^2 + S D_S C
#   attention  4 (C + 1) C                     4 S C^2 + 2 S^2 C
GOLDEN = {
    'tied': (38_065, 28_901_376),
    'untied': (29_233_920, 28_901_376),
    'grouped': (75_746, 28_901_376),
    'views': (1_255_394, 86_704_128),
    'pyramid': (25_360, 19_169_280),
    'affine': (2_450, 1_843_968),
    'gating': (889_490, 44_274_048),
    'attention': (2_362_368, 119_293_440),
    'pooling': (0, 0),
    'none': (0, 0),
}
NAMES = tuple(GOLDEN)
SMALL = dict(num_classes=5, hidden_dim=12, num_blocks=1, tokens_mlp_dim=7,
             channels_mlp_dim=20)


def small(mixing, **more):
  """A network with patches of 4 x 4."""
  return models.create('Mixer-S/4', **dict(SMALL, token_mixing=mixing, **more))


def images(n=2, height=8, width=16):
  """Random images, by default of 2 x 4 patches."""
  return np.random.default_rng(0).normal(
      size=(n, height, width, 3)).astype('f4')


def randomly(model, x):
  """Random parameters of a network."""
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)['params']
  draw = np.random.default_rng(1)
  return jax.tree.map(
      lambda s: draw.normal(0, .4, s.shape).astype('f4'), shapes)


def mixed(mixing, number, params, x_BSC, grid, **more):
  """What a row makes of tokens, without the rest of its block."""
  class Alone(nn.Module):
    tokens_mlp_dim = 7
    dropout_rate = 0.
    approximate_gelu = True
    dtype = jnp.float32
    platform = None

    @nn.compact
    def __call__(self, x_BSC):
      return token_mixing.TABLE[mixing].mix(
          self, x_BSC, blocks.NO_MASKS, train=False)
  Alone.number, Alone.grid = number, grid
  return Alone().apply({'params': {'token_mixing': params}}, x_BSC)


def test_every_row_has_golden_counts():
  assert set(GOLDEN) == set(token_mixing.TABLE)


@pytest.mark.parametrize('name', NAMES)
def test_counts_are_those_of_the_block(name):
  """Of its parameters, and of XLA's FLOPs, which include elementwise ones."""
  _, _, number = token_mixing.checked(name, CHANNELS, False).partition(':')
  sizes = tied_mixing.Mixing(name, (7, 7), CHANNELS, HIDDEN, int(number or 1))
  module = mixer.MixerBlock(HIDDEN, 1, mixing=name, grid=(7, 7), number=sizes.n)
  x = jax.ShapeDtypeStruct((1, TOKENS, CHANNELS), jnp.float32)
  parameters, multiply_adds = GOLDEN[name]
  assert tied_mixing.row(name).parameters(sizes) == parameters
  assert sum(count for _, count in sizes.layers()) == multiply_adds
  init = lambda x: module.init(jax.random.key(0), x, train=False)['params']
  params = jax.eval_shape(init, x)
  mine = params.get('token_mixing', {})
  assert trees.count(mine) == parameters
  inner = {n.partition('/')[2] for n, _ in sizes.layers()} - {''}
  assert not inner or inner == set(mine)
  apply = lambda p, x: module.apply({'params': p}, x, train=False)
  flops = jax.jit(apply).lower(params, x).cost_analysis()['flops']
  channel_mixing = 2 * sizes.after.s * CHANNELS
  elementwise = 12 * CHANNELS * (TOKENS + HIDDEN)   # GELU, LayerNorm, skips
  assert 0 <= flops - 2 * (multiply_adds + channel_mixing) < elementwise


@pytest.mark.parametrize('name', [
    name if name in ('tied', 'views', 'pyramid', 'gating') else pytest.param(
        name, marks=pytest.mark.slow) for name in NAMES])
def test_a_network_with_the_row_learns_mixes_and_keeps_images_apart(name):
  model, x = small(name), images()
  params = randomly(model, x)

  @jax.jit
  def run(x):
    def objective(params):
      logits, out = model.apply({'params': params}, x, train=True)
      return jnp.sum(logits**2), (logits, out['block_0'])
    return jax.grad(objective, has_aux=True)(params)

  grads, (logits, tokens) = run(x)
  assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))
  other = x.copy()
  other[0, :4, :4] = 7   # one patch of the first image
  _, (other_logits, other_tokens) = run(other)
  np.testing.assert_array_equal(logits[1], other_logits[1])
  assert np.any(logits[0] != other_logits[0])
  elsewhere = np.any(tokens[0, 1:] != other_tokens[0, 1:])
  assert elsewhere == (name != 'none')
  assert trees.count(params) == model.parameters((8, 16))
  low = jax.eval_shape(small(name, dtype='bfloat16').apply,
                       {'params': params}, x)[1]['block_0']
  assert low.dtype == jnp.bfloat16 and low.shape == tokens.shape


def test_cost_grows_as_the_paper_says():
  """Untied weights are C times as many, for equal FLOPs; a group of G has about
  G times as many; a pyramid is cheaper."""
  count = lambda mixing: (
      models.create('Mixer-B/16', token_mixing=mixing).parameters(224)
      - models.create('Mixer-B/16', token_mixing='none').parameters(224)) / 12
  flops = lambda mixing: models.create(
      'Mixer-B/16', token_mixing=mixing).forward_flops(224)
  assert count('untied') == 768 * count('tied')
  assert flops('untied') == flops('grouped:8') == flops('tied')
  assert round(count('grouped:4') / count('tied'), 2) == 3.99
  assert flops('pyramid') < 0.65 * flops('tied')
  assert flops('affine') < flops('tied') < flops('attention')


def test_a_group_and_a_step_of_one_are_the_papers_bit_for_bit():
  """A view of one is too, to rounding: XLA may fuse its two more products."""
  model, x = small('tied', num_blocks=2), images()
  params = randomly(model, x)
  run = lambda mixing, params: jax.jit(model.clone(token_mixing=mixing).apply)(
      {'params': params}, x)[0]
  wanted = run('tied', params)
  for mixing in ('grouped:1', 'pyramid:1'):
    np.testing.assert_array_equal(run(mixing, params), wanted)
  eye = np.eye(12, dtype='f4')
  for i in range(2):   # a view that is the token itself
    block = params[f'MixerBlock_{i}']
    block['token_mixing'] = dict(
        mlp=block['token_mixing'], maps=dict(kernel=eye[:, None]),
        back=dict(kernel=eye[None]))
  np.testing.assert_allclose(run('views:1', params), wanted, rtol=1e-5)


def gelu(x):
  return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def reference_grouped(p, x_SC):
  mlp, out = p['groups_3'], np.zeros_like(x_SC)
  for c in range(0, x_SC.shape[1], 3):
    column = np.concatenate([x_SC[:, c], x_SC[:, c + 1], x_SC[:, c + 2]])
    h = gelu(column @ mlp['Dense_0']['kernel'] + mlp['Dense_0']['bias'])
    y = h @ mlp['Dense_1']['kernel'] + mlp['Dense_1']['bias']
    out[:, c:c + 3] = y.reshape(3, -1).T
  return out


def reference_affine(p, x_SC):
  return p['kernel'].T @ x_SC + p['bias'][:, None]


def reference_gating(p, x_SC):
  z = gelu(x_SC @ p['expand']['kernel'] + p['expand']['bias'])
  kept, gate = z[:, :7], z[:, 7:]
  gate = (gate - gate.mean(1, keepdims=True)) / np.sqrt(
      gate.var(1, keepdims=True) + 1e-6)
  gate = gate * p['norm']['scale'] + p['norm']['bias']
  gate = reference_affine(p['tokens'], gate)
  return (kept * gate) @ p['contract']['kernel'] + p['contract']['bias']


def reference_pooling(p, x_SC):
  del p
  x, out = x_SC.reshape(2, 4, -1), np.zeros((2, 4, x_SC.shape[1]))
  for i in range(2):
    for j in range(4):
      near = x[max(i - 1, 0):i + 2, max(j - 1, 0):j + 2]
      out[i, j] = near.mean((0, 1)) - x[i, j]
  return out.reshape(x_SC.shape)


@pytest.mark.parametrize('name,number,reference', [
    ('grouped', 3, reference_grouped), ('affine', 1, reference_affine),
    ('gating', 1, reference_gating), ('pooling', 1, reference_pooling)])
def test_the_row_computes_its_formula(name, number, reference):
  setting = f'{name}:{number}' if number > 1 else name
  params = randomly(small(setting), images())['MixerBlock_0'].get(
      'token_mixing', {})
  x = np.random.default_rng(2).normal(size=(2, 8, 12)).astype('f4')
  got = mixed(name, number, params, x, (2, 4))
  np.testing.assert_allclose(got, [reference(params, one) for one in x],
                             rtol=1e-4, atol=1e-5)


def test_only_some_rows_see_the_order_of_patches():
  """Attention has no position embedding."""
  x = np.random.default_rng(2).normal(size=(1, 8, 12)).astype('f4')
  def sees(name, number):
    setting = f'{name}:{number}' if number > 1 else name
    params = randomly(small(setting), images())['MixerBlock_0'].get(
        'token_mixing', {})
    run = lambda x: mixed(name, number, params, x, (2, 4))
    return not np.allclose(run(x)[:, ::-1], run(x[:, ::-1]), atol=1e-4)
  assert not sees('attention', 3) and not sees('none', 1)
  assert sees('gating', 1) and sees('views', 3)


@pytest.mark.parametrize('setting,words', [
    ('groupd:2', "did you mean 'grouped'"),
    ('grouped:5', 'grouped:5: expected a positive integer that divides '
     'hidden_dim, 12,'),
    ('views:0', 'views:0: expected a positive integer that divides'),
    ('attention:x', 'attention:x: expected'),
    ('pyramid:', 'pyramid:: expected a positive integer after'),
    ('affine:2', 'affine takes no number')])
def test_wrong_settings_are_refused(setting, words):
  with pytest.raises(errors.UserError, match='model.token_mixing') as e:
    small(setting)
  assert words in str(e.value)


def test_numbers_are_in_the_card():
  assert small('grouped').token_mixing == 'grouped:2'
  assert models.create('Mixer-L/16', token_mixing='attention').token_mixing == (
      'attention:16')
  model = small('attention')
  assert catalog.describe(model)['token_mixing'] == 'attention:1'
  assert models.create(**catalog.describe(model)) == model


def test_a_hidden_width_without_effect_is_said_in_one_line(caplog):
  for setting in NAMES:
    catalog.say_without_effect(dict(name='Mixer-S/4', tokens_mlp_dim=7),
                               small(setting))
  assert caplog.messages == [
      f'model.tokens_mlp_dim has no effect on model.token_mixing={setting}'
      for setting in ('affine', 'attention:1', 'pooling', 'none')]
  catalog.say_without_effect(dict(name='Mixer-S/4', tokens_mlp_dim=None),
                             small('none'))
  assert len(caplog.messages) == 4


@pytest.mark.parametrize('setting,size', [
    ('untied', 16), ('grouped:3', 16), ('grouped:1', 16), ('views:4', 16),
    ('affine', 16), ('gating', 16), ('attention:3', None), ('pyramid:2', None),
    ('pooling', None), ('none', None)])
def test_weights_without_a_card_show_the_row_or_are_refused(setting, size):
  model = small(setting, num_blocks=2)
  shapes = jax.eval_shape(model.init, jax.random.key(0),
                          images(1, 16, 16))['params']
  if size is None and setting != 'attention:3':
    with pytest.raises(errors.UserError, match='card, FILE.json'):
      recognition.infer(shapes)
    assert 'token_mixing' not in recognition.widths(shapes)
    return
  if size is None:
    with pytest.raises(errors.UserError, match='any number of.*card'):
      recognition.infer(shapes)
  found, _ = recognition.infer(shapes, 16)
  # A group of one is the paper's, and D_S is nowhere in some rows.
  found = found.clone(tokens_mlp_dim=7) if setting in (
      'affine', 'attention:3') else found
  assert found == model.clone(token_mixing=setting.replace('grouped:1', 'tied'))


@pytest.mark.parametrize('name', ['affine', 'gating', 'attention', 'pooling',
                                  'none'])
def test_blocks_of_a_larger_image_are_mixed_as_before(name):
  """By the method 'block', each part of an image as before; for rows that are
  not tied to S, nothing changes."""
  model, x = small(name), images(1, 8, 8)
  params = randomly(model, x)
  large, changed = pretrained.resize(model, params, image_size=16, from_size=8)
  if name in ('attention', 'pooling', 'none'):
    assert large == model
    jax.tree.map(np.testing.assert_array_equal, changed, params)
    return
  parts = np.tile(x, (1, 2, 2, 1))
  np.testing.assert_allclose(large.apply({'params': changed}, parts)[0],
                             model.apply({'params': params}, x)[0], rtol=1e-4)
  constant = np.full((1, 24, 12, 3), .3, 'f4')
  other, changed = pretrained.resize(model, params, image_size=(24, 12),
                                     from_size=8, method='resample')
  tokens = other.apply({'params': changed}, constant)[1]['block_0']
  assert tokens.shape[1] == 18 and np.isfinite(tokens).all()


@pytest.mark.parametrize('name', ['untied', 'grouped', 'views', 'pyramid'])
def test_rows_that_cannot_be_resized_say_so(name):
  model = small(name)
  with pytest.raises(errors.UserError, match=f'block is not .*{name}.*2x2'):
    pretrained.resize(model, randomly(model, images(1, 8, 8)), image_size=16)


def test_blocks_of_a_pyramid_may_be_computed_again_but_not_scanned():
  model, x = small('pyramid', num_blocks=4), images(1, 8, 8)
  params = randomly(model, x)
  grads = [jax.jit(jax.grad(lambda p, m=m: jnp.sum(
      m.apply({'params': p}, x, train=True)[0]**2)))(params)
           for m in (model, model.clone(remat='block'))]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), *grads)
  with pytest.raises(errors.UserError, match='model.scan: .*pyramid.*scan=Fal'):
    small('pyramid', scan=True)
  shapes = [v.shape[1] for k, v in jax.eval_shape(
      model.apply, {'params': params}, x)[1].items() if 'block_' in k]
  assert shapes == [4, 4, 1, 1]


def test_parameters_of_the_rows_are_split_over_devices():
  plan = sharding.plan(strategy='fsdp', fsdp=2, model=2)
  def spec(setting, name):
    model = models.create('Mixer-S/16', token_mixing=setting, num_blocks=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0),
                            jnp.zeros((1, 224, 224, 3)))['params']
    return tuple(trees.flatten(plan.state(shapes, model.SHARDING_RULES))[
        f'MixerBlock_0/token_mixing/{name}'].spec)
  assert spec('untied', 'SeparateDense_1/kernel')[0] == ('model', 'fsdp')
  assert spec('grouped:4', 'groups_4/Dense_0/kernel') == (
      None, ('model', 'fsdp'))
  assert spec('views', 'mlp/Dense_1/kernel') == (('model', 'fsdp'),)
  assert spec('attention', 'query/kernel') == ('fsdp', 'model', None)


@pytest.mark.slow
@pytest.mark.parametrize('setting', [
    'untied', 'grouped', 'views', 'pyramid', 'affine', 'gating', 'attention',
    'pooling', 'none'])
def test_every_row_becomes_a_program(setting, tmp_path):
  # 3 x 5 patches: means over squares of the grid meet its edges.
  network = small_networks.make(size=(24, 40), token_mixing=setting)
  for format in ('onnx', 'stablehlo'):
    path = tmp_path / f'p{export.SUFFIXES[format]}'
    out = export.export(network, str(path), format=format)
    assert out['difference'] < 1e-5


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
          linear, parameters=lambda z: z.s**2 + z.s,
          multiply_adds=lambda z: z.c * z.s**2,
          tokens=lambda p: p['kernel'].shape[0]))
  return mixer.MlpMixer(
      num_classes=5, hidden_dim=12, num_blocks=2, tokens_mlp_dim=7,
      channels_mlp_dim=20, patch_size=4, token_mixing='linear')


def test_a_function_and_a_row_are_all_that_a_new_token_mixing_needs(
    with_linear):
  model, images = with_linear, jnp.ones((1, 8, 12, 3))
  params = model.init(jax.random.key(0), images)['params']
  assert params['MixerBlock_1']['token_mixing']['kernel'].shape == (6, 6)
  tied = model.clone(token_mixing='tied')
  assert trees.count(params) == model.parameters((8, 12))
  assert tied.parameters((8, 12)) - model.parameters((8, 12)) == (
      2 * (2 * 6 * 7 + 7 + 6 - (36 + 6)))
  assert tied.forward_flops((8, 12)) - model.forward_flops((8, 12)) == 2 * 2 * 12 * (2 * 6 * 7 - 36)
  with pytest.raises(errors.UserError, match='block is not .*linear'):
    pretrained.resize(model, params, image_size=(16, 24), from_size=(8, 12))


def test_the_card_names_token_mixing_only_if_it_is_not_the_papers(with_linear):
  assert catalog.describe(with_linear)['token_mixing'] == 'linear'
  assert catalog.title(catalog.describe(with_linear)).endswith(
      'token_mixing linear')
  assert 'token_mixing' not in catalog.describe(
      with_linear.clone(token_mixing='tied'))
