"""Multi-head self-attention, of ViT and of a Mixer that mixes tokens by it.

Axes: B batch, T tokens, C channels, H heads.
"""
from typing import Any

import flax.linen as nn
import jax


def attention(x_BTC: jax.Array, num_heads: int, dtype: Any,
              name: str) -> jax.Array:
  """Returns [B, T, C], multi-head self-attention of tokens [B, T, C].

  Args:
    x_BTC: tokens.
    num_heads: H.
    dtype: of the computation.
    name: of the module that holds the parameters, inside a flax `__call__`.
  """
  return nn.MultiHeadDotProductAttention(
      num_heads, dtype=dtype, deterministic=True, name=name,
      kernel_init=nn.initializers.xavier_uniform())(x_BTC, x_BTC)
