"""run.average: an exponential moving average of the parameters."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from mixer import pretrained
from mixer.core import checkpoint_reader
from mixer.core import errors
from mixer.core import trees
from mixer.training import optimizers
from mixer.training import run


def test_the_average_moves_as_its_formula_says():
  optimizer = optimizers.averaged(
      optimizers.make(schedule=lambda step: 0.1, clip_norm=None), 0.3)
  params = {'kernel': jnp.array([1.0, -2.0])}
  state, average = optimizer.init(params), np.array([1.0, -2.0])
  for t in range(1, 6):
    grads = {'kernel': jnp.array([0.5, t])}
    updates, state = optimizer.update(grads, state, params)
    params = jax.tree.map(jnp.add, params, updates)
    keep = min(0.3, (1 + t) / (10 + t))
    average = keep * average + (1 - keep) * np.array(params['kernel'])
    np.testing.assert_allclose(state.average['kernel'], average, rtol=1e-6)
  assert (1 + 3) / (10 + 3) > 0.3 > (1 + 2) / (10 + 2)   # both cases were met


def small(**settings):
  config = digits.get_config()
  config.model.update(hidden_dim=16, num_blocks=1, channels_mlp_dim=16)
  config.run.update(total_steps=12, eval_every=6, log_every=6, batch_size=64,
                    **settings)
  config.checkpoint.update(every=6, keep=5)
  config.augment.update(rotate=0., zoom=0., shift=0.)   # compiles sooner
  return config


@pytest.fixture(scope='module')
def averaged(tmp_path_factory):
  path = tmp_path_factory.mktemp('averaged') / 'run'
  config = small(average=0.9)
  config.checkpoint.best = 'eval/test/average/accuracy'
  scores = run.train(config, str(path))
  return path, scores


def test_the_average_is_evaluated_and_saved_beside_the_parameters(averaged):
  path, scores = averaged
  assert scores['eval/test/average/examples'] == 360
  assert scores['eval/test/average/loss'] != scores['eval/test/loss']
  plain = trees.flatten(pretrained.load(path))
  mean = pretrained.open_network(path, average=True)
  flat = trees.flatten(mean.params)
  assert flat.keys() == plain.keys()
  assert any(np.abs(flat[name] - plain[name]).max() > 1e-4 for name in flat)
  with open(path / 'metrics.jsonl') as file:
    last = [json.loads(line) for line in file][-1]
  assert last['eval/test/average/accuracy'] == scores[
      'eval/test/average/accuracy']


@pytest.mark.slow   # a whole run
def test_averaging_changes_no_bit_of_the_run_itself(averaged, tmp_path):
  run.train(small(), str(tmp_path / 'run'))
  plain, kept = (trees.flatten(pretrained.load(path))
                 for path in (tmp_path / 'run', averaged[0]))
  for name, value in plain.items():
    np.testing.assert_array_equal(value, kept[name])
  with pytest.raises(errors.UserError, match=r'run\.average'):
    pretrained.open_network(tmp_path / 'run', average=True)


@pytest.mark.slow
def test_a_resumed_average_has_the_same_bits(averaged, tmp_path):
  path, _ = averaged
  config = small(average=0.9)
  config.checkpoint.best = 'eval/test/average/accuracy'
  whole = trees.flatten(pretrained.open_network(path, average=True).params)
  halfway = trees.flatten(checkpoint_reader.load_params(
      str(path / 'checkpoints' / '6'), average=True))
  (path / 'checkpoints' / '12').rename(tmp_path / '12')
  run.train(config, str(path))
  again = trees.flatten(pretrained.open_network(path, average=True).params)
  for name, value in whole.items():
    np.testing.assert_array_equal(value, again[name])
  assert any((halfway[name] != value).any() for name, value in whole.items())


@pytest.mark.slow
def test_loaded_weights_begin_the_average(averaged, tmp_path):
  config = small(average=0.999)
  config.start.weights = str(averaged[0])
  config.schedule.update(learning_rate=1e-30, warmup_steps=0)
  run.train(config, str(tmp_path / 'run'))
  begun = trees.flatten(pretrained.load(averaged[0]))
  mean = trees.flatten(
      pretrained.open_network(tmp_path / 'run', average=True).params)
  for name, value in begun.items():
    np.testing.assert_array_equal(value, mean[name])


@pytest.mark.parametrize('decay', (1.0, -0.1))
def test_a_decay_out_of_range_is_refused(decay, tmp_path):
  with pytest.raises(errors.UserError, match='average'):
    run.train(small(average=decay), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()
