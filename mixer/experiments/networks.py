"""Networks of other families that cost about as much as a config's network."""
from collections.abc import Iterable
import itertools

import ml_collections

from mixer.core import errors
from mixer.experiments import runs
from mixer.models import catalog
from mixer.models import grid
from mixer.models import interface

FAMILIES = ('Mixer', 'ViT', 'BiT')
_MAX_BLOCKS = 48
_NEAR = .1   # relative difference in multiply-adds that does not matter
_BIT_WIDTHS = (8, 12, *range(16, 513, 8))
_BIT_DEPTHS = (14, 26, 50, 101, 152)
# Images up to this side in pixels get a BiT whose stem keeps their size.
_SMALL_IMAGE = 64
_HEAD_WIDTHS = (64, 32, 16, 8)
# What belongs to a network's own family.
_OWN = ('patch_size', 'hidden_dim', 'num_blocks', 'tokens_mlp_dim',
        'channels_mlp_dim', 'num_heads', 'pool', 'stem', 'token_mixing')


def families(names: Iterable[str]) -> tuple[str, ...]:
  """Returns the names of --networks, checked.

  Raises:
    UserError: if a name is unknown, or none is given.
  """
  out = tuple(dict.fromkeys(names))
  for name in out or ('',):
    if name not in FAMILIES:
      raise errors.unknown('--networks', name, FAMILIES)
  return out


def alike(config: ml_collections.ConfigDict,
          family: str) -> ml_collections.ConfigDict:
  """Returns a copy whose network is of another family, at about equal cost.

  The multiply-adds of a forward pass decide. A ViT has the Mixer's patches,
  width and channel MLP, and as many blocks as fit. A BiT has the depth and
  width that come nearest; its stem keeps the size of small images.

  Args:
    config: of a run with a Mixer.
    family: 'Mixer', 'ViT' or 'BiT'; the config's own is left as it is.

  Raises:
    UserError: if the config's network is neither a Mixer nor of the family.
  """
  name = config.model.name
  if name.startswith(f'{family}-'):
    return runs.edited(config)
  mixer, size = model(config), _size(config)
  wanted, patch = mixer.multiply_adds(size), grid.pair(mixer.patch_size)[0]
  if not name.startswith('Mixer-'):
    raise errors.UserError(
        f'model.name: expected a Mixer to compare others with, got {name}')
  if config.start.weights is not None:
    raise errors.UserError(
        f'start.weights: {config.start.weights!r} do not fit a {family} of '
        'other widths; give a config that starts from scratch, such as '
        '--config=configs/digits.py, or the networks of one family')
  none = dict.fromkeys(_OWN)
  if family == 'ViT':
    width = mixer.hidden_dim
    heads = max(width // next((w for w in _HEAD_WIDTHS if width % w == 0),
                              width), 1)
    trials = [dict(none, name=f'ViT-S/{patch}', hidden_dim=width,
                   num_blocks=blocks, channels_mlp_dim=mixer.channels_mlp_dim,
                   num_heads=heads, pool='mean')
              for blocks in range(1, _MAX_BLOCKS)]
  else:
    stem = 'small' if max(grid.pair(size)) <= _SMALL_IMAGE else 'imagenet'
    trials = [dict(none, name=f'BiT-R{depth}x1', hidden_dim=width, stem=stem,
                   stochastic_depth=0.0, dropout_rate=0.0, scan=False,
                   approximate_gelu=True, remat=None)
              for depth, width in itertools.product(_BIT_DEPTHS, _BIT_WIDTHS)]
  tried = [runs.edited(config, model=trial) for trial in trials]
  # Of those that are near enough, the first has the fewest layers.
  return min(tried, key=lambda one: max(
      abs(multiply_adds(one) / wanted - 1), _NEAR))


def multiply_adds(config: ml_collections.ConfigDict) -> int:
  """Returns the multiply-adds of a forward pass for one image."""
  return model(config).multiply_adds(_size(config))


def _size(config: ml_collections.ConfigDict) -> grid.Size:
  return config.run.image_size, config.run.image_width or config.run.image_size


def model(config: ml_collections.ConfigDict) -> interface.Model:
  """Returns the network of a config, by default with 3 channels and 10 classes.
  """
  section = {key: value for key, value in config.model.items()
             if key not in catalog.without_effect(config.model)}
  for key, value in (('in_channels', 3), ('num_classes', 10)):
    section[key] = section.get(key) or value
  return catalog.create(**section)
