"""The optax pipeline and the step: formulas, purity, and many devices."""
import functools
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from mixer import models
from mixer.core import checkpoint
from mixer.core import trees
from mixer.core.errors import UserError
from mixer.images import augment
from mixer.models.mixer import MlpMixer
from mixer.training import loop
from mixer.training import losses
from mixer.training import optimizers
from mixer.training import run
from mixer.training import schedules
from mixer.training import sharding
from mixer.training import step as steps


def parameters():
  return {'a': {'kernel': jnp.array([[1.0, -2.0]]), 'bias': jnp.array([3.0])}}


def gradients(scale=1.0):
  return {'a': {'kernel': scale * jnp.array([[3.0, 0.0]]),
                'bias': scale * jnp.array([4.0])}}


def test_cosine_by_its_formula():
  s = schedules.make(learning_rate=0.5, total_steps=110, warmup_steps=10,
                    end_fraction=0.1)
  for t in (0, 3, 10, 47, 110, 200):
    progress = min(max(t - 10, 0) / 100, 1)
    wave = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * progress))
    expected = 0.5 * t / 10 if t < 10 else 0.5 * wave
    np.testing.assert_allclose(s(t), expected, rtol=1e-6, atol=1e-7)


def test_linear_by_its_formula_and_constant():
  s = schedules.make(learning_rate=1e-3, total_steps=110, warmup_steps=10,
                    decay='linear', end_fraction=1e-5)
  np.testing.assert_allclose(s(5), 5e-4, rtol=1e-6)
  np.testing.assert_allclose(s(60), 1e-3 * (0.5 + 0.5e-5), rtol=1e-5)
  np.testing.assert_allclose(s(110), 1e-8, rtol=1e-3)
  c = schedules.make(learning_rate=0.2, total_steps=9, decay='constant')
  assert float(c(0)) == float(c(8)) == np.float32(0.2)


def test_a_warm_up_longer_than_the_run_is_shortened():
  s = schedules.make(learning_rate=1.0, total_steps=20, warmup_steps=10_000)
  assert float(s(1)) == 0.5 and float(s(2)) == 1.0
  s = schedules.make(learning_rate=1.0, total_steps=3, warmup_steps=10_000)
  assert float(s(0)) == 1.0


def test_sgd_clips_then_adds_momentum():
  tx = optimizers.make(schedule=lambda t: 0.1, clip_norm=1.0, momentum=0.9)
  state = tx.init(parameters())
  first, state = tx.update(gradients(), state, parameters())
  second, _ = tx.update(gradients(), state, parameters())
  np.testing.assert_allclose(first['a']['kernel'], [[-0.06, 0]], rtol=1e-6)
  np.testing.assert_allclose(second['a']['bias'], [-0.08 * 1.9], rtol=1e-6)


def test_the_accumulator_may_be_bfloat16():
  tx = optimizers.make(schedule=lambda t: 0.1, momentum_dtype='bfloat16')
  kinds = {x.dtype for x in jax.tree.leaves(tx.init(parameters()))}
  assert jnp.dtype('bfloat16') in kinds and jnp.dtype('float32') not in kinds


def test_adam_decays_kernels_only_and_outside_the_moments():
  rate, decay = 0.01, 0.1
  tx = optimizers.make(schedule=lambda t: rate, name='adam', clip_norm=None,
                      weight_decay=decay)
  updates, _ = tx.update(gradients(), tx.init(parameters()), parameters())
  # At the first step Adam's own update is the sign of the gradient.
  np.testing.assert_allclose(
      updates['a']['kernel'],
      [[-rate * (1 + decay * 1.0), -rate * (0 + decay * -2.0)]], rtol=1e-5)
  np.testing.assert_allclose(updates['a']['bias'], [-rate], rtol=1e-5)


def test_sigmoid_sums_over_classes_and_softmax_does_not_care():
  logits = np.array([[0.3, -1.2, 2.0]], np.float32)
  targets = np.array([[1.0, 0.0, 1.0]], np.float32)
  p = 1 / (1 + np.exp(-logits))
  by_hand = -(np.log(p[0, 0]) + np.log(1 - p[0, 1]) + np.log(p[0, 2]))
  np.testing.assert_allclose(losses.make(name='sigmoid')(logits, targets),
                             [by_hand], rtol=1e-5)
  soft = losses.make(name='softmax', label_smoothing=0.3)
  one = np.array([[0.0, 1.0, 0.0]], np.float32)
  log_p = np.log(np.exp(logits) / np.exp(logits).sum())
  np.testing.assert_allclose(
      soft(logits, one), [-(log_p * [0.1, 0.8, 0.1]).sum()], rtol=1e-5)


def test_several_labels_become_one_target_row():
  labels = np.array([[2, 0, -1], [1, -1, -1]])
  np.testing.assert_array_equal(losses.targets_of(labels, 4),
                                [[1, 0, 1, 0], [0, 1, 0, 0]])


@pytest.mark.parametrize('call, words', [
    (lambda: losses.make(name='hinge'), ['loss.name', 'hinge', 'sigmoid']),
    (lambda: losses.make(label_smoothing=1.0), ['label_smoothing', '1.0']),
    (lambda: optimizers.make(schedule=None, name='lamb'), ['lamb', 'adam']),
    (lambda: optimizers.make(schedule=None, momentum=1.0), ['momentum', '1.0']),
    (lambda: schedules.make(learning_rate=-1.0, total_steps=9), ['-1.0']),
    (lambda: schedules.make(learning_rate=1.0, total_steps=9, decay='steps'),
     ['steps', 'cosine']),
    (lambda: sharding.plan(strategy='zero'), ['zero', 'fsdp']),
])
def test_errors_name_the_value_and_the_choices(call, words):
  with pytest.raises(UserError) as e:
    call()
  for word in words:
    assert word in str(e.value)


@pytest.mark.parametrize('step, every, total, expected', [
    (1, 1, 9, True), (3, 4, 9, False), (4, 4, 9, True), (9, 4, 9, True),
    (9, 100, 9, True), (5, 0, 9, False), (9, 0, 9, True)])
def test_due(step, every, total, expected):
  assert loop.due(step, every, total) is expected


SMALL = dict(num_classes=5, hidden_dim=16, num_blocks=2, tokens_mlp_dim=8,
             channels_mlp_dim=24, stochastic_depth=0.4, dropout_rate=0.2,
             head_bias=-1.0)


class Setting:
  """A small network, its step, and a batch that lives on the device."""

  def __init__(self, plan=None, micro_batches=1, name='sgd', mixup=0.5,
               augmentation=None, initialised=True, **overrides):
    self.plan = plan or sharding.plan(devices=jax.devices()[:1])
    model = models.create('Mixer-S/4', **{**SMALL, **overrides})
    rate = schedules.make(learning_rate=0.05, total_steps=20)
    tx = optimizers.make(schedule=rate, name=name, weight_decay=1e-2)
    step = steps.make_train_step(
        model, tx, schedule=rate, loss=losses.make(name='sigmoid'), seed=3,
        augment=augment.make(**(dict(   # RandAugment: tests/test_augment.py
            flip=True, pad_crop=1, mixup=mixup) if augmentation is None
                                else augmentation)),
        num_classes=5, micro_batches=micro_batches)
    init = functools.partial(steps.init_state, model, tx, seed=3,
                             image_shape=(8, 8, 3))
    self.state = jax.eval_shape(init)
    self.shardings = self.plan.state(self.state, MlpMixer.SHARDING_RULES)
    if initialised:
      self.state = jax.jit(init, out_shardings=self.shardings)()
    self.step = jax.jit(step,
                        out_shardings=(self.shardings, self.plan.replicated))
    rng = np.random.default_rng(0)
    self.resident = jax.device_put(
        {'image': rng.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8),
         'labels': rng.integers(0, 5, (40, 1)).astype(np.int32)},
        self.plan.replicated)

  def batch(self, t):
    rng = np.random.default_rng(t)
    record = rng.integers(0, 40, 16).astype(np.int32)
    return self.plan.put_batch(dict(
        position=record, record=record, epoch=np.full(16, t, np.int32),
        bad=record == 7))

  def run(self, count=3):
    state = self.state
    for t in range(count):
      state, metrics = self.step(state, self.batch(t), self.resident)
    return state, metrics


def close(a, b, tolerance=2e-5):
  for name, x in trees.flatten(a.params).items():
    np.testing.assert_allclose(
        x, trees.flatten(b.params)[name], rtol=tolerance, atol=tolerance,
        err_msg=name)


@pytest.fixture(scope='module')
def single():
  return Setting().run()[0]


def test_the_step_is_pure_and_the_same_twice(single):
  again = Setting().run()[0]
  assert (trees.digest(again.params) == trees.digest(single.params)).all()
  assert int(again.step) == 3


@pytest.mark.parametrize('strategy', sharding.STRATEGIES)
def test_eight_devices_give_the_single_devices_step(single, strategy):
  """And count the examples that stood in for others since the start."""
  several, metrics = Setting(sharding.plan(strategy=strategy)).run()
  close(single, several)
  expected = sum(
      int((np.random.default_rng(t).integers(0, 40, 16) == 7).sum())
      for t in range(3))
  assert expected > 0
  assert int(single.bad) == int(several.bad) == int(metrics['bad']) == expected


def test_fsdp_holds_an_eighth_of_large_parameters():
  plan = sharding.plan(strategy='fsdp')
  x = jax.ShapeDtypeStruct((512, 64), jnp.float32)
  placed = jax.jit(lambda: jnp.zeros((512, 64)),
                   out_shardings=plan.state(x, MlpMixer.SHARDING_RULES))()
  assert {s.data.shape for s in placed.addressable_shards} == {(64, 64)}


@pytest.mark.parametrize('micro_batches, devices', [
    (2, 2), *(pytest.param(*case, marks=pytest.mark.slow)
              for case in ((2, 1), (4, 1), (4, 2)))])
def test_accumulation_equals_the_whole_batch(single, micro_batches, devices):
  """Mixup, dropout and stochastic depth included."""
  plan = sharding.plan(devices=jax.devices()[:devices])
  close(single, Setting(plan, micro_batches=micro_batches).run()[0])


CHEAPER = {
    'block': dict(remat='block'), 'dots': dict(remat='dots'),
    'scan': dict(scan=True), 'block-scan': dict(remat='block', scan=True),
    'dots-scan': dict(remat='dots', scan=True)}


def two_steps(plan=None, **overrides):
  """(state, metrics) after two steps without augmentation, from parameters
  that are all drawn: at a head of zeros no gradient would reach a block."""
  setting = Setting(plan, augmentation={}, initialised=False, **overrides)
  rng = np.random.default_rng(0)
  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), setting.state)
  state = state.replace(params=jax.tree.map(
      lambda x: rng.normal(0, 0.3, x.shape).astype(x.dtype), state.params))
  setting.state = jax.device_put(state, setting.shardings)
  return setting.run(2)


@pytest.fixture(scope='module')
def light():
  return two_steps()


def same_step(one, other):
  for name in ('loss', 'gradient_norm', 'accuracy'):
    np.testing.assert_allclose(other[1][name], one[1][name], rtol=2e-6)
  close(one[0], other[0], 5e-6)


@pytest.mark.parametrize('cheaper', [
    'dots', 'block-scan', *(   # each compiles for ten seconds
        pytest.param(name, marks=pytest.mark.slow)
        for name in ('block', 'scan', 'dots-scan'))])
def test_computed_again_or_in_a_loop_it_is_the_plain_step(light, cheaper):
  """With dropout and stochastic depth, whose masks must be the same twice."""
  same_step(light, two_steps(**CHEAPER[cheaper]))


def test_over_devices_too_and_other_masks_would_show(light):
  plan = sharding.plan(strategy='fsdp', fsdp=2, model=2)
  same_step(light, two_steps(plan, remat='block', scan=True))
  with pytest.raises(AssertionError):
    same_step(light, two_steps(dropout_rate=0.201))


def forward(model, **how):
  """(shapes of the parameters, a function of them)"""
  images = jnp.ones((67, 8, 8, 3))   # no other size has the factor 67
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  return shapes, lambda params: model.apply({'params': params}, images, **how)


@pytest.mark.parametrize('cheaper', CHEAPER.values(), ids=CHEAPER)
def test_it_changes_no_name_and_no_evaluation(cheaper):
  known, plain = forward(models.create('Mixer-S/4', **SMALL))
  shapes, other = forward(models.create('Mixer-S/4', **SMALL, **cheaper))
  assert shapes == known
  assert str(jax.make_jaxpr(plain)(known)) == str(jax.make_jaxpr(other)(known))
  assert {'stem', 'block_0', 'block_1', 'logits'} <= jax.eval_shape(
      other, shapes)[1].keys()


def kept(**overrides):
  """Bytes of a batch that wait for the backward pass, by a block."""
  def of_all(num_blocks):
    rngs = {n: jax.random.key(0) for n in ('dropout', 'stochastic_depth')}
    shapes, run = forward(models.create(
        'Mixer-S/4', **{**SMALL, 'num_blocks': num_blocks, **overrides}),
        train=True, rngs=rngs)
    backward = jax.eval_shape(
        lambda params: jax.vjp(lambda p: run(p)[0], params)[1], shapes)
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward)
               if x.size % 67 == 0)
  return (of_all(4) - of_all(2)) / 2


def test_less_waits_for_the_backward_pass():
  """Of a block its input alone, or the products' results as well."""
  plain, of_input = kept(), 67 * 4 * 16 * 4   # images, tokens, channels, bytes
  for scan in (False, True):
    assert kept(remat='block', scan=scan) == of_input
    assert of_input < kept(remat='dots', scan=scan) < 0.7 * plain


@pytest.mark.slow   # two runs that compile
def test_a_plain_run_goes_on_with_scan_and_remat(tmp_path):
  """What it has saved fits, and ends where it would have ended."""
  def config(**model):
    c = digits.get_config()
    c.model.update(hidden_dim=16, num_blocks=2, dropout_rate=0.1, **model)
    c.checkpoint.every = 2
    c.run.update(batch_size=16, total_steps=4, log_every=1)
    return c
  workdir = tmp_path / 'run'
  run.train(config(), str(workdir))
  last = workdir / 'checkpoints' / '4'
  whole = trees.flatten(checkpoint.load_params(str(last)))
  shutil.rmtree(last)   # as if killed before
  run.train(config(scan=True, remat='block'), str(workdir))
  for name, value in trees.flatten(checkpoint.load_params(str(last))).items():
    np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-6,
                               err_msg=name)


def test_a_run_read_in_sequence_does_not_go_on_at_random():
  """Whichever of the two fingerprints says more."""
  number = jax.ShapeDtypeStruct((), jnp.int32)
  shapes = steps.State(step=number, params={}, opt_state={}, bad=number)
  stored = types.SimpleNamespace(restore=lambda *a: (
      {}, dict(step=jnp.array(3)), dict(data=dict(source='a', readers=4))))
  for now, message in ((dict(source='a'), 'readers was 4, is None'),
                       (dict(source='b', readers=4), 'source was a, is b')):
    with pytest.raises(UserError, match=message):
      run._resume(stored, shapes, now)


def test_labels_count_as_much_as_their_weights():
  labels = jnp.array([[2, 0], [1, -1]])
  weights = jnp.array([[.5, 1.], [.25, 0.]])
  np.testing.assert_array_equal(
      losses.targets_of(labels, 3, weights), [[1, 0, .5], [0, .25, 0]])
  np.testing.assert_array_equal(
      losses.targets_of(labels, 3), [[1, 0, 1], [0, 1, 0]])


def test_augmentation_follows_the_example_not_its_row():
  a = Setting(mixup=0.0)
  first = a.batch(0)
  turned = {k: jnp.roll(v, 1) for k, v in first.items()}
  keys = lambda batch: np.asarray(jax.random.key_data(
      steps.rng.of_examples(steps.rng.stream(3, 'augment'), batch['epoch'],
                            batch['record'])))
  np.testing.assert_array_equal(np.roll(keys(first), 1, axis=0), keys(turned))


def test_seeds_and_steps_change_the_draws():
  key = steps.rng.stream
  words = {tuple(np.asarray(jax.random.key_data(k))) for k in (
      key(0, 'init'), key(1, 'init'), key(0, 'augment'),
      jax.random.fold_in(key(0, 'init'), 1))}
  assert len(words) == 4
  with pytest.raises(UserError, match='run.seed.*-1'):
    key(-1, 'init')


def test_gradient_norm_is_before_clipping():
  setting = Setting()
  _, metrics = setting.step(setting.state, setting.batch(0), setting.resident)
  assert set(metrics) == {'loss', 'accuracy', 'gradient_norm',
                          'learning_rate', 'bad'}
  assert float(metrics['gradient_norm']) > 0
  assert float(metrics['learning_rate']) == np.float32(0.05)


def test_right_accepts_any_label_and_the_heavier_of_a_mix():
  logits = jnp.array([[1.0, 5.0, 0.0]] * 3)
  targets = jnp.array([[1.0, 1.0, 0.0], [0.7, 0.3, 0.0], [0.3, 0.7, 0.0]])
  np.testing.assert_array_equal(steps.right(logits, targets), [1, 0, 1])
