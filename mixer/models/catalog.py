"""Networks by name: 'Mixer-B/16'."""
import re

import jax.numpy as jnp

from mixer.core import errors
from mixer.models.mixer import MlpMixer
from mixer.models.mixer import pair
from mixer.models.mixer import REMAT

# Table 1 of https://arxiv.org/abs/2105.01601: layers, C, D_S, D_C.
SCALES = {
    'S': dict(num_blocks=8, hidden_dim=512, tokens_mlp_dim=256,
              channels_mlp_dim=2048),
    'B': dict(num_blocks=12, hidden_dim=768, tokens_mlp_dim=384,
              channels_mlp_dim=3072),
    'L': dict(num_blocks=24, hidden_dim=1024, tokens_mlp_dim=512,
              channels_mlp_dim=4096),
    'H': dict(num_blocks=32, hidden_dim=1280, tokens_mlp_dim=640,
              channels_mlp_dim=5120),
}
# The attributes that say what function a network computes.
_SHAPE = ('patch_size', 'hidden_dim', 'num_blocks', 'tokens_mlp_dim',
          'channels_mlp_dim', 'num_classes', 'in_channels', 'approximate_gelu')
PLATFORMS = ('cpu', 'gpu', 'tpu')
PAPER = ('Mixer-S/32', 'Mixer-S/16', 'Mixer-B/32', 'Mixer-B/16', 'Mixer-L/32',
         'Mixer-L/16', 'Mixer-H/14')


def names():
  """The scales of the paper; a scale takes any other patch size as well."""
  return PAPER


def create(name, *, num_classes=1000, dtype=jnp.float32, **overrides):
  """The network `name`, such as 'Mixer-B/16', or with any patch 'Mixer-S/8'.

  Args:
    name: 'Mixer-' and a scale of table 1 (S, B, L, H), '/' and the patch side.
    num_classes: width of the head; None or 0 leaves it out.
    dtype: of the computation, float32 or bfloat16; parameters are float32.
    **overrides: any attribute of `MlpMixer`: patch_size, hidden_dim,
      num_blocks, tokens_mlp_dim, channels_mlp_dim, in_channels, dropout_rate,
      stochastic_depth, approximate_gelu, head_bias, remat, scan. None keeps
      the scale's value.

  Returns:
    A flax module: `model.init(key, images)`, and
    `logits, out = model.apply(variables, images, train=False)`.

  Raises:
    UserError: if the name or an override is unknown, or a value is out of
      range.
  """
  match = re.fullmatch(r'Mixer-([A-Za-z]+)/(\d+)', str(name))
  if not match or match[1] not in SCALES:
    raise errors.unknown('model.name', name, PAPER)
  allowed = [f for f in MlpMixer.__dataclass_fields__
             if f not in ('parent', 'name')]
  settings = dict(SCALES[match[1]], patch_size=int(match[2]))
  for key, value in overrides.items():
    if key not in allowed:
      raise errors.unknown('model', key, allowed)
    if value is not None:
      settings[key] = value
  _check(settings)
  return MlpMixer(num_classes=num_classes, dtype=jnp.dtype(dtype), **settings)


def describe(model, name=None):
  """What `create` makes the same network from: a dict of its arguments.

  Args:
    model: as `create` makes them.
    name: by default that of the scale with its hidden width, or 'Mixer-S/...'.
  """
  if name is None:
    letter = next((letter for letter, scale in SCALES.items()
                   if scale['hidden_dim'] == model.hidden_dim), 'S')
    name = f'Mixer-{letter}/{pair(model.patch_size)[0]}'
  return dict(name=name, **{key: getattr(model, key) for key in _SHAPE})


def title(settings):
  """What `describe` gives, for people: 'Mixer-B/16, patch_size 8'."""
  usual = describe(create(settings['name']), settings['name'])
  differ = [f'{key} {settings[key]}' for key in usual
            if key not in ('num_classes', 'in_channels', 'approximate_gelu')
            and settings.get(key, usual[key]) != usual[key]]
  return ', '.join([settings['name'], *differ])


def _check(settings):
  for key, value in settings.items():
    if key in ('dropout_rate', 'stochastic_depth'):
      if not 0 <= value < 1:
        raise errors.UserError(f'model.{key}: expected 0 <= x < 1, got {value}')
    elif key == 'remat':
      if value not in REMAT:
        raise errors.unknown('model.remat', value, REMAT)
    elif key == 'platform':
      if value not in PLATFORMS:
        raise errors.unknown('platform', value, PLATFORMS)
    elif key not in ('approximate_gelu', 'head_bias', 'scan'):
      sides = value if isinstance(value, (tuple, list)) else (value,)
      if not all(isinstance(v, int) and v > 0 for v in sides):
        raise errors.UserError(
            f'model.{key}: expected a positive integer, got {value!r}')
