"""Big Transfer's ResNet-v2 (https://arxiv.org/abs/1912.11370, section 3).

The Mixer paper's convolutional baseline: pre-activation bottleneck units, group
normalisation, weight standardisation. Parameters have big_vision's names, with
'stem' for 'root_block/conv_root'. Axes: B batch, H, W image, C, I, O channels.
"""
from collections.abc import Iterator
from collections.abc import Mapping
import functools
import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixer.core import errors
from mixer.models import blocks
from mixer.models import grid
from mixer.models import interface
from mixer.models import products

# Depth -> units of each stage; 14 and 26 are not the paper's.
_DEPTHS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3),
           101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}
# The settings that decide which function a network computes.
_FUNCTION = ('depth', 'hidden_dim', 'stem', 'num_classes', 'in_channels',
             'patch_size')
_UNIT = r'resnet/(block\d)/(unit\d+)/'
_CONV = r'standardized_conv2d(?:_\d+)?/kernel'
# Names in the original TensorFlow code and in big_vision, and ours.
_PUBLISHED = (
    (rf'resnet/root_block/{_CONV}', 'stem/kernel'),
    (r'root_block/conv_root/', 'stem/'),
    (rf'{_UNIT}a/proj/{_CONV}', r'\1/\2/conv_proj/kernel'),
    *((rf'{_UNIT}{letter}/{_CONV}', rf'\1/\2/conv{i}/kernel')
      for i, letter in enumerate('abc', 1)),
    *((rf'{_UNIT}{letter}/group_norm/', rf'\1/\2/gn{i}/')
      for i, letter in enumerate('abc', 1)),
    (r'resnet/group_norm/', 'norm-pre-head/'),
    (r'resnet/head/conv2d/', 'head/'), (r'(.*)/gamma', r'\1/scale'),
    (r'(.*)/beta', r'\1/bias'))


class StdConv(nn.Module):
  """A convolution without bias whose kernel is standardised: for each output
  channel it has mean 0 and variance 1.

  Attributes:
    features: output channels.
    side: of the square window.
    stride: in both directions.
    dtype: of the computation.
  """
  features: int
  side: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """Returns [B, H / stride, W / stride, features], rounded up."""
    kernel_HWIO = self.param(
        'kernel', nn.initializers.lecun_normal(),
        (self.side, self.side, x_BHWC.shape[-1], self.features))
    kernel_HWIO -= jnp.mean(kernel_HWIO, axis=(0, 1, 2), keepdims=True)
    kernel_HWIO /= jnp.sqrt(jnp.mean(
        kernel_HWIO**2, axis=(0, 1, 2), keepdims=True) + 1e-10)
    return jax.lax.conv_general_dilated(
        x_BHWC.astype(self.dtype), kernel_HWIO.astype(self.dtype),
        (self.stride, self.stride), [(self.side // 2, self.side // 2)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


class ResidualUnit(nn.Module):
  """A bottleneck: 1x1, 3x3 and 1x1 convolutions, each after a normalisation and
  a ReLU, and a skip.

  Attributes:
    features: channels of the 3x3 convolution; the unit returns four times as
      many.
    stride: of the 3x3 convolution and of the projection of the skip.
    dtype: of the computation.
  """
  features: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """Returns [B, H / stride, W / stride, 4 features]."""
    active = lambda name, x: nn.relu(_norm(x, self.dtype, name))
    conv = functools.partial(StdConv, dtype=self.dtype)
    y = active('gn1', x_BHWC)
    if x_BHWC.shape[-1] != 4 * self.features or self.stride != 1:
      x_BHWC = conv(4 * self.features, 1, self.stride, name='conv_proj')(y)
    y = active('gn2', conv(self.features, 1, name='conv1')(y))
    y = active('gn3', conv(self.features, 3, self.stride, name='conv2')(y))
    return x_BHWC + conv(4 * self.features, 1, name='conv3')(y)


class Stage(nn.Module):
  """Residual units of equal width, of which the first may have a stride."""
  units: int
  features: int
  stride: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """Returns [B, H / stride, W / stride, 4 features]."""
    for i in range(self.units):
      x_BHWC = ResidualUnit(self.features, 1 if i else self.stride, self.dtype,
                            name=f'unit{i + 1:02d}')(x_BHWC)
    return x_BHWC


class ResNet(interface.Model):
  """The network of section 3; `mixer.models.create` makes it by its name.

  Images may have any size. There is no dropout, and no stochastic depth.

  Attributes:
    depth: number of layers, 50, 101, 152 or 200; 14 or 26 for small data.
    hidden_dim: channels of the stem, 64 times the factor of the width.
    stem: 'imagenet', a 7x7 convolution of stride 2 and a 3x3 maximum of stride
      2; or 'small', for images of about 32 pixels: a 3x3 convolution.
    num_classes .. pixel_order: see `models.mixer.MlpMixer`, but platform has no
      effect, and patch_size is only that of `pixel_order`.
  """
  NAMES = ('BiT-R50x1', 'BiT-R50x2', 'BiT-R101x1', 'BiT-R152x1', 'BiT-R152x2',
           'BiT-R152x4', 'BiT-R200x3')
  CHOICES = dict(stem=('imagenet', 'small'), platform=products.PLATFORMS)
  SHARDING_RULES = (('(conv.*|stem)/kernel', (None, None, 'fsdp', 'model')),
                    ('head/kernel', ('fsdp', None)), ('.*', ('fsdp',)))
  OWN_PARAMETER = re.compile(r'block\d+/unit\d+/.*')
  WIDTHS = ('depth', 'hidden_dim', 'stem', 'pixel_order')
  USUAL_SIZE = 224

  depth: int
  hidden_dim: int
  stem: str = 'imagenet'
  num_classes: int | None = 1000
  head_bias: float = 0.0
  in_channels: int = 3
  dtype: Any = jnp.float32
  platform: str | None = None
  patch_size: grid.Size = 1
  pixel_order: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False,
               rows: jax.Array | None = None) -> tuple[
                   jax.Array, dict[str, jax.Array]]:
    """Returns class logits, and every named intermediate.

    Args, Returns and Raises: see `models.mixer.MlpMixer`; `train` and `rows`
      have no effect. The intermediates are 'stem' and 'stage_{i}' [B, H, W, C],
      'pre_logits' and 'logits'.
    """
    del train, rows
    self.patches(images)
    out = {}
    small = self.stem == 'small'
    x = StdConv(self.hidden_dim, 3 if small else 7, 1 if small else 2,
                self.dtype, name='stem')(self.ordered(images))
    if not small:
      edges = (0, 0), (1, 1), (1, 1), (0, 0)   # a pool's own fail in jax2onnx
      x = nn.max_pool(jnp.pad(x, edges, constant_values=-jnp.inf),
                      window_shape=(3, 3), strides=(2, 2))
    out['stem'] = x
    for i, units in enumerate(_DEPTHS[self.depth]):
      x = out[f'stage_{i}'] = Stage(
          units, self.hidden_dim * 2**i, 2 if i else 1, self.dtype,
          name=f'block{i + 1}')(x)
    x = nn.relu(_norm(x, self.dtype, 'norm-pre-head'))
    # In bfloat16 the mean of many places, and the head, would lose accuracy.
    x_BC = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    return blocks.classify(self, x_BC, out)

  @classmethod
  def settings(cls, name: str) -> dict[str, Any]:
    """See `interface.Model`; any factor of the width, as in 'BiT-R101x3'."""
    match = re.fullmatch(r'BiT-R(\d+)x([1-9])', name)
    if match is None or int(match[1]) not in _DEPTHS:
      raise errors.unknown('model.name', name, cls.NAMES)
    return dict(depth=int(match[1]), hidden_dim=64 * int(match[2]))

  @classmethod
  def published(cls, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """See `interface.Model`: the first release's layout, or big_vision's."""
    out = interface.renamed(flat, _PUBLISHED)
    if not any(map(cls.OWN_PARAMETER.fullmatch, out)):
      return out
    # Normalisations are [1, 1, 1, C] there, and the head is a convolution.
    rank = lambda name: 4 if not name.startswith('head') else 2
    return {name: value.reshape(value.shape[value.ndim - (
        rank(name) if name.endswith('/kernel') else 1):])
            for name, value in out.items()}

  @classmethod
  def infer(cls, shapes: interface.Shapes) -> 'ResNet':
    """See `interface.Model`."""
    kernel = shapes.get('stem/kernel', ())
    if len(kernel) != 4 or kernel[0] not in (3, 7) or 0 in kernel:
      raise errors.UserError(
          "this is not a BiT ResNet: 'stem/kernel' is "
          f'{list(kernel) or "missing"}, expected [7, 7, channels, width]')
    units = {name.rpartition('/')[0].rpartition('/')[0] for name in shapes
             if cls.OWN_PARAMETER.fullmatch(name)}
    stages = tuple(sum(unit.startswith(f'block{i}/') for unit in units)
                   for i in (1, 2, 3, 4))
    depth = next((d for d, known in _DEPTHS.items() if known == stages), None)
    if depth is None:
      raise errors.UserError(
          f'this is not a BiT ResNet: its stages have {stages} units, expected '
          f'{" or ".join(map(str, _DEPTHS.values()))}')
    return cls(depth=depth, stem='small' if kernel[0] == 3 else 'imagenet',
               hidden_dim=kernel[3], in_channels=kernel[2],
               num_classes=(shapes.get('head/kernel') or (0,))[-1])

  @classmethod
  def widths(cls, shapes: interface.Shapes) -> dict[str, int]:
    """See `interface.Model`."""
    kernel = shapes.get('stem/kernel')
    return {'hidden_dim': kernel[-1]} if kernel else {}

  @nn.nowrap
  def describe(self) -> dict[str, Any]:
    """See `interface.Model`."""
    return dict(name=f'BiT-R{self.depth}x{min(-(-self.hidden_dim // 64), 9)}',
                **{key: getattr(self, key) for key in _FUNCTION
                   if key != 'patch_size' or self.patch_size != 1})

  @nn.nowrap
  def _convolutions(self, image_size: grid.Size
                    ) -> Iterator[tuple[str, int, int, int, int]]:
    """Yields (layer, window's side, I, O, outputs of each channel)."""
    half = lambda size: tuple(-(-side // 2) for side in size)
    inputs = c = self.hidden_dim
    size = grid.pair(image_size)
    if self.stem == 'small':
      yield 'stem', 3, self.in_channels, c, size[0] * size[1]
    else:
      size = half(size)
      yield 'stem', 7, self.in_channels, c, size[0] * size[1]
      size = half(size)
    for i, units in enumerate(_DEPTHS[self.depth]):
      for j in range(units):
        width, name = c * 2**i, f'block{i + 1}/unit{j + 1:02d}'
        yield f'{name}/conv1', 1, inputs, width, size[0] * size[1]
        size = half(size) if i and not j else size
        places = size[0] * size[1]
        yield f'{name}/conv2', 3, width, width, places
        yield f'{name}/conv3', 1, width, 4 * width, places
        if inputs != 4 * width or (i and not j):
          yield f'{name}/conv_proj', 1, inputs, 4 * width, places
        inputs = 4 * width

  @nn.nowrap
  def parameters(self, image_size: grid.Size) -> int:
    """Returns those of the convolutions, of their normalisations, and of the
    head."""
    every = list(self._convolutions(image_size))
    # One normalisation before each convolution of a unit, of scale and bias.
    norms = sum(2 * ins for name, _, ins, _, _ in every
                if re.search(r'/conv\d$', name))
    last = 32 * self.hidden_dim
    return (sum(side**2 * ins * outs for _, side, ins, outs, _ in every) + norms
            + 2 * last + (last + 1) * (self.num_classes or 0))

  @nn.nowrap
  def layers(self, image_size: grid.Size) -> list[tuple[str, int]]:
    """See `interface.Model`."""
    last = 32 * self.hidden_dim
    out = []
    for name, side, ins, outs, places in self._convolutions(image_size):
      if re.search(r'/conv\d$', name):
        out.append((name.replace('/conv', '/gn'), 0))
      out.append((name, side**2 * ins * outs * places))
    return out + [('norm-pre-head', 0),
                  ('head', last * (self.num_classes or 0))]

  @nn.nowrap
  def resized(self, params: interface.Params, old: tuple[int, int],
              new: tuple[int, int], method: str) -> tuple[
                  'ResNet', interface.Params]:
    """Returns the same: no parameter is tied to the size of the images."""
    del old, new, method
    return self, params


def _norm(x: jax.Array, dtype: Any, name: str) -> jax.Array:
  """Returns x normalised in at most 32 equal groups of two or more channels."""
  groups = 1 if x.shape[-1] % 2 else math.gcd(32, x.shape[-1] // 2)
  # Released weights were trained with the variance of the centred values.
  return nn.GroupNorm(groups, epsilon=1e-5, dtype=dtype, name=name,
                      use_fast_variance=False)(x)
