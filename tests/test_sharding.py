"""How much of the state a device holds. The rules are in test_processes.py."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixer.core import errors
from mixer.models.mixer import MlpMixer
from mixer.training import sharding

SHAPE = jax.ShapeDtypeStruct((512, 64), jnp.float32)


def test_fsdp_holds_an_eighth_of_a_large_parameter_on_each_of_8_devices():
  shardings = sharding.plan(strategy='fsdp').state(
      SHAPE, MlpMixer.SHARDING_RULES)
  placed = jax.jit(lambda: jnp.zeros(SHAPE.shape), out_shardings=shardings)()
  assert {s.data.shape for s in placed.addressable_shards} == {(64, 64)}
  assert sharding.held([SHAPE], [shardings]) == 512 * 64 * 4 // 8


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


def test_an_unknown_strategy_is_an_error_with_the_choices():
  with pytest.raises(errors.UserError) as e:
    sharding.plan(strategy='zero')
  for word in ('sharding.strategy', 'zero', 'fsdp'):
    assert word in str(e.value)
