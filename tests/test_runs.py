"""experiments/runs: short copies of a config, and scores of a network."""
import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from configs import digits
from mixer import models
from mixer.core import errors
from mixer.experiments import runs
from mixer.training import assembly
from mixer.training import watchdog


def small():
  c = digits.get_config()
  c.evals.test.split = 'test'
  return c.lock()


def network(favourite):
  """An untrained network that always answers with one class."""
  model = models.create('Mixer-S/4', num_classes=10, in_channels=1,
                        hidden_dim=16, num_blocks=1, tokens_mlp_dim=4,
                        channels_mlp_dim=16)
  params = model.init(jax.random.key(0), np.zeros((1, 8, 8, 1)))['params']
  params['head']['bias'] = params['head']['bias'].at[favourite].set(9.0)
  return model, params


def test_a_short_run_warms_up_for_a_fifth_of_it_at_most():
  config = small()
  short = runs.short(config, 10)
  assert short.schedule.warmup_steps == 2
  assert short.run.total_steps == 10 and short.run.eval_every == 0
  same = runs.short(config, 10_000)
  assert same.schedule.warmup_steps == config.schedule.warmup_steps
  assert config.run.total_steps == digits.get_config().run.total_steps


def test_the_scores_are_of_the_given_network():
  config = small()
  shares = [runs.evaluate(config, *network(label), 8)['eval/test/accuracy']
            for label in (3, 4)]
  # Of the 360 test images, 48 are threes and 38 are fours.
  assert shares == pytest.approx([48 / 360, 38 / 360])


def test_few_shot_accuracies_rise_with_the_examples():
  found = runs.few_shot(small(), *network(0), 8, train_split='train',
                        test_split='test', shots=(1, 25), seeds=2)
  assert found.keys() == {1, 25}
  assert 0.1 < found[1] < found[25] <= 1


def test_a_config_without_evaluations_is_refused():
  config = digits.get_config()
  config.evals = {}
  with pytest.raises(errors.UserError, match='evals'):
    runs.check_evaluated(config)


def test_a_finished_run_is_not_started_again_unless_its_config_changed(
    tmp_path, monkeypatch):
  started = []
  monkeypatch.setattr(runs.run, 'train', lambda config, path: (
      started.append(config.run.seed) or {'eval/test/accuracy': .5}))
  config = small()
  for seed in (0, 0, 1):
    with config.unlocked():
      config.run.seed = seed
    assert runs.train(config, str(tmp_path)) == {'eval/test/accuracy': .5}
  assert started == [0, 1]


def test_a_signal_at_the_end_of_a_run_starts_no_other_run(
    tmp_path, monkeypatch):
  """The finished run returns, but the experiment stops, and goes on later."""
  def train(config, path):
    with watchdog.Guard() as guard:
      signal.raise_signal(signal.SIGINT)
      while not guard.asked(1):
        time.sleep(0.01)
    return {'eval/test/accuracy': 0.5}

  monkeypatch.setattr(runs.run, 'train', train)
  with pytest.raises(errors.Stopped, match='SIGINT came at the end of a run'):
    runs.train(small(), str(tmp_path))
  assert runs.train(small(), str(tmp_path)) == {'eval/test/accuracy': 0.5}
  with watchdog.Guard():
    pass
  watchdog.check_last_run()   # the next run forgets the signal


def test_curves_have_the_steps_of_all_runs_and_finite_values_only(tmp_path):
  """A skipped update logs text, also between the usual steps, and a run that
  stopped as it was to be evaluated may lack a value."""
  places = []
  for seed, values in enumerate(({2: .1, 4: .2, 5: 'nan', 6: .3},
                                 {2: .4, 6: .5})):
    places.append(str(tmp_path / str(seed)))
    os.mkdir(places[-1])
    with open(os.path.join(places[-1], 'metrics.jsonl'), 'w') as f:
      f.writelines(json.dumps(dict(step=step, loss=value)) + '\n'
                   for step, value in values.items())
  assert runs.curve(places[0], 'loss') == ([2, 4, 6], [.1, .2, .3])
  assert runs.curves(places, 'loss') == ([2, 6], [[.1, .3], [.4, .5]])


def test_scores_of_other_evaluations_are_not_mixed(tmp_path):
  path = str(tmp_path)
  config = small()
  runs.check_alike(path, config, {}, train='train')   # nothing is there
  (tmp_path / 'config.json').write_text(json.dumps(
      assembly.stored(config), default=str))
  runs.check_alike(path, config, dict(train='train'), train='train')
  with pytest.raises(errors.UserError, match='with other dev; give these'):
    runs.check_alike(path, config, dict(dev='train[90%:]'), dev='train[80%:]')
  with config.unlocked():
    config.evals.test.split = 'test[:50%]'
  with pytest.raises(errors.UserError, match='other evals.*another --workdir'):
    runs.check_alike(path, config)
  with pytest.raises(errors.UserError, match='other evals.*another --workdir'):
    runs.train(config, path, curves=True)


def test_edited_changes_a_copy():
  config = digits.get_config()
  other = runs.edited(config, run=dict(seed=3), data=dict(split='all'))
  assert (other.run.seed, other.data.split) == (3, 'all')
  assert (config.run.seed, config.data.split) == (0, 'train')
  assert other.evals.test.split == 'test'
