"""The training step: randomness, devices, micro-batches, remat and scan."""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer import models
from mixer.core import trees
from mixer.images import augment
from mixer.training import losses
from mixer.training import optimizers
from mixer.training import sharding
from mixer.training import step

SMALL = dict(num_classes=5, hidden_dim=16, num_blocks=2, tokens_mlp_dim=8,
             channels_mlp_dim=24, stochastic_depth=0.4, dropout_rate=0.2,
             head_bias=-1.0)
RATE = 0.05
# RandAugment has tests of its own, in test_augment.py.
AUGMENT = dict(flip=True, pad_crop=1, mixup=0.5)


class Setting:
  """A small network, its training step, and a split that lives on the devices.

  Args:
    plan: by default of a single device.
    micro_batches: of the step.
    augmentation: arguments of `augment.make`.
    optimizer: arguments of `optimizers.make`.
    drawn: whether all parameters are drawn at random. As they are initialised,
      the head is zero, and passes no gradient on to the layers below.
    **overrides: settings of the model.
  """

  def __init__(self, plan=None, micro_batches=1, augmentation=None,
               optimizer=None, drawn=False, **overrides):
    self.plan = plan or sharding.plan(devices=jax.devices()[:1])
    self.model = models.create('Mixer-S/4', **{**SMALL, **overrides})
    schedule = optimizers.schedule(learning_rate=RATE, total_steps=20)
    tx = optimizers.make(
        schedule=schedule, **dict(dict(weight_decay=1e-2), **optimizer or {}))
    step_fn = step.make_train_step(
        self.model, tx, schedule=schedule, loss=losses.make(name='sigmoid'),
        seed=3, augment=augment.make(
            **(AUGMENT if augmentation is None else augmentation)),
        num_classes=5, micro_batches=micro_batches)
    init = functools.partial(step.init_state, self.model, tx, seed=3,
                             image_shape=(8, 8, 3))
    self.state = jax.eval_shape(init)
    self.shardings = self.plan.state(self.state, self.model.SHARDING_RULES)
    self.state = self.drawn() if drawn else jax.jit(
        init, out_shardings=self.shardings)()
    self.step = jax.jit(step_fn,
                        out_shardings=(self.shardings, self.plan.replicated))
    random = np.random.default_rng(0)
    self.stored = jax.device_put(
        {'image': random.integers(0, 256, (40, 8, 8, 3)).astype(np.uint8),
         'labels': random.integers(0, 5, (40, 1)).astype(np.int32)},
        self.plan.replicated)

  def drawn(self):
    random = np.random.default_rng(0)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.state)
    state = state.replace(params=jax.tree.map(
        lambda x: random.normal(0, 0.3, x.shape).astype(x.dtype),
        state.params))
    return jax.device_put(state, self.shardings)

  def batch(self, t):
    """Batch t, in which record 7 counts as a replacement for a bad image."""
    record = np.random.default_rng(t).integers(0, 40, 16).astype(np.int32)
    return self.plan.put_batch(dict(
        position=record, record=record, epoch=np.full(16, t, np.int32),
        bad=record == 7))

  def run(self, count=3):
    """(state, metrics) after `count` steps."""
    state = self.state
    for t in range(count):
      state, metrics = self.step(state, self.batch(t), self.stored)
    return state, metrics


def assert_close(a, b, tolerance=2e-5):
  """Two states have the same parameters but for rounding."""
  for name, x in trees.flatten(a.params).items():
    np.testing.assert_allclose(
        x, trees.flatten(b.params)[name], rtol=tolerance, atol=tolerance,
        err_msg=name)


@pytest.fixture(scope='module')
def single():
  """The state after three steps on one device."""
  return Setting().run()[0]


def test_the_same_steps_give_the_same_bits(single):
  again = Setting().run()[0]
  assert (trees.digest(again.params) == trees.digest(single.params)).all()
  assert int(again.step) == 3


@pytest.mark.parametrize('strategy', [
    pytest.param('replicate', marks=pytest.mark.slow), 'fsdp'])
def test_eight_devices_compute_the_step_of_one_device(single, strategy):
  several, metrics = Setting(sharding.plan(strategy=strategy)).run()
  assert_close(single, several)
  replaced = sum(
      int((np.random.default_rng(t).integers(0, 40, 16) == 7).sum())
      for t in range(3))
  assert replaced > 0
  assert int(single.bad) == int(several.bad) == int(metrics['bad']) == replaced


def test_fsdp_computes_the_step_of_one_device_and_sends_parameters_only():
  """Every kernel of this network is divided. XLA alone would divide the work of
  some layers instead, and send their activations."""
  def sharded(plan):
    model = models.create('Mixer-S/8', num_classes=512, hidden_dim=64,
                          num_blocks=1, tokens_mlp_dim=64, channels_mlp_dim=128,
                          head_bias=-1.0)
    tx = optimizers.make(schedule=lambda t: RATE)
    return step.shard(
        step.make_train_step(
            model, tx, schedule=lambda t: RATE, loss=losses.make(), seed=0,
            augment=augment.make(), num_classes=512),
        model, tx, plan, seed=0, image_shape=(64, 64, 3))

  def two_steps(plan, one):
    random, state = np.random.default_rng(0), one.init()
    for t in range(2):
      state, metrics = one.step(state, plan.put_batch(dict(
          image=random.integers(0, 256, (16, 64, 64, 3)).astype(np.uint8),
          labels=random.integers(0, 512, (16, 1)).astype(np.int32),
          epoch=np.full(16, t, np.int32), record=np.arange(16, dtype=np.int32),
          bad=np.zeros(16, bool))))
    return state, metrics

  single, plan = sharding.plan(devices=jax.devices()[:1]), sharding.plan(
      strategy='fsdp')
  one, several = sharded(single), sharded(plan)
  kernels = {name: x.shape for name, x in trees.flatten(
      several.state.params).items() if name.endswith('kernel')}
  for name, spread in trees.flatten(several.shardings.params).items():
    assert spread.is_fully_replicated == (name not in kernels), name
  assert_same_step(two_steps(single, one), two_steps(plan, several))
  row = lambda dtype, *shape: jax.ShapeDtypeStruct(
      (16, *shape), dtype, sharding=plan.batch)
  text = several.step.lower(several.state, dict(
      image=row(np.uint8, 64, 64, 3), labels=row(np.int32, 1),
      epoch=row(np.int32), record=row(np.int32), bad=row(bool)
  )).compile().as_text()
  sent = re.findall(r'= f32\[([\d,]+)\]\S* all-gather\(', text)
  assert sorted(np.prod(np.array(s.split(','), int)) for s in sent) == sorted(
      np.prod(shape) for shape in kernels.values())
  assert ' all-to-all' not in text and ' collective-permute' not in text


@pytest.mark.parametrize('micro_batches, devices', [
    (2, 2), *(pytest.param(*case, marks=pytest.mark.slow)
              for case in ((2, 1), (4, 1), (4, 2)))])
def test_micro_batches_compute_the_step_of_the_whole_batch(
    single, micro_batches, devices):
  """Including mixup, dropout and stochastic depth."""
  plan = sharding.plan(devices=jax.devices()[:devices])
  assert_close(single, Setting(plan, micro_batches=micro_batches).run()[0])


def test_micro_batches_count_the_examples_that_have_a_label():
  """The four parts of the batch have 4, 4, 4 and 1 labelled examples."""
  def metrics(micro_batches):
    setting = Setting(micro_batches=micro_batches, augmentation={}, drawn=True,
                      stochastic_depth=0.0, dropout_rate=0.0)
    batch = dict(setting.batch(0), position=np.arange(16, dtype=np.int32))
    setting.stored['labels'] = setting.stored['labels'].at[
        jnp.array([7, 11, 15])].set(-1)
    return setting.step(setting.state, batch, setting.stored)[1]
  whole, parts = metrics(1), metrics(4)
  assert 0 < whole['accuracy'] < 1
  for key in ('accuracy', 'loss'):
    np.testing.assert_allclose(whole[key], parts[key], rtol=1e-5)


# Ways to compute the blocks with less memory or less to compile.
CHEAPER = {
    'block': dict(remat='block'), 'dots': dict(remat='dots'),
    'scan': dict(scan=True), 'block-scan': dict(remat='block', scan=True),
    'dots-scan': dict(remat='dots', scan=True)}


def two_steps(plan=None, **overrides):
  return Setting(plan, augmentation={}, drawn=True, **overrides).run(2)


@pytest.fixture(scope='module')
def unaugmented():
  return two_steps()


def assert_same_step(one, other):
  for name in ('loss', 'gradient_norm', 'accuracy'):
    np.testing.assert_allclose(other[1][name], one[1][name], rtol=2e-6)
  assert_close(one[0], other[0], 5e-6)


@pytest.mark.parametrize('cheaper', [
    'dots', 'block-scan', *(   # each compiles for ten seconds
        pytest.param(name, marks=pytest.mark.slow)
        for name in ('block', 'scan', 'dots-scan'))])
def test_remat_and_scan_compute_the_plain_step(unaugmented, cheaper):
  """Dropout and stochastic depth draw the same masks when blocks are computed
  again."""
  assert_same_step(unaugmented, two_steps(**CHEAPER[cheaper]))


@pytest.mark.slow
def test_remat_and_scan_compute_the_plain_step_on_a_mesh(unaugmented):
  plan = sharding.plan(strategy='fsdp', fsdp=2, model=2)
  assert_same_step(unaugmented, two_steps(plan, remat='block', scan=True))
  with pytest.raises(AssertionError):   # the comparison notices other masks
    assert_same_step(unaugmented, two_steps(dropout_rate=0.201))


def forward(model, **how):
  """(shapes of the parameters, a function of parameters)"""
  images = jnp.ones((67, 8, 8, 3))   # no other size has the factor 67
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  return shapes, lambda params: model.apply({'params': params}, images, **how)


@pytest.mark.parametrize('cheaper', CHEAPER.values(), ids=CHEAPER)
def test_remat_and_scan_change_no_name_and_no_evaluation(cheaper):
  known, plain = forward(models.create('Mixer-S/4', **SMALL))
  shapes, other = forward(models.create('Mixer-S/4', **SMALL, **cheaper))
  assert shapes == known
  assert str(jax.make_jaxpr(plain)(known)) == str(jax.make_jaxpr(other)(known))
  assert {'stem', 'block_0', 'block_1', 'logits'} <= jax.eval_shape(
      other, shapes)[1].keys()


def kept_bytes(**overrides):
  """Bytes of each block that a batch keeps for the backward pass."""
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


def test_remat_keeps_less_for_the_backward_pass():
  """Only the input of a block, or also the results of matrix products."""
  plain = kept_bytes()
  of_input = 67 * 4 * 16 * 4   # images, tokens, channels, bytes
  for scan in (False, True):
    assert kept_bytes(remat='block', scan=scan) == of_input
    assert of_input < kept_bytes(remat='dots', scan=scan) < 0.7 * plain


def test_augmentation_depends_on_the_example_and_not_on_its_row():
  setting = Setting(augmentation=dict(flip=True, pad_crop=1), drawn=True,
                    num_blocks=1, dropout_rate=0.0, stochastic_depth=0.0)
  batch = setting.batch(0)
  turned = {key: jnp.roll(value, 1) for key, value in batch.items()}
  keys = lambda batch: np.asarray(jax.random.key_data(step.of_examples(
      step.stream(3, 'augment'), batch['epoch'], batch['record'])))
  np.testing.assert_array_equal(np.roll(keys(batch), 1, axis=0), keys(turned))
  # So the step on the turned batch is the same but for the order of sums.
  after = [setting.step(setting.state, b, setting.stored)[0]
           for b in (batch, turned)]
  assert_close(*after, 1e-6)


def test_keys_differ_by_seed_stream_and_step():
  key = step.stream
  words = {tuple(np.asarray(jax.random.key_data(k))) for k in (
      key(0, 'init'), key(1, 'init'), key(0, 'augment'),
      jax.random.fold_in(key(0, 'init'), 1))}
  assert len(words) == 4


def test_gradient_norm_is_measured_before_clipping():
  """Compared with the gradient of the loss, written out here."""
  clip_norm = 0.01
  setting = Setting(
      augmentation={}, drawn=True, num_blocks=1, dropout_rate=0.0,
      stochastic_depth=0.0,
      optimizer=dict(clip_norm=clip_norm, weight_decay=0.0))
  record = np.asarray(setting.batch(0)['record'])
  images = np.asarray(setting.stored['image'])[record] / 127.5 - 1
  labels = np.asarray(setting.stored['labels'])[record, 0]

  def loss(params):
    logits, _ = setting.model.apply(
        {'params': params}, jnp.asarray(images, jnp.float32))
    signs = np.where(labels[:, None] == np.arange(5), 1.0, -1.0)
    return jnp.mean(jnp.sum(jnp.log1p(jnp.exp(-signs * logits)), axis=1))

  norm = lambda tree: np.sqrt(sum(
      float((np.asarray(x) ** 2).sum()) for x in jax.tree.leaves(tree)))
  by_hand = norm(jax.jit(jax.grad(loss))(setting.state.params))
  after, metrics = setting.step(
      setting.state, setting.batch(0), setting.stored)
  assert set(metrics) == {'loss', 'accuracy', 'gradient_norm',
                          'learning_rate', 'bad', 'skipped'}
  assert by_hand > 10 * clip_norm
  np.testing.assert_allclose(metrics['gradient_norm'], by_hand, rtol=1e-5)
  moved = jax.tree.map(jnp.subtract, after.params, setting.state.params)
  np.testing.assert_allclose(norm(moved), RATE * clip_norm, rtol=1e-3)
  assert float(metrics['learning_rate']) == np.float32(RATE)


def test_right_accepts_any_label_and_the_heavier_image_of_a_mix():
  logits = jnp.array([[1.0, 5.0, 0.0]] * 3)
  targets = jnp.array([[1.0, 1.0, 0.0], [0.7, 0.3, 0.0], [0.3, 0.7, 0.0]])
  np.testing.assert_array_equal(step.right(logits, targets), [1, 0, 1])
