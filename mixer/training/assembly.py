"""Makes the objects that the sections of a config ask for.

A run's ConfigDict is opened here; the modules that do the work are handed
values. Each section of it is the keyword arguments of one function.
"""
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import os
from typing import Any
from typing import Protocol

import jax
import ml_collections
import optax

from mixer import models
from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import workdir
from mixer.core.log import log
from mixer.data import pipeline
from mixer.evaluation import suite
from mixer.images import augment
from mixer.models import catalog
from mixer.models import grid
from mixer.models import interface
from mixer.training import losses
from mixer.training import optimizers
from mixer.training import sharding
from mixer.training import step
from mixer.training.settings import Settings

# Initial parameters -> the same tree, with loaded values in place of some.
Merge = Callable[[step.Params], step.Params]
Origin = dict[str, str] | None   # `weights`, where they are, and `sha256`

# The functions whose keyword arguments the sections are.
_READERS: Mapping[str, Callable[..., Any]] = dict(
    data=pipeline.open_data, augment=augment.make, loss=losses.make,
    schedule=optimizers.schedule, optimizer=optimizers.make,
    sharding=sharding.plan, checkpoint=checkpoint.Checkpoints, run=Settings,
    # Of `start.start`, whose module is imported only if weights are loaded.
    start=lambda weights, best, dont_load, method: None)
# Every number of a config lies between 0 and the largest int32, except for
# these, which may be negative. The functions check narrower ranges.
_LARGEST, _SIGNED = 2**31 - 1, ('model.head_bias',)
_SECTIONS = ('model', *_READERS, 'evals', 'fewshot')


class Classes(Protocol):
  """Those fields of `data.sources.Source` that the shape of a network needs."""

  @property
  def num_classes(self) -> int:
    """Number of classes of the labels."""

  @property
  def channels(self) -> int:
    """Number of channels of the images."""


def check(config: ml_collections.ConfigDict) -> Settings:
  """Returns the settings of a config's `run` section; touches no device.

  Raises:
    UserError: if a section or a key is unknown, a section is missing, or a
      setting of `run` is out of range.
  """
  for name in config:
    if name not in (*_SECTIONS, 'sweep'):   # `sweep` is not a single run's
      raise errors.unknown('config', name, _SECTIONS)
  missing = [name for name in _SECTIONS if name not in config]
  if missing:
    raise errors.UserError(f'config: missing sections: {", ".join(missing)}; '
                           'build the config from recipe.base()')
  for name, reader in _READERS.items():
    suite.check_keys(name, config[name], reader)
  suite.sections(config.to_dict())   # checks the keys
  for name in _SECTIONS:
    _check_numbers(name, config[name].to_dict())
  # These compute nothing, so they check their sections before data are opened.
  _checked('model', models.create, **_network(config))
  _checked('augment', augment.make, **config.augment)
  _checked('loss', losses.make, **config.loss)
  _checked('schedule', optimizers.schedule, total_steps=_LARGEST,
           **config.schedule)
  _checked('optimizer', optimizers.make, schedule=lambda step: 0.0,
           **config.optimizer)
  return _checked('run', Settings, **config.run)


def make_plan(config: ml_collections.ConfigDict,
              devices: Sequence[jax.Device] | None = None) -> sharding.Plan:
  """Returns how state and batches lie on the devices, by default on all."""
  return sharding.plan(devices=devices, **config.sharding)


def make_model(config: ml_collections.ConfigDict, settings: Settings,
               source: Classes, platform: str | None = None) -> interface.Model:
  """Returns the network of a config.

  Args:
    config, settings: of a run, and of its `run` section.
    source: gives the number of classes and channels if the config does not.
    platform: 'cpu', 'gpu' or 'tpu', which the program is for, as
      `sharding.Plan.platform`. None decides when the program is lowered, with
      the default dtype of this process's backend.

  Raises:
    UserError: if the network is unknown or a setting is out of range, or if the
      images have a number of channels that RandAugment does not support.
  """
  section = _network(config)
  classes = section.pop('num_classes', None) or source.num_classes
  if section.get('in_channels') is None:
    section['in_channels'] = source.channels
  if config.augment.randaugment_layers and section['in_channels'] not in (1, 3):
    raise errors.UserError(
        'augment.randaugment_layers: RandAugment needs images of 1 or 3 '
        f'channels, and these have {section["in_channels"]}; set it to 0')
  return models.create(num_classes=classes, dtype=settings.dtype_on(platform),
                       platform=platform, **section)


def _network(config: ml_collections.ConfigDict) -> dict[str, Any]:
  return {key: value for key, value in config.model.items()
          if key not in catalog.without_effect(config.model)}


def image_shape(model: interface.Model,
                settings: Settings) -> tuple[int, int, int]:
  """Returns (height, width, channels) of the model's input."""
  return (*grid.pair(settings.image_size), model.in_channels)


def open_checkpoints(config: ml_collections.ConfigDict,
                     path: str) -> checkpoint.Checkpoints:
  """Opens the checkpoints in a workdir, which may have none yet."""
  return checkpoint.Checkpoints(
      os.path.join(path, workdir.CHECKPOINTS), **config.checkpoint)


def load_start(config: ml_collections.ConfigDict, settings: Settings,
               model: interface.Model, class_names: Sequence[str] | None,
               data: str | None
               ) -> tuple[interface.Model, Merge | None, Origin]:
  """Loads the weights that a config starts from, if it names any.

  Args:
    config, settings, model, class_names, data: of the run; see `start.start`.

  Returns:
    (the model with the settings that the weights need, a function that puts
    them in the place of initial parameters or, given shapes, checks that they
    fit, their origin); the last two are None without weights.

  Raises:
    UserError: if the weights cannot be loaded, or cannot be resized.
  """
  if config.start.weights is None:
    for key in ('best', 'method'):
      if config.start[key]:
        raise errors.UserError(
            f'start.{key}: {config.start[key]!r}, but start.weights is not set')
    return model, None, None
  from mixer.pretrained import origin
  from mixer.training import start
  section = origin.resolved(config.start)
  model, given = start.start(
      model, image_size=image_shape(model, settings)[:2],
      own=[key for key, value in config.model.items() if value is not None],
      class_names=class_names, data=data, **section)
  return model, functools.partial(
      start.merge, given, source=config.start.weights,
      dont_load=config.start.dont_load), origin.of(section['weights'])


def make_step(config: ml_collections.ConfigDict, settings: Settings,
              model: interface.Model, total_steps: int,
              weights: losses.Weights = None
              ) -> tuple[optax.GradientTransformation, step.Step]:
  """Returns (optimizer, step function); `weights` is for `losses.make`."""
  schedule = optimizers.schedule(total_steps=total_steps, **config.schedule)
  optimizer = optimizers.make(schedule=schedule, **config.optimizer)
  if settings.average:
    optimizer = optimizers.averaged(optimizer, settings.average)
  off = [key for key in ('randaugment_layers', 'randaugment_magnitude')
         if not config.augment[key]]
  if len(off) == 1:
    log.warning('RandAugment is off: augment.%s is 0', off[0])
  step_fn = step.make_train_step(
      model, optimizer, schedule=schedule, seed=settings.seed,
      loss=losses.make(weights=weights, **config.loss),
      augment=augment.make(**config.augment),
      num_classes=model.num_classes, micro_batches=settings.micro_batches,
      frozen=config.optimizer.frozen, nonfinite=settings.nonfinite)
  return optimizer, step_fn


def make_card(config: ml_collections.ConfigDict, model: interface.Model,
              data: pipeline.Data, evals: Mapping[str, pipeline.Data]
              ) -> dict[str, Any]:
  """Returns the card, with the first evaluation's preprocessing; see
  `models.catalog`."""
  like = next(iter(evals.values()), data)
  return catalog.card(
      described(config, model), image_size=data.image_size,
      class_names=data.source.class_names, data=data.source.name,
      loss=config.loss.name, crop=like.cut['crop'] if evals else 'resmall',
      interpolation=like.cut['interpolation'])


def described(config: ml_collections.ConfigDict,
              model: interface.Model) -> dict[str, Any]:
  """Returns `catalog.describe` of a run's network: under the config's name,
  or the nearest one if its widths come from weights."""
  asked = models.create(**_network(config))
  same = all(getattr(asked, k) == getattr(model, k) for k in model.WIDTHS)
  return catalog.describe(model, config.model.name if same else None)


def stored(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the sections that a workdir keeps, as a nested dict."""
  return {name: section for name, section in config.to_dict().items()
          if name != 'sweep'}


def paper_core_days(config: ml_collections.ConfigDict) -> int | None:
  """Returns the TPUv3 core-days that the paper's run took.

  None if the paper does not train this network on these data for as many
  epochs at the same image size, or if this run does not start from scratch.
  """
  run = config.run
  if (config.start.weights or config.data.name not in (
      'imagenet2012', 'imagenet21k', 'jft') or not run.total_epochs
      or {run.image_size, run.image_width or 224} != {224}):
    return None
  from mixer.models import published
  network = catalog.describe(models.create(**_network(config)),
                             config.model.name)
  found = published.row(
      catalog.title(network), config.data.name, run.total_epochs)
  return found.core_days if found else None


def _check_numbers(name: str, value: Any) -> None:
  """Raises a UserError if a number in a section can be no setting at all."""
  if isinstance(value, Mapping):
    for key, inner in value.items():
      _check_numbers(f'{name}.{key}', inner)
  elif isinstance(value, (list, tuple)):
    for inner in value:
      _check_numbers(name, inner)
  elif isinstance(value, (int, float)):
    low = -_LARGEST if name in _SIGNED else 0
    if not low <= value <= _LARGEST:   # NaN is in no range
      raise errors.UserError(
          f'{name}: expected a number from {low} to {_LARGEST}, got {value}')


def _checked(section: str, make: Callable[..., Any], **settings: Any) -> Any:
  """Returns what `make` makes of a section; a wrong type is a UserError."""
  try:
    return make(**settings)
  except (TypeError, AttributeError, OverflowError) as e:
    raise errors.UserError(
        f'config.{section}: a value has a type that was not expected ({e}); '
        'see configs/recipe.py for the usual ones') from e
