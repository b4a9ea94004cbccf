"""Named random streams: every draw is a function of (seed, stream, step).

No random state is carried along or saved, so a resumed run draws the same
numbers as a run that was never stopped.
"""
import zlib

import jax

from mixer.core import errors


def check_seed(seed: int) -> None:
  """Raises a UserError if `run.seed` is out of range."""
  if not 0 <= seed < 2**31:
    raise errors.UserError(f'run.seed: expected 0 <= seed < 2**31, got {seed}')


def stream(seed: int, name: str) -> jax.Array:
  """Returns the key of a run's stream `name`.

  Args:
    seed: the run's seed, in [0, 2**31).
    name: such as 'init', 'augment' or 'dropout'.

  Returns:
    A typed PRNG key. Fold the step into it, or the epoch and the example's
    index, before drawing.

  Raises:
    UserError: if the seed is out of range.
  """
  check_seed(seed)
  return jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))


def of_examples(key: jax.Array, epoch: jax.Array,
                index: jax.Array) -> jax.Array:
  """Returns one key for each example of a batch.

  Args:
    key: of a stream.
    epoch, index: int32 [B]. The same example of the same epoch gets the same
      key in every batch.

  Returns:
    Typed PRNG keys [B].
  """
  def one(e, i):
    return jax.random.fold_in(jax.random.fold_in(key, e), i)
  return jax.vmap(one)(epoch, index)
