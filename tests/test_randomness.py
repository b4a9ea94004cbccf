"""What the random draws of a training step depend on: seed, epoch, example and
step; never the place of an example in the batch."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixer import models
from mixer.training import losses
from mixer.training import step as steps

BATCH, CLASSES = 4, 3


class RecordingModel:
  """Stands in for a network and keeps the keys that it is given."""

  def __init__(self):
    self.keys = {}

  def apply(self, variables, images, *, train, rows, rngs):
    assert train
    self.keys = {name: bits(key) for name, key in rngs.items()}
    self.rows = np.asarray(rows)
    return images[:, 0, 0, :1] @ variables['params']['w'][None], {}


def bits(key):
  return np.asarray(jax.random.key_data(key)).tolist()


def keys_of_a_step(*, seed=0, step=0, epoch=(0, 0, 0, 0), record=(7, 3, 9, 1)):
  """Runs one step, not jitted, and returns every key that it has drawn from:
  {'augment': one for each row, 'mixup', 'dropout', 'stochastic_depth'}."""
  model, found = RecordingModel(), {}

  def augment(images, targets, keys, mixup_key):
    found.update(augment=bits(keys), mixup=bits(mixup_key))
    return images.astype(jnp.float32), targets

  optimizer = optax.sgd(0.1)
  params = {'w': jnp.ones(CLASSES)}
  state = steps.State(step=jnp.int32(step), params=params,
                      opt_state=optimizer.init(params), bad=jnp.int32(0))
  batch = dict(image=jnp.ones((BATCH, 2, 2, 1), jnp.uint8),
               labels=jnp.zeros((BATCH, 1), jnp.int32),
               epoch=jnp.array(epoch, jnp.int32),
               record=jnp.array(record, jnp.int32),
               bad=jnp.zeros(BATCH, bool))
  steps.make_train_step(
      model, optimizer, schedule=lambda _: 0.1, loss=losses.make(),
      augment=augment, seed=seed, num_classes=CLASSES)(state, batch)
  return dict(found, **model.keys)


def test_augmentation_is_keyed_by_the_example_not_by_its_row():
  keys = keys_of_a_step(record=(7, 3, 9, 1))['augment']
  moved = keys_of_a_step(record=(1, 9, 7, 3))['augment']
  assert moved == [keys[3], keys[2], keys[0], keys[1]]
  assert len({tuple(k) for k in keys}) == BATCH


def test_augmentation_changes_with_the_epoch():
  first = keys_of_a_step()['augment']
  second = keys_of_a_step(epoch=(1, 0, 0, 0))['augment']
  assert second[0] != first[0] and second[1:] == first[1:]


def test_augmentation_does_not_change_with_the_step():
  """So an example of an epoch looks the same wherever the epoch begins."""
  assert keys_of_a_step(step=5)['augment'] == keys_of_a_step()['augment']


@pytest.mark.parametrize('name', (
    'augment', 'mixup', 'dropout', 'stochastic_depth'))
def test_every_stream_changes_with_the_seed(name):
  assert keys_of_a_step(seed=1)[name] != keys_of_a_step(seed=0)[name]


@pytest.mark.parametrize('name', ('mixup', 'dropout', 'stochastic_depth'))
def test_draws_of_a_whole_batch_change_with_the_step(name):
  drawn = [tuple(keys_of_a_step(step=step)[name]) for step in range(3)]
  assert len(set(drawn)) == 3
  assert tuple(keys_of_a_step(step=1)[name]) == drawn[1]


def test_streams_differ_from_each_other():
  keys = keys_of_a_step()
  assert len({tuple(keys[name]) for name in (
      'mixup', 'dropout', 'stochastic_depth')}) == 3


def test_the_keys_are_those_of_the_named_streams():
  """Saved runs rely on them."""
  keys = keys_of_a_step(seed=3, step=2, epoch=(1, 1, 2, 2))
  assert keys['augment'] == bits(steps.of_examples(
      steps.stream(3, 'augment'), jnp.array([1, 1, 2, 2]),
      jnp.array([7, 3, 9, 1])))
  for name in ('mixup', 'dropout', 'stochastic_depth'):
    assert keys[name] == bits(jax.random.fold_in(steps.stream(3, name), 2))


def test_initial_parameters_change_with_the_seed():
  model = models.create('Mixer-S/4', num_blocks=1, hidden_dim=4, num_classes=2,
                        tokens_mlp_dim=3, channels_mlp_dim=5)
  optimizer = optax.sgd(0.1)
  init = lambda seed: steps.init_state(
      model, optimizer, seed=seed, image_shape=(8, 8, 3)).params
  one, other = init(0), init(1)
  assert not np.array_equal(one['stem']['kernel'], other['stem']['kernel'])
  jax.tree.map(np.testing.assert_array_equal, one, init(0))
