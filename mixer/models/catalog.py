"""Networks by name, such as 'Mixer-B/16'.

A row of the table is all that the catalog knows of a network; everything else
comes from its class, see `interface.Model`.

A network's card says what it takes to use the network, as JSON. It is a dict
with these keys:
  model: the arguments of `models.create`.
  image_size: [height, width] in pixels.
  class_names: in the order of the logits, or None.
  data: name of the training set, or None.
  loss: 'softmax' or 'sigmoid', which turns logits into probabilities.
  preprocessing: the crop and interpolation of `mixer.images.eval_crops`. Pixels
    from 0 to 255 always enter the network as (x - 127.5) / 127.5.
  provenance: what the network was trained with, see `core.provenance`; absent
    if that is not known. A run keeps it in its config.json.

A run keeps its card as model.json; a file of weights or a program has its card
beside it, as FILE.json.
"""
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib
import typing
from typing import Any

from mixer.core import errors
from mixer.core.log import log
from mixer.models import grid

if typing.TYPE_CHECKING:
  import flax.linen as nn

  from mixer.models import interface

# The beginning of a name -> the module and class of the network. A module is
# imported when its network is asked for.
FAMILIES = {
    'Mixer': ('mixer.models.mixer', 'MlpMixer'),
    'ViT': ('mixer.models.vit', 'VisionTransformer'),
    'BiT': ('mixer.models.bit', 'ResNet'),
}
# What configs/recipe.py sets for every network, and the value that a network
# without such a setting takes.
_OFF = dict(dropout_rate=0.0, stochastic_depth=0.0, scan=False,
            approximate_gelu=True)
_FRACTIONS = ('dropout_rate', 'stochastic_depth')
_SIZES = (int, int | None, grid.Size)


def names() -> tuple[str, ...]:
  """Returns the sizes of the networks' papers; most take other patches too."""
  return tuple(name for family in FAMILIES for name in class_of(family).NAMES)


def create(name: str, *, num_classes: int | None = 1000,
           dtype: Any = 'float32', **overrides: Any) -> 'interface.Model':
  """Returns the network `name`.

  Args:
    name: 'Mixer-' and a scale of table 1 of the paper (S, B, L, H), '/' and the
      side of a patch, such as 'Mixer-B/16' or 'Mixer-S/8'; 'ViT-' likewise; or
      'BiT-R', a depth, 'x' and a factor of the width, such as 'BiT-R50x1'.
    num_classes: width of the head; None or 0 leaves it out.
    dtype: of the computation, float32 or bfloat16; parameters are float32.
    **overrides: other fields of the network's class, such as patch_size,
      hidden_dim, num_blocks or stochastic_depth of `models.mixer.MlpMixer`.
      None keeps the value that belongs to the name.

  Returns:
    A flax module: `model.init(key, images)`, and
    `logits, out = model.apply(variables, images, train=False)`.

  Raises:
    UserError: if the name or an override is unknown, or a value is out of
      range.
  """
  import jax.numpy as jnp
  family = str(name).partition('-')[0]
  if family not in FAMILIES:
    raise errors.unknown('model.name', name, names())
  network = class_of(family)
  fields = {field.name: field.type for field in dataclasses.fields(network)
            if field.name not in ('parent', 'name')}
  settings = network.settings(str(name))
  for key, value in overrides.items():
    if value is None:   # configs share their keys; a network may lack some
      continue
    if key not in fields:
      if key in _OFF and value == _OFF[key]:
        continue
      if key in _OFF:
        raise errors.UserError(f'model.{key}: {name} has none, got {value}; '
                               f'set --config.model.{key}={_OFF[key]}')
      raise errors.unknown('model', key, fields)
    settings[key] = value
  _check('num_classes', num_classes or 1, int, {})
  for key, value in settings.items():
    _check(key, value, fields[key], network.CHOICES)
  if settings.get('pixel_order') is not None:
    from mixer.models import pixel_order
    pixel_order.parse(settings['pixel_order'], settings.get('patch_size'))
  make: Callable[..., interface.Model] = network
  return make(num_classes=num_classes, dtype=jnp.dtype(dtype), **settings)


def without_effect(settings: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns which settings of a config only other networks have.

  A config that gives its network a size, such as `tokens_mlp_dim`, can so be
  used with `model.name` of another network.

  Args:
    settings: arguments of `create`, `name` among them.
  """
  family = str(settings['name']).partition('-')[0]
  if family not in FAMILIES:
    return ()
  has = lambda name, key: key in class_of(name).__dataclass_fields__
  return tuple(key for key, value in settings.items()
               if value is not None and key not in _OFF
               and not has(family, key)
               and any(has(name, key) for name in FAMILIES))


def say_without_effect(settings: Mapping[str, Any],
                       model: 'interface.Model') -> None:
  """Logs a line for each setting that changes nothing.

  Args:
    settings: arguments of `create`, and those in `without_effect`.
    model: the network of these settings.
  """
  for key in without_effect(settings):
    log.warning('model.%s has no effect on %s', key, settings['name'])
  for key, reason in model.unused.items():
    if settings.get(key) is not None:
      log.warning('model.%s has no effect on %s', key, reason)


def describe(model: 'nn.Module', name: str | None = None) -> dict[str, Any]:
  """Returns the arguments with which `create` makes the same network.

  Args:
    model: as `create` makes them.
    name: the name to start from; by default the nearest one. A 'Mixer-B/16'
      whose patches have 8 pixels is called 'Mixer-B/8'.
  """
  out = model.describe()
  # Runs that were saved before there was a choice have no such key.
  if model.pixel_order is not None:
    out['pixel_order'] = model.pixel_order
  if name and '/' in name and isinstance(out.get('patch_size'), int):
    name = f'{name.partition("/")[0]}/{out["patch_size"]}'
  return out if name is None else dict(out, name=name)


def card(model: Mapping[str, Any], *, image_size: Sequence[int],
         class_names: Sequence[str] | None = None, data: str | None = None,
         loss: str = 'softmax', crop: str,
         interpolation: str) -> dict[str, Any]:
  """Returns a card, ready for JSON.

  Args:
    model: as `describe` returns it.
    image_size: (height, width).
    class_names, data, loss: see the top of the file.
    crop, interpolation: of the preprocessing.
  """
  return dict(
      model=dict(model), image_size=list(image_size),
      class_names=None if class_names is None else list(class_names),
      data=data, loss=loss,
      preprocessing=dict(crop=crop, interpolation=interpolation))


def title(settings: Mapping[str, Any]) -> str:
  """Returns what `describe` gives, for people: 'Mixer-B/8, hidden_dim 48'."""
  usual = describe(create(settings['name']), settings['name'])
  differ = [f'{key} {value}' for key, value in settings.items()
            if key not in ('num_classes', 'in_channels', 'approximate_gelu')
            and value != usual.get(key)]
  return ', '.join([settings['name'], *differ])


def class_of(family: str) -> type['interface.Model']:
  """Returns the class of a network, by the beginning of its name."""
  module, name = FAMILIES[family]
  return getattr(importlib.import_module(module), name)


def _check(key: str, value: Any, kind: Any,
           choices: Mapping[str, tuple[str, ...]]) -> None:
  """Raises a UserError if a setting is out of range."""
  if key in choices:
    if value not in choices[key]:
      raise errors.unknown(f'model.{key}', value, choices[key])
  elif key in _FRACTIONS:
    if not 0 <= value < 1:
      raise errors.UserError(
          f'model.{key}: expected a number from 0 to below 1, got {value}')
  elif kind in _SIZES:
    sides = value if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(side, int) and side > 0 for side in sides):
      raise errors.UserError(
          f'model.{key}: expected a positive integer, got {value!r}')
