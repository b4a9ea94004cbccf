"""Optimizers: their formulas, frozen parameters, and factors on the rate."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import finetune
from mixer import models
from mixer.core import errors
from mixer.core import trees
from mixer.training import assembly
from mixer.training import optimizers
from mixer.training import step

TINY = dict(patch_size=4, hidden_dim=16, num_blocks=1, channels_mlp_dim=32)
BODY = '(stem|MixerBlock_.*|pre_head_layer_norm)/.*'
# It adds the same number to all channels of a token, which every LayerNorm
# after it subtracts again. So its gradient is rounding noise around zero.
NO_GRADIENT = 'MixerBlock_0/token_mixing/Dense_1/bias'


def parameters():
  return {'a': {'kernel': jnp.array([[1.0, -2.0]]), 'bias': jnp.array([3.0])}}


def gradients():
  """A gradient of norm 5."""
  return {'a': {'kernel': jnp.array([[3.0, 0.0]]), 'bias': jnp.array([4.0])}}


def test_sgd_clips_the_gradient_before_it_enters_the_momentum():
  optimizer = optimizers.make(
      schedule=lambda step: 0.1, clip_norm=1.0, momentum=0.9)
  state = optimizer.init(parameters())
  first, state = optimizer.update(gradients(), state, parameters())
  second, _ = optimizer.update(gradients(), state, parameters())
  np.testing.assert_allclose(first['a']['kernel'], [[-0.06, 0]], rtol=1e-6)
  np.testing.assert_allclose(second['a']['bias'], [-0.08 * 1.9], rtol=1e-6)


def test_momentum_can_be_bfloat16():
  optimizer = optimizers.make(
      schedule=lambda step: 0.1, momentum_dtype='bfloat16')
  dtypes = {x.dtype for x in jax.tree.leaves(optimizer.init(parameters()))}
  assert jnp.dtype('bfloat16') in dtypes
  assert jnp.dtype('float32') not in dtypes


def test_adam_decays_kernels_only_and_not_through_the_moments():
  rate, decay = 0.01, 0.1
  optimizer = optimizers.make(
      schedule=lambda step: rate, name='adam', clip_norm=None,
      weight_decay=decay)
  updates, _ = optimizer.update(
      gradients(), optimizer.init(parameters()), parameters())
  # At the first step Adam's own update is the sign of the gradient.
  np.testing.assert_allclose(
      updates['a']['kernel'],
      [[-rate * (1 + decay * 1.0), -rate * (0 + decay * -2.0)]], rtol=1e-5)
  np.testing.assert_allclose(updates['a']['bias'], [-rate], rtol=1e-5)


@pytest.mark.parametrize('settings, words', [
    (dict(name='lamb'), ['optimizer.name', 'lamb', 'adam']),
    (dict(momentum=1.0), ['optimizer.momentum', '1.0']),
    (dict(b2=-0.1), ['optimizer.b2', '-0.1']),
    (dict(momentum_dtype='int8'), ['momentum_dtype', 'int8', 'bfloat16']),
    (dict(weight_decay=-1.0), ['optimizer.weight_decay', '-1.0']),
    (dict(clip_norm=-2.0), ['optimizer.clip_norm', '-2.0']),
])
def test_an_error_names_the_setting_and_its_value(settings, words):
  with pytest.raises(errors.UserError) as e:
    optimizers.make(schedule=lambda step: 0.1, **settings)
  for word in words:
    assert word in str(e.value)


class Tuning:
  """One update of a small network, as the fine-tuning config asks for it."""

  def __init__(self, **optimizer):
    c = finetune.get_config('s32,cifar10')
    c.model.update(tokens_mlp_dim=6, num_classes=5, in_channels=3, **TINY)
    c.optimizer.update(momentum_dtype=None, **optimizer)
    c.schedule.update(learning_rate=0.5, warmup_steps=0, decay='constant')
    c.run.update(image_size=8, batch_size=16)
    settings = assembly.Settings(**c.run)
    model = models.create(**c.model)
    self.optimizer, step_fn = assembly.make_step(c, settings, model, 100)
    self.state = functools.partial(
        step.init_state, model, self.optimizer, seed=0,
        image_shape=(8, 8, 3))()
    # With the head's initial zeros, the layers below would get no gradient.
    params = jax.tree.map(lambda x: x, self.state.params)
    params['head']['kernel'] = jax.random.normal(jax.random.key(1), (16, 5))
    self.state = self.state.replace(params=params)
    rng = np.random.default_rng(0)
    batch = dict(
        image=rng.integers(0, 256, (16, 8, 8, 3)).astype(np.uint8),
        labels=rng.integers(0, 5, (16, 1)).astype(np.int32),
        epoch=np.zeros(16, np.int32), record=np.arange(16, dtype=np.int32),
        bad=np.zeros(16, bool))
    self.after, self.metrics = jax.jit(step_fn)(self.state, batch)
    before, after = (trees.flatten(s.params) for s in (self.state, self.after))
    self.moved = {k: np.asarray(after[k] - before[k]) for k in before}

  def moves(self):
    """Names of the parameters that move by more than rounding noise."""
    return {name for name, value in self.moved.items()
            if np.abs(value).max() > 1e-3}

  def norm(self, *names):
    """Norm of the update of some parameters, by default of all."""
    return np.sqrt(sum(
        (self.moved[name] ** 2).sum() for name in names or self.moved))


@pytest.fixture(scope='module')
def plain():
  return Tuning()


@pytest.fixture(scope='module')
def unclipped():
  return Tuning(clip_norm=None)


def test_frozen_parameters_do_not_move_and_do_so_when_not_frozen(unclipped):
  frozen = Tuning(frozen=BODY, clip_norm=None)
  assert unclipped.moves() == unclipped.moved.keys() - {NO_GRADIENT}
  assert frozen.moves() == {'head/kernel', 'head/bias'}
  for name, value in frozen.moved.items():
    assert name.startswith('head/') or not value.any(), name
  for name in ('head/kernel', 'head/bias'):   # are trained as before
    np.testing.assert_allclose(
        frozen.moved[name], unclipped.moved[name], rtol=1e-5, atol=1e-7)


def test_frozen_parameters_have_no_optimizer_state():
  frozen = Tuning(frozen=BODY)
  held = [x for x in jax.tree.leaves(frozen.state.opt_state) if x.ndim]
  assert sorted(x.shape for x in held) == [(5,), (16, 5)]


def test_frozen_parameters_do_not_count_in_the_norm_that_is_clipped(unclipped):
  clip_norm, rate = 1e-3, .5
  frozen = Tuning(frozen=BODY, clip_norm=clip_norm)
  head = unclipped.norm('head/kernel', 'head/bias') / rate
  np.testing.assert_allclose(frozen.metrics['gradient_norm'], head, rtol=1e-5)
  np.testing.assert_allclose(
      unclipped.metrics['gradient_norm'], unclipped.norm() / rate, rtol=1e-5)
  assert unclipped.norm() / rate > 1.1 * head
  np.testing.assert_allclose(frozen.norm(), rate * clip_norm, rtol=1e-4)


def test_rates_multiply_the_update_of_the_first_pattern_that_matches(plain):
  """In the step too, where adding to the parameters rounds."""
  tuned = Tuning(rates='stem/.*=0, head/.*=2,head/bias=7')
  update = lambda tuning: trees.flatten(tuning.optimizer.update(
      plain.state.params, tuning.state.opt_state, plain.state.params)[0])
  given, scaled = update(plain), update(tuned)
  for name, moved in plain.moved.items():
    factor = {'stem': 0, 'head': 2}.get(name.split('/')[0], 1)
    np.testing.assert_array_equal(scaled[name], factor * given[name], name)
    np.testing.assert_allclose(
        tuned.moved[name], factor * moved, atol=1e-6, rtol=0, err_msg=name)
  assert plain.moves() == plain.moved.keys() - {NO_GRADIENT}
  assert tuned.moves() == plain.moves() - {'stem/kernel', 'stem/bias'}
  assert not tuned.moved['stem/kernel'].any()


def test_frozen_and_rates_work_together(unclipped):
  tuned = Tuning(frozen='stem/.*', rates='head/.*=2', clip_norm=None)
  assert 'stem/kernel' in unclipped.moves()
  assert not tuned.moved['stem/kernel'].any()
  np.testing.assert_allclose(
      tuned.moved['head/kernel'], 2 * unclipped.moved['head/kernel'], atol=1e-6)


@pytest.mark.parametrize('optimizer, words', (
    (dict(frozen='stem'), "optimizer.frozen: 'stem' does not match the whole "),
    (dict(frozen='.*'), "optimizer.frozen: '.*' matches every parameter"),
    (dict(frozen='('), r"optimizer.frozen: '\(' is not a regular expression"),
    (dict(rates='Head/.*=2'), "optimizer.rates: 'Head/.*' does not match"),
    (dict(rates='head/.*'), "optimizer.rates: expected 'PATTERN=FACTOR"),
    (dict(rates='head/.*=-1'), "optimizer.rates: expected 'PATTERN=FACTOR"),
))
def test_a_pattern_without_effect_is_an_error(optimizer, words):
  with pytest.raises(errors.UserError, match=words):
    Tuning(**optimizer)
