"""Vision Transformer (https://arxiv.org/abs/2010.11929, section 3.1).

Axes: B batch, S patches, T tokens (the patches, and the class token before
them), C channels, H heads. Parameters have the names of the released weights,
without their prefix 'Transformer', and with 'stem' for 'embedding'.
"""
from collections.abc import Mapping
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mixer.core import errors
from mixer.models import attention
from mixer.models import blocks
from mixer.models import grid
from mixer.models import interface
from mixer.models import products

# Table 1 of the paper, and S of https://arxiv.org/abs/2106.10270: layers, C,
# hidden width of the MLPs, H.
_SCALES = {'S': (12, 384, 1536, 6), 'B': (12, 768, 3072, 12),
           'L': (24, 1024, 4096, 16), 'H': (32, 1280, 5120, 16)}
_SCALED = ('num_blocks', 'hidden_dim', 'channels_mlp_dim', 'num_heads')
# The settings that decide which function a network computes.
_FUNCTION = (*_SCALED, 'patch_size', 'pool', 'representation_dim',
             'num_classes', 'in_channels', 'approximate_gelu')
_ATTENTION = 'MultiHeadDotProductAttention_0'
# The parameter and the axis that show a width.
_WIDTHS = dict(
    hidden_dim=('stem/kernel', 3),
    channels_mlp_dim=('encoderblock_0/MlpBlock_0/Dense_0/kernel', 1),
    num_heads=(f'encoderblock_0/{_ATTENTION}/query/kernel', 1))
# Names in the official code and in big_vision, and ours.
_PUBLISHED = (
    (r'Transformer/(posembed_input/)?', ''), (r'embedding/', 'stem/'),
    (r'(encoderblock_\d+)/LayerNorm_2/', r'\1/LayerNorm_1/'),
    (r'(encoderblock_\d+)/MlpBlock_3/', r'\1/MlpBlock_0/'),
    (r'(encoderblock_\d+)/MultiHeadDotProductAttention_1/',
     rf'\1/{_ATTENTION}/'))
_XAVIER = nn.initializers.xavier_uniform()


class EncoderBlock(nn.Module):
  """Self-attention, then an MLP, each after LayerNorm and with a skip
  (equations 2 and 3 of the paper).

  Attributes:
    num_heads: H.
    dropout_rate: of both branches' outputs, and of the MLP's hidden units.
    mlp_dim, approximate_gelu, dtype: see `blocks.MlpBlock`.
    platform: which the program is for, see `models.mixer.MlpMixer`.
  """
  num_heads: int
  mlp_dim: int
  dropout_rate: float = 0.0
  approximate_gelu: bool = True
  dtype: Any = jnp.float32
  platform: str | None = None

  @nn.compact
  def __call__(self, x_BTC: jax.Array, drop: blocks.Masks = blocks.NO_MASKS, *,
               train: bool) -> jax.Array:
    """Returns [B, T, C] for tokens [B, T, C].

    Args:
      x_BTC: tokens.
      drop: the masks of this block.
      train: whether there is a backward pass, which the products suit then.
    """
    y_BTC = nn.LayerNorm(dtype=self.dtype)(x_BTC)
    y_BTC = attention.attention(y_BTC, self.num_heads, self.dtype, _ATTENTION)
    y_BTC = drop.units(y_BTC, 'attention/output', self.dropout_rate)
    u_BTC = x_BTC + drop.path(y_BTC, 'attention')
    y_BTC = blocks.MlpBlock(
        self.mlp_dim, self.dropout_rate, self.approximate_gelu, self.dtype,
        _XAVIER, nn.initializers.normal(1e-6), name='MlpBlock_0')(
            nn.LayerNorm(dtype=self.dtype)(u_BTC), drop,
            forms=products.channel_mlp(self.platform, train=train))
    return u_BTC + drop.path(y_BTC, 'mlp')


class VisionTransformer(interface.Model):
  """The network of table 1; `mixer.models.create` makes it by its name.

  Attributes:
    patch_size: P, or (height, width) of a patch in pixels.
    hidden_dim: C.
    num_blocks: number of layers.
    channels_mlp_dim: hidden width of the MLPs.
    num_heads: H.
    pool: what the head sees: the class 'token', or the 'mean' of the patches,
      without a class token.
    representation_dim: width of a tanh layer before the head, which weights
      pre-trained on ImageNet-21k have; None for none.
    num_classes .. pixel_order: see `models.mixer.MlpMixer`. Dropout acts on the
      embedded patches too.
  """
  NAMES = ('ViT-S/16', 'ViT-B/32', 'ViT-B/16', 'ViT-L/32', 'ViT-L/16',
           'ViT-H/14')
  CHOICES = dict(remat=blocks.REMAT, platform=products.PLATFORMS,
                 pool=('token', 'mean'))
  SHARDING_RULES = (
      ('cls|pos_embedding', (None, None, 'fsdp')),
      ('(query|key|value)/kernel', ('fsdp', 'model', None)),
      ('(query|key|value)/bias', ('model', None)),
      ('out/kernel', ('model', None, 'fsdp')),
      ('MlpBlock_0/Dense_0/kernel', ('fsdp', 'model')),
      ('MlpBlock_0/Dense_1/kernel', (('model', 'fsdp'), None)),
      ('MlpBlock_0/Dense_0/bias', (('model', 'fsdp'),)),
      ('.*', ('fsdp',)),
  )
  OWN_PARAMETER = re.compile(r'encoderblock_(\d+)/.*')
  WIDTHS = (*_SCALED, 'patch_size', 'representation_dim', 'pixel_order')
  TAKEN_FROM_WEIGHTS = ('approximate_gelu', 'pool')

  patch_size: grid.Size
  hidden_dim: int
  num_blocks: int
  channels_mlp_dim: int
  num_heads: int
  pool: str = 'token'
  representation_dim: int | None = None
  num_classes: int | None = 1000
  head_bias: float = 0.0
  in_channels: int = 3
  dropout_rate: float = 0.0
  stochastic_depth: float = 0.0
  approximate_gelu: bool = True
  dtype: Any = jnp.float32
  remat: str | None = None
  scan: bool = False
  platform: str | None = None
  pixel_order: str | None = None

  def __post_init__(self) -> None:
    if self.hidden_dim % self.num_heads:
      raise errors.UserError(f'model.num_heads: {self.num_heads} does not '
                             f'divide hidden_dim, {self.hidden_dim}')
    super().__post_init__()

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool = False,
               rows: jax.Array | None = None) -> tuple[
                   jax.Array, dict[str, jax.Array]]:
    """Returns class logits, and every named intermediate.

    See `models.mixer.MlpMixer`; 'input_tokens' and 'block_{i}' are [B, T, C].
    """
    self.patches(images)
    rows_B = jnp.arange(images.shape[0]) if rows is None else rows
    x = blocks.patch_projection(self, self.ordered(images))
    out = {'stem': x}
    x_BTC = x.reshape(x.shape[0], -1, self.hidden_dim)
    if self.pool == 'token':
      cls = self.param('cls', nn.initializers.zeros, (1, 1, self.hidden_dim))
      x_BTC = jnp.concatenate([jnp.broadcast_to(
          cls.astype(x.dtype), (x.shape[0], 1, self.hidden_dim)), x_BTC], 1)
    place = self.param('pos_embedding', nn.initializers.normal(0.02),
                       (1, *x_BTC.shape[1:]))
    drop = blocks.draw_masks(self, rows_B) if train else blocks.NO_MASKS
    x_BTC = x_BTC + place.astype(x_BTC.dtype)
    if train:
      x_BTC = drop.of_block(0).units(x_BTC, 'embedded', self.dropout_rate)
    out['input_tokens'] = x_BTC
    make = lambda _, **where: EncoderBlock(
        self.num_heads, self.channels_mlp_dim, self.dropout_rate,
        self.approximate_gelu, self.dtype, self.platform, **where)
    x_BTC, outputs = blocks.run(
        self, make, x_BTC, drop, train=train, remat=self.remat, scan=self.scan,
        names=[f'encoderblock_{i}' for i in range(self.num_blocks)])
    out.update(outputs)
    x_BTC = nn.LayerNorm(dtype=self.dtype, name='encoder_norm')(x_BTC)
    x_BC = (x_BTC[:, 0].astype(jnp.float32) if self.pool == 'token'
            else jnp.mean(x_BTC, axis=1, dtype=jnp.float32))
    if self.representation_dim:
      x_BC = nn.tanh(nn.Dense(self.representation_dim, name='pre_logits')(x_BC))
    return blocks.classify(self, x_BC, out)

  @classmethod
  def settings(cls, name: str) -> dict[str, Any]:
    """See `interface.Model`; the patch size may be any, as in 'ViT-S/8'."""
    match = re.fullmatch(r'ViT-([A-Z])/(\d+)', name)
    if match is None or match[1] not in _SCALES:
      raise errors.unknown('model.name', name, cls.NAMES)
    return dict(zip(_SCALED, _SCALES[match[1]]), patch_size=int(match[2]))

  @classmethod
  def published(cls, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """See `interface.Model`: the official code's layout, or big_vision's."""
    out = interface.renamed(flat, _PUBLISHED)
    place = out.get('pos_embedding')
    if ('embedding/kernel' in flat and 'cls' in out and place is not None
        and grid.square(place.shape[1])):
      # big_vision adds no position to the class token; our own files do.
      out['pos_embedding'] = np.pad(place, ((0, 0), (1, 0), (0, 0)))
    return out

  @classmethod
  def infer(cls, shapes: interface.Shapes) -> 'VisionTransformer':
    """See `interface.Model`."""
    for (name, _), rank in zip(_WIDTHS.values(), (4, 2, 3)):
      if len(shapes.get(name, ())) != rank or 0 in shapes[name]:
        raise errors.UserError(f'this is not a Vision Transformer: {name!r} is '
                               f'{list(shapes.get(name, ())) or "missing"}')
    height, width, channels, _ = shapes['stem/kernel']
    settings: dict[str, Any] = dict(
        cls.widths(shapes), in_channels=channels,
        patch_size=height if height == width else (height, width),
        pool='token' if 'cls' in shapes else 'mean',
        representation_dim=(shapes.get('pre_logits/kernel') or (None,))[-1],
        num_classes=(shapes.get('head/kernel') or (0,))[-1])
    return cls(**settings)

  @classmethod
  def widths(cls, shapes: interface.Shapes) -> dict[str, int]:
    """See `interface.Model`."""
    numbers = [int(m[1]) for name in shapes
               if (m := cls.OWN_PARAMETER.fullmatch(name))]
    out = {key: shapes[name][axis] for key, (name, axis) in _WIDTHS.items()
           if shapes.get(name)}
    return dict(out, num_blocks=max(numbers, default=-1) + 1)

  @nn.nowrap
  def describe(self) -> dict[str, Any]:
    """See `interface.Model`."""
    letter = next((letter for letter, (_, hidden, *_) in _SCALES.items()
                   if hidden == self.hidden_dim), 'S')
    return dict(name=f'ViT-{letter}/{grid.pair(self.patch_size)[0]}',
                **{key: getattr(self, key) for key in _FUNCTION})

  @nn.nowrap
  def parameters(self, image_size: grid.Size) -> int:
    """Returns (P^2 c C + C) + T C + [C] + L [8C + 4C^2 + (2 C M + M + C)] + 2C
    + (R C + R) + (R K + K), for L blocks, an MLP of width M, a tanh layer of
    width R and K classes; [C] is the class token's."""
    c, m = self.hidden_dim, self.channels_mlp_dim
    r, token = self.representation_dim, self.pool == 'token'
    block = 4 * c + 4 * c * c + 4 * c + 2 * c * m + m + c
    return ((self._inputs() + 1) * c + (self._tokens(image_size) + token) * c
            + self.num_blocks * block + 2 * c + ((c + 1) * r if r else 0)
            + ((r or c) + 1) * (self.num_classes or 0))

  @nn.nowrap
  def layers(self, image_size: grid.Size) -> list[tuple[str, int]]:
    """Returns the terms of S P^2 c C + L (4 T C^2 + 2 T^2 C + 2 T C M) + R K.

    The products of queries with keys and of weights with values have no
    kernels; they count among those of the attention's kernels.
    """
    t, c = self._tokens(image_size), self.hidden_dim
    m, r = self.channels_mlp_dim, self.representation_dim
    block = (('LayerNorm_0', 0), (_ATTENTION, 4 * t * c * c + 2 * t * t * c),
             ('LayerNorm_1', 0), ('MlpBlock_0', 2 * t * c * m))
    s = grid.tokens(image_size, self.patch_size)
    return [('stem', s * self._inputs() * c),
            *((f'encoderblock_{i}/{name}', count)
              for i in range(self.num_blocks) for name, count in block),
            ('encoder_norm', 0), ('pre_logits', c * (r or 0)),
            ('head', (r or c) * (self.num_classes or 0))]

  def _inputs(self):
    return int(np.prod(grid.pair(self.patch_size))) * self.in_channels

  def _tokens(self, image_size):
    return grid.tokens(image_size, self.patch_size) + (self.pool == 'token')

  @nn.nowrap
  def tokens(self, params: interface.Params) -> int | None:
    """See `interface.Model`."""
    return params['pos_embedding'].shape[1] - (self.pool == 'token')

  @nn.nowrap
  def resized(self, params: interface.Params, old: tuple[int, int],
              new: tuple[int, int], method: str) -> tuple[
                  'VisionTransformer', interface.Params]:
    """Returns the network whose position embedding is interpolated linearly
    between the corners of the grid, as in the official code, by any method."""
    del method
    place = params['pos_embedding']
    count = place.shape[1] - old[0] * old[1]   # the class token's
    between = lambda old, new: np.stack([
        np.interp(np.linspace(0, old - 1, new), np.arange(old), row)
        for row in np.eye(old)], axis=1)
    grown = np.einsum(
        'Yy,Xx,yxC->YXC', between(old[0], new[0]), between(old[1], new[1]),
        place[0, count:].reshape(*old, -1))
    return self, dict(params, pos_embedding=np.concatenate(
        [place[:, :count], grown.reshape(1, -1, place.shape[2])],
        axis=1).astype(place.dtype))
