"""A config becomes objects; what no function reads is an error."""
import dataclasses
import inspect
import random

import pytest

from configs import digits
from configs import mixer_b16
from configs import recipe
from mixer.core import errors
from mixer.experiments import runs
from mixer.training import assembly
from mixer.training import start


def test_check_returns_the_settings_of_run():
  settings = assembly.check(digits.get_config())
  assert (settings.batch_size, settings.total_steps) == (128, 1200)
  assert (settings.image_size, settings.seed) == (8, 0)


@pytest.mark.parametrize('batch_size, epochs, examples, steps', (
    (10, 2.3, 50_000, 11_500), (1, 0.29, 100, 29), (10, 2.3, 49_999, 11_499),
    (8, 0.01, 8, 1)))
def test_an_epoch_has_as_many_steps_as_whole_batches(
    batch_size, epochs, examples, steps):
  """2.3 * 50,000 / 10 is a little less than 11,500 in floating point."""
  settings = assembly.Settings(batch_size=batch_size, total_epochs=epochs)
  assert settings.steps(examples) == steps


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


@pytest.mark.parametrize('value', (float('nan'), float('inf'), -1.0))
@pytest.mark.parametrize('key', (
    'augment.mixup', 'augment.rotate', 'augment.shift', 'augment.erase',
    'augment.randaugment_magnitude', 'optimizer.weight_decay',
    'optimizer.clip_norm', 'optimizer.momentum', 'optimizer.b2',
    'schedule.learning_rate', 'schedule.end_fraction', 'loss.label_smoothing',
    'model.dropout_rate', 'model.stochastic_depth', 'data.max_bad_fraction',
    'run.total_epochs'))
def test_a_number_that_cannot_be_right_is_refused_before_data_are_opened(
    key, value):
  config, (section, name) = digits.get_config(), key.split('.')
  with config.unlocked(), config.ignore_type():
    config[section][name] = value
  if key == 'run.total_epochs':
    config.run.total_steps = None
  with pytest.raises(errors.UserError, match=name):
    assembly.check(config)


# Values that people, scripts and bugs write.
ODD = (None, True, -1, 0, 1, 3, 2**31, 10**30, float('nan'), float('inf'),
       -float('inf'), -0.5, 0.5, 1.0, 1e-300, 1e308, '', ' ', 'nan', '(', '[',
       '.*', 'train[:', 'ü', 'a' * 999, (), (0, 0), (8, 8), (-1, 2, 3), [None])


@pytest.mark.parametrize('count', (
    300, pytest.param(2000, marks=pytest.mark.slow)))
def test_odd_values_of_any_key_are_accepted_or_refused_but_never_a_traceback(
    count):
  """Keys of the recipe with values of any type, from one to three at a time.

  For 2,000 configs: pytest tests/test_assembly.py -k odd_values -m slow
  """
  draw = random.Random(0)
  keys = [(section, key) for section, found in recipe.base().items()
          for key in found]
  refused = 0
  for _ in range(count):
    config, given = digits.get_config(), {}
    for section, key in draw.sample(keys, draw.randint(1, 3)):
      value = given[section, key] = draw.choice(ODD)
      with config.unlocked(), config.ignore_type():
        config[section][key] = value
    try:
      settings = assembly.check(config)
      model = assembly.make_model(config, settings, Source(channels=1))
      assembly.make_step(config, settings, model, settings.steps(1000))
    except errors.UserError as e:
      refused += 1
      assert str(e) and 'Traceback' not in str(e)
    except Exception as e:
      raise AssertionError(given) from e
  assert 0 < refused < count


def test_keys_of_start_are_the_arguments_of_the_function_that_loads():
  """`assembly` lists them, so that it need not import that module."""
  of = lambda function: set(inspect.signature(function).parameters)
  assert of(start.start) == {*of(assembly._READERS['start']), 'model',
                             'image_size', 'own', 'class_names', 'data'}


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


@pytest.mark.parametrize('layers, magnitude, said', (
    (2, 0, 'magnitude'), (2, 10, ''), (0, 10, 'layers'), (0, 0, '')))
def test_randaugment_without_layers_or_magnitude_is_said_to_be_off(
    layers, magnitude, said, caplog):
  config = digits.get_config()
  config.augment.update(randaugment_layers=layers,
                        randaugment_magnitude=magnitude)
  settings = assembly.check(config)
  model = assembly.make_model(config, settings, Source(channels=1))
  assembly.make_step(config, settings, model, 10)
  assert caplog.text.partition('RandAugment is off: ')[2].strip() == (
      f'augment.randaugment_{said} is 0' * bool(said))


def test_the_papers_cost_is_told_of_its_own_runs_only():
  config = mixer_b16.get_config()
  assert assembly.paper_core_days(config) == 10
  for change in (dict(image_size=192), dict(image_width=448),
                 dict(total_epochs=90.0),
                 dict(total_epochs=None, total_steps=3)):
    assert assembly.paper_core_days(
        runs.edited(config, run=change)) is None
  config.model.patch_size = 32   # B/32 was trained on JFT only
  assert assembly.paper_core_days(config) is None
  config.data.name, config.run.total_epochs = 'jft', 7.0
  assert assembly.paper_core_days(config) == 50
  config.model.num_blocks = 3
  assert assembly.paper_core_days(config) is None
  config = mixer_b16.get_config()
  config.start.weights = 'w.npz'
  assert assembly.paper_core_days(config) is None


def test_runs_from_scratch_may_name_what_they_would_not_load():
  """The runs of `mixer.study left_out` do, with and without weights."""
  config = digits.get_config()
  config.start.dont_load = 'head/.*'
  assert assembly.load_start(config, None, 'model', None, None) == (
      'model', None, None)
