"""Parameter trees by name: 'MixerBlock_0/token_mixing/Dense_0/kernel'."""
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np


def flatten(tree):
  """A nested dict as a flat one whose keys are joined by '/'."""
  return traverse_util.flatten_dict(tree, sep='/')


def unflatten(flat):
  """The inverse of `flatten`."""
  return traverse_util.unflatten_dict(flat, sep='/')


def matches(tree, pattern):
  """A tree of bools: does the whole name of a leaf match `pattern`?"""
  return unflatten({name: re.fullmatch(pattern, name) is not None
                    for name in flatten(tree)})


def count(tree):
  """The number of elements of all leaves."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def digest(tree):
  """A fingerprint of every leaf's bits, the same on any mesh: uint32 [leaves].

  Integer sums commute exactly, so the order in which devices add does not
  matter; each element is mixed with its position, so swaps are seen too.
  """
  leaves = jax.tree.leaves(tree)
  mesh = getattr(getattr(leaves[0], 'sharding', None), 'mesh', None)
  everywhere = mesh and jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec())
  return jax.jit(_digests, out_shardings=everywhere)(leaves)


def _digests(leaves):
  return jnp.stack([_leaf_digest(x) for x in leaves])


def _leaf_digest(x):
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
  mixed = bits ^ (position * jnp.uint32(0x85EBCA6B) + jnp.uint32(1))
  mixed = mixed * jnp.uint32(0xC2B2AE35)
  mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(0x27D4EB2F)
  return jnp.sum(mixed ^ (mixed >> 13), dtype=jnp.uint32)
