"""Ways of mixing tokens: one table, with the cost of each beside it.

A way of mixing is a function, called inside `MixerBlock.__call__`. It gets the
block for its settings (`tokens_mlp_dim`, `dtype`, `platform`, `grid`,
`number`, ...), the normalised tokens and the masks of the step. A module that
it makes with name='token_mixing' holds its parameters.

The paper's variants (appendix A.1) are in this file, other people's ways in
`models.token_mixing_relatives`. The paper leaves some choices open; each
docstring says what is chosen here.

Axes, in the paper's letters: B batch, S tokens, C channels, D_S hidden width, G
groups or views.
"""
import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.core import errors
from mixer.models import blocks
from mixer.models import products
from mixer.models import tied_mixing
from mixer.models import token_mixing_relatives as relatives
from mixer.models import token_mixing_resize as resize
from mixer.models.tied_mixing import Mixing
from mixer.models.tied_mixing import Params
from mixer.models.tied_mixing import Shapes
from mixer.models.tied_mixing import TokenMixing


class SeparateDense(nn.Module):
  """One dense layer for each channel: x [B, C, I] -> [B, C, features]."""
  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BCI: jax.Array) -> jax.Array:
    channels, inputs = x_BCI.shape[1:]
    kernel_CIO = self.param(
        'kernel', nn.initializers.lecun_normal(batch_axis=(0,)),
        (channels, inputs, self.features))
    bias_CO = self.param('bias', nn.initializers.zeros,
                         (channels, self.features))
    x_BCI, kernel_CIO, bias_CO = nn.dtypes.promote_dtype(
        x_BCI, kernel_CIO, bias_CO, dtype=self.dtype)
    return jnp.einsum('bci,cio->bco', x_BCI, kernel_CIO) + bias_CO[None]


class SeparateMlps(nn.Module):
  """The paper's token MLP, with weights of their own for each channel."""
  mlp_dim: int
  dropout_rate: float
  approximate_gelu: bool
  dtype: Any

  @nn.compact
  def __call__(self, x_BCS: jax.Array, drop: blocks.Masks) -> jax.Array:
    """Returns [B, C, S] for x [B, C, S]."""
    h_BCD = SeparateDense(self.mlp_dim, self.dtype)(x_BCS)
    h_BCD = nn.gelu(h_BCD, approximate=self.approximate_gelu)
    h_BCD = drop.units(h_BCD, f'{self.name}/hidden', self.dropout_rate)
    y_BCS = SeparateDense(x_BCS.shape[-1], self.dtype)(h_BCD)
    return drop.units(y_BCS, f'{self.name}/output', self.dropout_rate)


def untied(block: nn.Module, x_BSC: jax.Array, drop: blocks.Masks, *,
           train: bool) -> jax.Array:
  """Mixes the tokens of each channel by an MLP of its own.

  That is C times the parameters of the paper's MLP, and as many multiply-adds.
  """
  del train   # a product for each channel has one form
  mlps = SeparateMlps(block.tokens_mlp_dim, block.dropout_rate,
                      block.approximate_gelu, block.dtype, name='token_mixing')
  return jnp.swapaxes(mlps(jnp.swapaxes(x_BSC, 1, 2), drop), 1, 2)


class GroupedMlp(nn.Module):
  """Holds the MLP of `grouped` under a name with G, which no shape shows."""
  number: int
  mlp: dict[str, Any]

  @nn.compact
  def __call__(self, *args: Any, **more: Any) -> jax.Array:
    """Returns what the MLP does."""
    return blocks.MlpBlock(**self.mlp, name=f'groups_{self.number}')(
        *args, **more)


def grouped(block: nn.Module, x_BSC: jax.Array, drop: blocks.Masks, *,
            train: bool) -> jax.Array:
  """Mixes the tokens of G neighbouring channels together ('grouped:G').

  The columns of G channels, one after the other, make a vector of G S numbers.
  One MLP, shared by the C / G vectors, maps each to as many. The paper names
  no G and no hidden width: G is 2 by default, and the width stays D_S, so
  there are as many multiply-adds as in the paper's MLP, and about G times the
  parameters. With G = 1 this is the paper's MLP, bit for bit, under its names.
  """
  batch, tokens, channels = x_BSC.shape
  groups = block.number
  x = x_BSC.reshape(batch, tokens, channels // groups, groups)
  x = x.transpose(0, 2, 3, 1).reshape(batch, channels // groups, -1)
  mlp = dict(mlp_dim=block.tokens_mlp_dim, dropout_rate=block.dropout_rate,
             approximate_gelu=block.approximate_gelu, dtype=block.dtype)
  module = (GroupedMlp(groups, mlp, name='token_mixing') if groups > 1 else
            blocks.MlpBlock(**mlp, name='token_mixing'))
  y = module(x, drop, forms=products.token_mlp(block.platform, train=train))
  y = y.reshape(batch, channels // groups, groups, tokens)
  return y.transpose(0, 3, 1, 2).reshape(x_BSC.shape)


class Views(nn.Module):
  """G learned views of each token, an MLP over all of them, and a map back."""
  number: int
  mlp_dim: int
  dropout_rate: float
  approximate_gelu: bool
  dtype: Any
  platform: str | None

  @nn.compact
  def __call__(self, x_BSC: jax.Array, drop: blocks.Masks,
               train: bool) -> jax.Array:
    """Returns [B, S, C] for tokens [B, S, C]."""
    batch, tokens, channels = x_BSC.shape
    width = channels // self.number
    x = nn.DenseGeneral((self.number, width), use_bias=False, dtype=self.dtype,
                        name='maps')(x_BSC)
    x = x.transpose(0, 3, 2, 1).reshape(batch, width, -1)
    y = blocks.MlpBlock(
        self.mlp_dim, self.dropout_rate, self.approximate_gelu, self.dtype,
        name='mlp')(
            x, drop, forms=products.token_mlp(self.platform, train=train))
    y = y.reshape(batch, width, self.number, tokens).transpose(0, 3, 2, 1)
    return nn.DenseGeneral(channels, axis=(-2, -1), use_bias=False,
                           dtype=self.dtype, name='back')(y)


def views(block: nn.Module, x_BSC: jax.Array, drop: blocks.Masks, *,
          train: bool) -> jax.Array:
  """Mixes G learned views of the tokens together ('views:G').

  G linear maps R^C -> R^(C/G) make S G shorter tokens of S, which one MLP
  mixes, shared by the C / G channels. The paper leaves the rest open. Here one
  more linear map R^C -> R^C takes the G results of a token back to C channels;
  no map has a bias; G is 2 by default; the hidden width stays D_S. With G = 1
  and both maps the identity, this is the paper's MLP, to float32 rounding.
  """
  return Views(block.number, block.tokens_mlp_dim, block.dropout_rate,
               block.approximate_gelu, block.dtype, block.platform,
               name='token_mixing')(x_BSC, drop, train)


def pyramid(block: nn.Module, x_BSC: jax.Array, drop: blocks.Masks, *,
            train: bool) -> jax.Array:
  """Returns fewer tokens, S' of S, from the second layer ('pyramid:n').

  The paper leaves the rest open. Here S falls once, in the middle block, number
  L // 2 from 0 of L, and the other blocks are the paper's, those after it on S'
  tokens. Each side of the grid of patches is divided by n, by default 2, and
  rounded up. D_S is the same in all blocks. The skip path of the middle block
  holds means over n x n patches, see `covered`. With n = 1 this is the paper's
  MLP, bit for bit.
  """
  after = Mixing('pyramid', block.grid, 0, 0, block.number).after
  mlp = blocks.MlpBlock(
      block.tokens_mlp_dim, block.dropout_rate, block.approximate_gelu,
      block.dtype, out_dim=after.s, name='token_mixing')
  y_BCS = mlp(jnp.swapaxes(x_BSC, 1, 2), drop,
              forms=products.token_mlp(block.platform, train=train))
  return jnp.swapaxes(y_BCS, 1, 2)


def covered(block: nn.Module, x_BSC: jax.Array) -> jax.Array:
  """Returns [B, S', C], the means of tokens over n x n patches of the grid; at
  the edges over as many as there are."""
  return relatives.mean_pool(x_BSC, block.grid, block.number, block.number)


def checked(setting: str, channels: int, scan: bool) -> str:
  """Returns `model.token_mixing` with its number, as in 'grouped:2'.

  Args:
    setting: such as 'affine', 'grouped' or 'grouped:4'.
    channels: C.
    scan: whether training scans over the blocks.

  Raises:
    UserError: if there is no such way, or the number is wrong, or its blocks
      differ and cannot be scanned.
  """
  name, colon, number = str(setting).partition(':')
  row = TABLE.get(name)
  if row is None:
    raise errors.unknown('model.token_mixing', setting, TABLE)
  if scan and row.shrink:
    raise errors.UserError(f'model.scan: the blocks of token_mixing={setting} '
                           'are not equal; set model.scan=False')
  if row.number is None:
    if colon:
      raise errors.UserError(f'model.token_mixing: {setting!r}: {name} takes '
                             f'no number; expected {name!r}')
    return name
  n = number if colon else str(row.number(channels))
  if not re.fullmatch('[1-9][0-9]{0,5}', n) or (
      row.divides and channels % int(n)):
    divisor = f' that divides hidden_dim, {channels},' * row.divides
    raise errors.UserError(
        f'model.token_mixing: {name}:{n}: expected a positive integer'
        f'{divisor} after {name!r} and a colon, such as {name}:1')
  return f'{name}:{n}'


def _shown_grouped(shapes: Shapes) -> dict[str, int]:
  name, = {name.partition('/')[0] for name in shapes}
  return dict(n=int(name.removeprefix('groups_')),
              d=shapes[f'{name}/Dense_0/kernel'][1])


def _tokens(mlp: Params) -> int:
  return mlp['Dense_0']['kernel'].shape[0]


def _products(z: Mixing) -> int:
  """Returns the multiply-adds of the paper's MLP."""
  return 2 * z.c * z.s * z.d


def _grouped_tokens(params: Params) -> int:
  if 'Dense_0' in params:   # a group of one
    return _tokens(params)
  (name, mlp), = params.items()
  return _tokens(mlp) // int(name.rpartition('_')[2])


# The paper's way, then its variants, then those of others.
TABLE: dict[str, TokenMixing] = {
    'tied': dataclasses.replace(
        tied_mixing.TIED, shown=lambda p: dict(d=p['Dense_0/kernel'][1]),
        resize=dict(block=resize.mlp_in_blocks, resample=resize.mlp_resampled)),
    'untied': TokenMixing(
        untied, parameters=lambda z: z.c * (2 * z.s * z.d + z.d + z.s),
        multiply_adds=_products,
        shown=lambda p: dict(d=p['SeparateDense_0/kernel'][2]),
        tokens=lambda p: p['SeparateDense_0']['kernel'].shape[1]),
    'grouped': TokenMixing(
        grouped, number=lambda c: 2, divides=True,
        parameters=lambda z: 2 * z.n * z.s * z.d + z.d + z.n * z.s,
        multiply_adds=_products, tokens=_grouped_tokens, shown=_shown_grouped),
    'views': TokenMixing(
        views, number=lambda c: 2, divides=True, parameters=lambda z: (
            2 * z.c**2 + 2 * z.n * z.s * z.d + z.d + z.n * z.s),
        multiply_adds=lambda z: dict(maps=z.s * z.c**2, mlp=_products(z),
                                     back=z.s * z.c**2),
        tokens=lambda p: (p['mlp']['Dense_0']['kernel'].shape[0]
                          // p['maps']['kernel'].shape[1]),
        shown=lambda p: dict(n=p['maps/kernel'][1],
                             d=p['mlp/Dense_0/kernel'][1])),
    'pyramid': TokenMixing(
        pyramid, number=lambda c: 2, shrink=covered,
        parameters=lambda z: (z.s + z.after.s + 1) * z.d + z.after.s,
        multiply_adds=lambda z: z.c * z.d * (z.s + z.after.s),
        tokens=_tokens),
    **relatives.TABLE,
}
