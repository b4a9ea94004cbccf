"""A config becomes objects; what no function reads is an error."""
import dataclasses
import inspect

import pytest

from configs import digits
from configs import mixer_b16
from mixer.core import errors
from mixer.training import assembly
from mixer.training import start


def test_check_returns_the_settings_of_run():
  settings = assembly.check(digits.get_config())
  assert (settings.batch_size, settings.total_steps) == (128, 1200)
  assert (settings.image_size, settings.seed) == (8, 0)


@pytest.mark.parametrize('change, words', (
    (lambda c: c.update(optimiser={}), ["'optimiser'", "'optimizer'"]),
    (lambda c: c.__delitem__('loss'), ['missing sections: loss', 'recipe']),
    (lambda c: c.augment.update(flop=True), ['config.augment', "'flip'"]),
    (lambda c: c.evals.test.update(crops=1), ['config.evals.test', "'crop'"]),
    (lambda c: c.start.update(weight='x'), ['config.start', "'weights'"]),
    (lambda c: c.run.update(steps=1), ['config.run', "'steps'"]),
    (lambda c: c.run.update(batch_size=0), ['run.batch_size', '0']),
))
def test_check_names_a_section_or_key_that_is_wrong(change, words):
  config = digits.get_config()
  with config.unlocked():
    change(config)
  with pytest.raises(errors.UserError) as e:
    assembly.check(config)
  for word in words:
    assert word in str(e.value)


def test_keys_of_start_are_the_arguments_of_the_function_that_loads():
  """`assembly` lists them, so that it need not import that module."""
  known = set(inspect.signature(start.start).parameters)
  assert known == {*assembly._START, 'model', 'image_size', 'widen'}


def test_edited_changes_a_copy():
  config = digits.get_config()
  other = assembly.edited(config, run=dict(seed=3), data=dict(split='all'))
  assert (other.run.seed, other.data.split) == (3, 'all')
  assert (config.run.seed, config.data.split) == (0, 'train')
  assert other.evals.test.split == 'test'


def test_the_workdir_keeps_all_sections_but_the_sweep():
  config = digits.get_config()
  config.sweep = dict(train='train', dev='dev')
  assert set(assembly.stored(config)) == set(digits.get_config())


@dataclasses.dataclass
class Source:
  name: str = 'letters'
  num_classes: int = 5
  channels: int = 2


def test_classes_and_channels_of_the_model_are_those_of_the_data():
  config = digits.get_config()
  settings = assembly.check(config)
  model = assembly.make_model(config, settings, Source())
  assert (model.num_classes, model.in_channels) == (5, 2)
  assert assembly.image_shape(model, settings) == (8, 8, 2)
  config.model.update(num_classes=4, in_channels=3)
  model = assembly.make_model(config, settings, Source())
  assert (model.num_classes, model.in_channels) == (4, 3)


def test_randaugment_needs_one_or_three_channels():
  config = digits.get_config()
  config.augment.update(randaugment_layers=2, randaugment_magnitude=10)
  settings = assembly.check(config)
  assembly.make_model(config, settings, Source(channels=1))
  with pytest.raises(errors.UserError, match='randaugment_layers: .* have 2'):
    assembly.make_model(config, settings, Source())


def test_the_papers_cost_is_told_of_runs_from_scratch_only():
  config = mixer_b16.get_config()
  assert assembly.paper_core_days(config) == 10
  config.start.weights = 'w.npz'
  assert assembly.paper_core_days(config) is None
