"""Parameter trees by name: 'MixerBlock_0/token_mixing/Dense_0/kernel'."""
from collections.abc import Mapping
import re
from typing import Any
from typing import TypeAlias

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from mixer.core import errors

# Nested dicts with arrays, or what describes an array, as leaves.
Tree: TypeAlias = Mapping[str, Any]


def flatten(tree: Tree) -> dict[str, Any]:
  """Returns a flat dict of a nested one, with keys joined by '/'."""
  return traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat: Tree) -> dict[str, Any]:
  """Returns a nested dict of a flat one; the inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep='/')


def compiled(key: str, pattern: str) -> re.Pattern[str]:
  """Returns a pattern for names; a UserError names the `key` of a wrong one."""
  try:
    return re.compile(pattern)
  except re.error as e:
    raise errors.UserError(
        f'{key}: {pattern!r} is not a regular expression: {e}') from e


def matches(tree: Tree, pattern: str) -> dict[str, Any]:
  """Returns a tree of bools: whether a leaf's whole name matches `pattern`."""
  return unflatten({name: re.fullmatch(pattern, name) is not None
                    for name in flatten(tree)})


def count(tree: Any) -> int:
  """Returns the number of elements in all leaves of a JAX tree."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def digest(tree: Any) -> np.ndarray:
  """Returns a checksum of every leaf's bits, the same on any device mesh.

  Each element is hashed together with its position, so that swapped elements
  change the checksum. Integer sums are exact, so the order in which devices add
  the hashes does not change it.

  Args:
    tree: a JAX tree of arrays with elements of 1, 2 or 4 bytes.

  Returns:
    uint32 [leaves].
  """
  leaves = jax.tree.leaves(tree)
  mesh = getattr(getattr(leaves[0], 'sharding', None), 'mesh', None)
  everywhere = mesh and jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec())
  # Equal shapes share a program. Sums of two on CPU devices at once can hang.
  one = jax.jit(_leaf_digest, out_shardings=everywhere)
  return np.array([jax.device_get(one(x)) for x in leaves], np.uint32)


def _leaf_digest(x: jax.Array) -> jax.Array:
  x = jnp.asarray(x)
  if x.dtype == jnp.bool_:
    bits = x.astype(jnp.uint32)
  else:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
  position = jnp.zeros(x.shape, jnp.uint32)
  for axis in range(x.ndim):
    position = (position * jnp.uint32(0x9E3779B1) +
                jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis))
  # The multipliers are those of MurmurHash3 and xxHash.
  mixed = bits ^ (position * jnp.uint32(0x85EBCA6B) + jnp.uint32(1))
  mixed = mixed * jnp.uint32(0xC2B2AE35)
  mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x27D4EB2F)
  return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
