"""Opens a config: what its sections ask for, as objects.

The ConfigDict stops here; the modules that do the work are handed values.
"""
import inspect

from mixer import models
from mixer.core import checkpoint
from mixer.core import errors
from mixer.data import pipeline
from mixer.images import augment
from mixer.models.grid import pair
from mixer.training import losses
from mixer.training import optimizers
from mixer.training import schedules
from mixer.training import sharding
from mixer.training import start
from mixer.training import step as steps
from mixer.training.settings import Settings

# Whose keyword arguments the sections are.
_READERS = dict(
    data=pipeline.open_data, augment=augment.make, loss=losses.make,
    schedule=schedules.make, optimizer=optimizers.make, sharding=sharding.plan,
    checkpoint=checkpoint.Checkpoints, start=start.start, run=Settings)


def check(config):
  """The `Settings` of a config, whose sections and keys are all there are; no
  device is touched.

  Raises:
    UserError: naming the section or the key.
  """
  _check_sections(config)
  return Settings(**config.run)


def make_model(config, settings, source, platform=None):
  """Returns the network of a config.

  Args:
    config: of a run.
    settings: of its `run` section.
    source: what the network gets its classes and channels from, unless the
      config gives them: anything with the attributes `num_classes` and
      `channels`, such as a `sources.Source`.
    platform: which the program is for, as `sharding.Plan.platform`.

  Raises:
    UserError: if the augmentation is not for images of so many channels.
  """
  section = dict(config.model)
  classes = section.pop('num_classes', None) or source.num_classes
  if section.get('in_channels') is None:
    section['in_channels'] = source.channels
  if config.augment.randaugment_layers and section['in_channels'] not in (1, 3):
    raise errors.UserError(
        'augment.randaugment_layers: RandAugment is for images of 1 or 3 '
        f'channels, these have {section["in_channels"]}; set it to 0')
  return models.create(num_classes=classes, dtype=settings.dtype,
                       platform=platform, **section)


def check_classes(model, source):
  """Raises a UserError if the data has more classes than the network."""
  if model.num_classes < source.num_classes:
    raise errors.UserError(
        f'model.num_classes: {model.num_classes}, but {source.name} has '
        f'{source.num_classes} classes')


def make_step(config, settings, model, total_steps):
  """(optimizer, step function) of a config; nothing is computed yet."""
  schedule = schedules.make(total_steps=total_steps, **config.schedule)
  optimizer = optimizers.make(schedule=schedule, **config.optimizer)
  step_fn = steps.make_train_step(
      model, optimizer, schedule=schedule, seed=settings.seed,
      loss=losses.make(**config.loss),
      augment=augment.make(**config.augment),
      num_classes=model.num_classes, micro_batches=settings.micro_batches,
      frozen=config.optimizer.frozen)
  return optimizer, step_fn


def image_shape(model, settings):
  """(height, width, channels) of the model's input."""
  return (*pair(settings.image_size), model.in_channels)


def _check_sections(config):
  expected = ('model', 'data', 'augment', 'loss', 'schedule', 'optimizer',
              'sharding', 'checkpoint', 'start', 'evals', 'fewshot', 'run')
  for name in config:
    if name not in (*expected, 'sweep'):   # `analysis.sweep`'s, not a run's
      raise errors.unknown('config', name, expected)
  missing = [name for name in expected if name not in config]
  if missing:
    raise errors.UserError(f'config: the sections {", ".join(missing)} are '
                           'missing; start from recipe.base()')
  sections = dict({name: (config[name], function)
                   for name, function in _READERS.items()},
                  **{f'evals.{name}': (section, pipeline.open_data)
                     for name, section in config.evals.items()})
  for name, (section, function) in sections.items():
    known = list(inspect.signature(function).parameters)
    for key in section:
      if key not in known:
        raise errors.unknown(f'config.{name}', key, known)


def edited(config, **sections):
  """Returns a copy of a config with some settings changed.

  Args:
    config: of a run.
    **sections: {key: value} for each section that changes.
  """
  out = config.copy_and_resolve_references()
  for section, settings in sections.items():
    for key, value in settings.items():
      out[section][key] = value
  return out
