"""analysis/units: hidden units as images, their frequencies and their pairs."""
import jax
import numpy as np
import pytest

from mixer import models
from mixer.analysis import units
from mixer.core import errors

ROWS, COLUMNS = 12, 16


def wave(down, right, phase):
  """A sinusoid with so many cycles per image in each direction."""
  y, x = np.mgrid[:ROWS, :COLUMNS]
  return np.cos(2 * np.pi * (down * y / ROWS + right * x / COLUMNS) + phase)


def test_the_frequency_of_a_sinusoid_is_its_cycles_per_image():
  cycles = [(0, 0), (0, 1), (3, 0), (3, 4), (5, 7), (6, 8)]
  planted = np.stack([wave(*c, 0.4) for c in cycles])
  np.testing.assert_allclose(units.frequencies(planted),
                             [np.hypot(*c) for c in cycles], atol=1e-9)
  colours = np.stack([planted, 2 * planted, 0 * planted], axis=-1)
  np.testing.assert_allclose(units.frequencies(colours),
                             units.frequencies(planted))


def test_a_mean_counts_as_frequency_0_and_an_empty_unit_has_0():
  # A mean of a and a cosine of amplitude 1 have powers a^2 and 1/2.
  found = units.frequencies(np.stack([1 + wave(0, 3, 0), 0 * wave(0, 3, 0)]))
  np.testing.assert_allclose(found, [3 * 0.5 / 1.5, 0], atol=1e-12)


@pytest.mark.parametrize('seed', range(3))
def test_planted_pairs_of_opposite_phase_are_found_and_sorted(seed):
  """Pairs of several frequencies and phases, of other amplitudes, shuffled."""
  rng = np.random.default_rng(seed)
  waves = [(cycles, phase) for cycles in ((0, 1), (2, 1), (3, 4), (5, 5))
           for phase in (0.2, 1.4)]
  planted = np.stack([rng.uniform(0.1, 9) * wave(*cycles, phase + half)
                      for cycles, phase in waves for half in (0, np.pi)])
  hidden = rng.permutation(len(planted))
  order = hidden[units.sort_and_pair(planted[hidden])]
  pairs = order.reshape(-1, 2)
  assert (pairs[:, 0] // 2 == pairs[:, 1] // 2).all()
  # Waves 0 and 1 have the lowest frequency, 2 and 3 the next, and so on.
  assert (pairs[:, 0] // 4 == [0, 0, 1, 1, 2, 2, 3, 3]).all()
  assert units.opposition(planted) == pytest.approx(1)


def test_opposition_stands_out_from_its_baselines():
  rng = np.random.default_rng(0)
  one = rng.standard_normal((24, 8, 8))
  planted = np.concatenate([one, 0.1 * rng.standard_normal(one.shape) - one])
  base = units.baselines(planted)
  assert units.opposition(planted) > 0.98
  # Normal units of 64 weights have cosines of about +-1/8; of 47 others, the
  # closest inverse has some two of these.
  assert 0.15 < base['random'] < 0.4 and 0.15 < base['smooth'] < 0.4
  assert 0.15 < base['alike'] < 0.4


def test_random_units_as_smooth_as_the_given_ones_are_opposite_by_chance():
  """All units of one frequency lie in a plane, so each has an inverse nearby:
  only the baseline of smooth units shows that this is chance."""
  rng = np.random.default_rng(0)
  same = np.stack([wave(0, 2, phase) for phase in rng.uniform(0, 6.28, 80)])
  base = units.baselines(same)
  assert units.opposition(same) > 0.7 and base['smooth'] > 0.7
  assert base['random'] < 0.3


def test_the_unit_that_is_left_over_comes_last():
  planted = np.stack([wave(0, 1, 0), wave(5, 5, 0), wave(0, 1, np.pi)])
  assert units.sort_and_pair(planted).tolist() == [0, 2, 1]


def network(name='Mixer-S/4', size=(8, 12), **settings):
  model = models.create(name, num_classes=3, hidden_dim=8, num_blocks=2,
                        channels_mlp_dim=8, **settings)
  shapes = jax.eval_shape(model.init, jax.random.key(0),
                          np.zeros((1, *size, 3)))['params']
  rng = np.random.default_rng(0)
  return model, jax.tree.map(
      lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


def test_units_are_the_columns_of_the_first_layer_on_the_grid_of_patches():
  model, params = network(tokens_mlp_dim=5)
  kernel = params['MixerBlock_1']['token_mixing']['Dense_0']['kernel']
  found = units.token_units(model, params, 1, image_size=(8, 12))
  assert found.shape == (5, 2, 3) and found.dtype == np.float32
  np.testing.assert_array_equal(found[4], kernel[:, 4].reshape(2, 3))
  stem = units.stem_units(params)
  assert stem.shape == (8, 4, 4, 3)
  np.testing.assert_array_equal(stem[7], params['stem']['kernel'][..., 7])


@pytest.mark.parametrize('order,moved', [
    ('patches:4:0', False), ('patches:8:0', False), ('patches:2:0', True),
    ('patches:6:0', True), ('within:4:0', True), ('both:8:0', True),
    ('all', True), (None, False)])
def test_which_orders_move_the_pixels_of_a_stem(order, moved):
  model = models.create('Mixer-S/4', pixel_order=order)
  assert units.stem_is_moved(model, np.zeros((8, 4, 4, 3))) == moved
  # A convolution that is larger than its patch, as a BiT's.
  assert units.stem_is_moved(model, np.zeros((8, 7, 7, 3))) == bool(order)


@pytest.mark.parametrize('order', ['patches:4:1', 'both:4:1', 'both:8:2',
                                   'within:2:0'])
def test_weights_stand_where_the_image_has_the_patch(order):
  """The patch that a token sees is found by the network's own order."""
  model, params = network(size=(8, 16), tokens_mlp_dim=5, pixel_order=order)
  if order == 'both:8:2':   # mixes the pixels of 2 x 2 patches
    with pytest.raises(errors.UserError, match='pixel_order.*both:8:2'):
      units.token_units(model, params, 0, (8, 16))
    return
  kernel = params['MixerBlock_0']['token_mixing']['Dense_0']['kernel']
  found = units.token_units(model, params, 0, (8, 16))
  for row in range(2):
    for column in range(4):
      image = np.zeros((1, 8, 16, 1), np.float32)
      image[:, 4 * row:4 * row + 4, 4 * column:4 * column + 4] = 1
      seen = np.asarray(model.ordered(image))[0, ::4, ::4, 0].reshape(-1)
      np.testing.assert_array_equal(found[:, row, column],
                                    kernel[np.argmax(seen)])


def test_a_single_unit_has_no_pair_and_is_refused():
  one = np.ones((1, 2, 3))
  with pytest.raises(errors.UserError, match='tokens_mlp_dim.*1 hidden unit'):
    units.opposition(one)


@pytest.mark.parametrize('layer,size,words', [
    (2, (8, 12), ('layer 2', 'Mixer-S/4', '0 to 1')),
    (-1, (8, 12), ('layer -1',)), (0, None, ('6 inputs', 'square')),
    (0, (16, 16), ('6 inputs', '(4, 4)')),
])
def test_a_layer_that_does_not_exist_or_fit_is_refused(layer, size, words):
  with pytest.raises(errors.UserError) as e:
    units.token_units(*network(tokens_mlp_dim=5), layer, size)
  for word in words:
    assert word in str(e.value)


def test_a_network_without_token_mixing_is_refused_but_has_stem_units():
  model, params = network('ViT-S/4', num_heads=2)
  with pytest.raises(errors.UserError, match='ViT-S/4.* no token-mixing units'):
    units.token_units(model, params, 0)
  assert units.stem_units(params).shape == (8, 4, 4, 3)
