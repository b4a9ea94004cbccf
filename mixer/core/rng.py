"""Named random streams: every draw is a function of (seed, stream, step).

Nothing random is carried along or saved, so a resumed run draws what the
unbroken one would have drawn.
"""
import zlib

import jax

from mixer.core.errors import UserError


def stream(seed, name):
  """The key of the stream `name` of a run.

  Args:
    seed: the run's seed, an int in [0, 2**31).
    name: of the stream, such as 'init', 'augment' or 'dropout'.

  Returns:
    A typed PRNG key; fold a step, or an epoch and an index, into it.
  """
  if not 0 <= seed < 2**31:
    raise UserError(f'run.seed: expected 0 <= seed < 2**31, got {seed}')
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def of_examples(key, epoch, index):
  """One key an example, from `epoch` and `index`, both int32 [B]."""
  def one(e, i):
    return jax.random.fold_in(jax.random.fold_in(key, e), i)
  return jax.vmap(one)(epoch, index)
