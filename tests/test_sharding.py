"""Where the arrays of a run are on the mesh, and how much a device holds."""
import collections
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from mixer import models
from mixer.core import errors
from mixer.core import trees
from mixer.models.mixer import MlpMixer
from mixer.training import optimizers
from mixer.training import sharding
from mixer.training import step as steps

# The layout of B/16 on a mesh of 2 x 2 x 2. Other parameters are small, and
# every device holds them whole.
WHOLE = P()
B16 = {
    'stem/kernel': P('fsdp', None, None, None),
    'token_mixing/Dense_0/kernel': P(None, ('model', 'fsdp')),
    'token_mixing/Dense_1/kernel': P(('model', 'fsdp'), None),
    'channel_mixing/Dense_0/kernel': P('fsdp', 'model'),
    'channel_mixing/Dense_1/kernel': P(('model', 'fsdp'), None),
    'head/kernel': P('fsdp', None),
}


def specs(plan, tree):
  return {name: s.spec for name, s in trees.flatten(
      plan.state(tree, MlpMixer.SHARDING_RULES)).items()}


def shapes_of(name):
  size = 14 * int(name.partition('/')[2])
  return jax.eval_shape(models.create(name).init, jax.random.key(0),
                        jnp.zeros((1, size, size, 3)))['params']


def same(spec):
  """One spelling of a layout: 'fsdp' for ('fsdp',), no None at the end."""
  axes = [a[0] if isinstance(a, tuple) and len(a) == 1 else a for a in spec]
  while axes and axes[-1] is None:
    axes.pop()
  return tuple(axes)


def expected(name, table):
  if name in table:
    return same(table[name])
  return same(next((spec for end, spec in table.items()
                    if name.endswith(f'/{end}')), WHOLE))


def test_every_parameter_of_b16_is_sharded_by_its_name():
  plan = sharding.plan(strategy='fsdp', fsdp=2, model=2)
  assert dict(plan.mesh.shape) == dict(data=2, fsdp=2, model=2)
  found = specs(plan, shapes_of('Mixer-B/16'))
  assert len(found) == 12 * 12 + 6
  for name, spec in found.items():
    assert same(spec) == expected(name, B16), name
  # All rules are used but those for large biases and for unknown names.
  assert sum(same(s) != () for s in found.values()) == 12 * 4 + 2


def test_optimizer_state_is_sharded_like_its_parameter():
  plan = sharding.plan(strategy='fsdp', model=2)
  params = shapes_of('Mixer-S/16')
  one = specs(plan, params)
  state = plan.state((dict(mu=params), [params],
                      jax.ShapeDtypeStruct((), int)), MlpMixer.SHARDING_RULES)
  for tree in (state[0]['mu'], state[1][0]):
    assert {n: s.spec for n, s in trees.flatten(tree).items()} == one
  assert state[2] == plan.replicated


@pytest.mark.parametrize('settings, axes', [
    (dict(), set()),
    (dict(strategy='fsdp'), {'fsdp'}),
    (dict(model=4), {'model'}),
    (dict(strategy='fsdp', fsdp=2), {'fsdp'}),
])
def test_a_strategy_shards_along_its_own_axes_only(settings, axes):
  found = specs(sharding.plan(**settings), shapes_of('Mixer-B/16'))
  used = {a for spec in found.values() for axis in spec if axis
          for a in ((axis,) if isinstance(axis, str) else axis)}
  assert used == axes


def test_axes_that_do_not_divide_stay_whole():
  plan = sharding.plan(strategy='fsdp', fsdp=4, model=2)
  leaf = lambda name, *shape: same(plan.state(
      {name: jax.ShapeDtypeStruct(shape, jnp.float32)},
      MlpMixer.SHARDING_RULES)[name].spec)
  # Both mesh axes if their product divides the side; the first of them if only
  # that one does; none if the side is odd.
  kernel = 'token_mixing/Dense_0/kernel'
  assert leaf(kernel, 196, 384) == (None, ('model', 'fsdp'))
  assert leaf(kernel, 196, 386) == leaf(kernel, 196, 388) == (None, 'model')
  assert leaf(kernel, 196, 385) == ()
  assert leaf('head/kernel', 770, 1000) == ()
  assert leaf('channel_mixing/Dense_0/kernel', 770, 3072) == (None, 'model')
  # Arrays with an unknown name along their first side, unless they are small.
  assert leaf('embedding', 4096) == leaf('x/embedding', 512, 8) == ('fsdp',)
  assert leaf('embedding', 4095) == leaf('embedding', 4092) == ()
  assert leaf('channel_mixing/Dense_0/bias', 5120) == (('model', 'fsdp'),)
  assert leaf('channel_mixing/Dense_1/bias', 5120) == ('fsdp',)
  # A rule for 'channel_mixing' does not apply to 'my_channel_mixing'.
  assert leaf('my_channel_mixing/Dense_1/kernel', 3072, 768) == ('fsdp',)
  assert leaf('channel_mixing/Dense_1/kernel', 3072, 768) == (
      ('model', 'fsdp'),)


@pytest.mark.parametrize('settings, words', [
    (dict(strategy='zero'), ["'zero'", 'fsdp']),
    (dict(model=3), ['sharding.model', '3', 'divisor of 8']),
    (dict(model=0), ['sharding.model', '0']),
    (dict(model=16), ['sharding.model', '16']),
    (dict(fsdp=2), ['sharding.fsdp', '2', "strategy='fsdp'"]),
    (dict(strategy='fsdp', fsdp=3), ['sharding.fsdp', '3', '8 devices']),
    (dict(strategy='fsdp', fsdp=0), ['sharding.fsdp', '0']),
    (dict(strategy='fsdp', fsdp=-1), ['sharding.fsdp', '-1']),
    (dict(strategy='fsdp', fsdp=8, model=2), ['sharding.fsdp', '4 devices']),
])
def test_a_mesh_that_the_devices_cannot_form_is_an_error(settings, words):
  with pytest.raises(errors.UserError) as e:
    sharding.plan(**settings)
  for word in words:
    assert word in str(e.value)


def test_the_model_axis_stays_within_a_process():
  """With 4 devices in 2 processes, 2 devices can share a network but not 4."""
  class Device:
    def __init__(self, number, process):
      self.id, self.process_index = number, process
  devices = [Device(i, i // 2) for i in range(4)]
  with pytest.raises(errors.UserError, match='divisor of 2, .* process, got 4'):
    sharding.plan(model=4, devices=devices)


def state_of(model, optimizer, side):
  """A function that makes the first state of training."""
  transform = optimizers.make(schedule=lambda step: 0.1, name=optimizer)
  return functools.partial(steps.init_state, model, transform, seed=0,
                           image_shape=(side, side, 3))


def bytes_of(shape, dtype):
  return math.prod(shape) * jnp.dtype(dtype).itemsize


@pytest.mark.parametrize('name, copies', [('sgd', 2), ('adam', 3)])
@pytest.mark.parametrize('settings, over', [
    ({}, 1.02),   # a 700th is too small to be sharded
    # The axis 'model' does not shard the stem and the head, a 45th.
    (dict(model=2), 1.1), (dict(fsdp=2, model=4), 1.1)])
def test_with_fsdp_each_of_8_devices_holds_an_8th_of_the_state_of_b16(
    name, copies, settings, over):
  shapes = jax.eval_shape(state_of(models.create('Mixer-B/16'), name, 224))
  plan = sharding.plan(strategy='fsdp', **settings)
  shardings = plan.state(shapes, MlpMixer.SHARDING_RULES)
  whole = sum(bytes_of(x.shape, x.dtype) for x in jax.tree.leaves(shapes))
  assert whole > copies * 4 * 59.8e6
  share = sum(bytes_of(s.shard_shape(x.shape), x.dtype) for x, s in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True))
  assert whole / 8 <= share < over * whole / 8, share / whole


def test_with_fsdp_the_state_is_made_in_shards():
  """No device holds more than its share when the state is made."""
  plan = sharding.plan(strategy='fsdp')
  make = state_of(models.create('Mixer-S/16', num_classes=8, hidden_dim=128,
                                num_blocks=1), 'sgd', 32)
  shapes = jax.eval_shape(make)
  shardings = plan.state(shapes, MlpMixer.SHARDING_RULES)
  state = jax.jit(make, out_shardings=shardings)()
  held = collections.Counter()
  for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings)):
    for shard in x.addressable_shards:
      held[shard.device] += shard.data.nbytes
      assert shard.data.shape == s.shard_shape(x.shape)
  whole = sum(x.nbytes for x in jax.tree.leaves(state))
  assert len(held) == 8 and len(set(held.values())) == 1
  small = 2 * 4 * 6000   # bytes of parameters and momentum that are not sharded
  assert max(held.values()) < whole / 8 + small


def test_placed_arrays_keep_their_values():
  plan = sharding.plan(strategy='fsdp')
  tree = {'a': np.arange(512 * 64, dtype=np.float32).reshape(512, 64),
          'b': np.arange(3)}
  for shardings in (None, plan.state(tree, MlpMixer.SHARDING_RULES)):
    placed = plan.place(tree, shardings)
    for name, value in tree.items():
      np.testing.assert_array_equal(placed[name], value)
      assert placed[name].sharding == (
          plan.replicated if shardings is None else shardings[name])
