"""Ways of mixing tokens that people compare with the Mixer's.

Each takes the place of the token MLP in a Mixer block, between LayerNorm and
the skip; the rest of the network stays a Mixer. See `models.token_mixing`.

Axes, in the paper's letters: B batch, S tokens, C channels, D_S hidden width.
"""
from collections.abc import Callable
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mixer.models import attention as multi_head
from mixer.models import blocks
from mixer.models import products
from mixer.models import token_mixing_resize as resize
from mixer.models.tied_mixing import Grid
from mixer.models.tied_mixing import Params
from mixer.models.tied_mixing import TokenMixing


def affine(block: nn.Module, x_BSC: jax.Array, drop: blocks.Masks, *,
           train: bool) -> jax.Array:
  """Mixes tokens by one S x S matrix and a bias, shared by all channels
  (ResMLP, https://arxiv.org/abs/2105.03404)."""
  del drop   # dropout belongs to MLPs
  dense = nn.Dense(
      x_BSC.shape[1], dtype=block.dtype, name='token_mixing',
      dot_general=products.over_tokens(block.platform, train=train))
  return jnp.swapaxes(dense(jnp.swapaxes(x_BSC, 1, 2)), 1, 2)


class SpatialGating(nn.Module):
  """gMLP's block without its LayerNorm and skip."""
  dim: int
  approximate_gelu: bool
  dtype: Any
  platform: str | None

  @nn.compact
  def __call__(self, x_BSC: jax.Array, train: bool) -> jax.Array:
    """Returns [B, S, C] for tokens [B, S, C]."""
    over_channels = products.dense(train=train)
    z = nn.Dense(2 * self.dim, dtype=self.dtype, dot_general=over_channels,
                 name='expand')(x_BSC)
    kept, gate = jnp.split(nn.gelu(z, approximate=self.approximate_gelu), 2, -1)
    gate = nn.LayerNorm(dtype=self.dtype, name='norm')(gate)
    gate = nn.Dense(
        x_BSC.shape[1], dtype=self.dtype, name='tokens',
        kernel_init=nn.initializers.normal(1e-6),
        bias_init=nn.initializers.ones,
        dot_general=products.over_tokens(self.platform, train=train))(
            jnp.swapaxes(gate, 1, 2))
    return nn.Dense(x_BSC.shape[-1], dtype=self.dtype, name='contract',
                    dot_general=over_channels)(
                        kept * jnp.swapaxes(gate, 1, 2))


def gating(block: nn.Module, x_BSC: jax.Array, drop: blocks.Masks, *,
           train: bool) -> jax.Array:
  """Mixes tokens by gMLP's spatial gating unit
  (https://arxiv.org/abs/2105.08050, section 2.1).

      Z = gelu(X U),  [Z1, Z2] = Z,  Y = (Z1 * (W LayerNorm(Z2) + b)) V

  W is S x S and works on tokens; it starts near zero and b at one, so the unit
  first lets Z1 through. U and V work on channels. Z1 and Z2 have D_S channels
  each here.
  """
  del drop   # gMLP has no dropout
  return SpatialGating(
      block.tokens_mlp_dim, block.approximate_gelu, block.dtype, block.platform,
      name='token_mixing')(x_BSC, train)


def attention(block: nn.Module, x_BSC: jax.Array, drop: blocks.Masks, *,
              train: bool) -> jax.Array:
  """Mixes tokens by the multi-head self-attention of ViT ('attention:H').

  H heads are as many as give each 64 channels, as in ViT, or the largest
  divisor of C that divides that number. There is no position embedding, so the
  network does not see the order of the patches.
  """
  del train
  y_BSC = multi_head.attention(x_BSC, block.number, block.dtype, 'token_mixing')
  return drop.units(y_BSC, 'token_mixing/output', block.dropout_rate)


def mean_pool(x_BSC: jax.Array, grid: Grid, size: int,
              stride: int) -> jax.Array:
  """Returns means of tokens over squares of the grid, without its outside.

  Args:
    x_BSC: tokens.
    grid: rows and columns of patches.
    size: side of a square in patches.
    stride: patches from one square to the next.
  """
  x = x_BSC.reshape(x_BSC.shape[0], *grid, x_BSC.shape[-1])
  # By name, as jax2onnx needs it. The mean of bfloat16 is float32.
  mean = nn.avg_pool(x, window_shape=(size, size), strides=(stride, stride),
                     padding='SAME', count_include_pad=False)
  # Not len(), which jax2onnx cannot trace for a batch of any size.
  return mean.reshape(x.shape[0], -1, x.shape[-1]).astype(x.dtype)


def pooling(block: nn.Module, x_BSC: jax.Array, drop: blocks.Masks, *,
            train: bool) -> jax.Array:
  """Returns the mean over the 3 x 3 neighbours of each token, minus the token
  (PoolFormer, https://arxiv.org/abs/2111.11418).

  At the edges of the grid the mean is over the neighbours that there are.
  Nothing is learned.
  """
  del drop, train
  return mean_pool(x_BSC, block.grid, 3, 1) - x_BSC


def none(block: nn.Module, x_BSC: jax.Array, drop: blocks.Masks, *,
         train: bool) -> jax.Array:
  """Returns the tokens as they are: nothing mixes them but the mean before the
  head (the identity of MetaFormer, https://arxiv.org/abs/2210.13452)."""
  del block, drop, train
  return x_BSC


def _of_gate(change: Callable[[Params, Grid, Grid], Params]
             ) -> Callable[[Params, Grid, Grid], Params]:
  return lambda params, old, new: dict(
      params, tokens=change(params['tokens'], old, new))


TABLE = {
    'affine': TokenMixing(
        affine, parameters=lambda z: z.s**2 + z.s,
        multiply_adds=lambda z: z.c * z.s**2,
        tokens=lambda p: p['kernel'].shape[0],
        shown=lambda p: dict(s=p['kernel'][0]),
        resize=dict(block=resize.linear_in_blocks,
                    resample=resize.linear_resampled)),
    'gating': TokenMixing(
        gating, parameters=lambda z: (
            (z.c + 1) * 2 * z.d + 2 * z.d + z.s**2 + z.s + (z.d + 1) * z.c),
        multiply_adds=lambda z: dict(
            expand=2 * z.s * z.c * z.d, norm=0, tokens=z.d * z.s**2,
            contract=z.s * z.c * z.d),
        tokens=lambda p: p['tokens']['kernel'].shape[0],
        shown=lambda p: dict(d=p['expand/kernel'][1] // 2),
        resize=dict(block=_of_gate(resize.linear_in_blocks),
                    resample=_of_gate(resize.linear_resampled))),
    'attention': TokenMixing(
        attention, number=lambda c: math.gcd(c, max(c // 64, 1)), divides=True,
        parameters=lambda z: 4 * z.c**2 + 4 * z.c,
        multiply_adds=lambda z: 4 * z.s * z.c**2 + 2 * z.s**2 * z.c,
        shown=lambda p: dict(n=p['query/kernel'][1])),
    'pooling': TokenMixing(
        pooling, parameters=lambda z: 0, multiply_adds=lambda z: 0),
    'none': TokenMixing(
        none, parameters=lambda z: 0, multiply_adds=lambda z: 0),
}
