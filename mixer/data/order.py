"""The order of examples as arithmetic: batch t is a function of (seed, t).

A Feistel network with cycle walking permutes [0, N) without storing anything,
so any process can compute any part of any batch at once. It runs in NumPy on
the host, because jax without x64 truncates uint64. The index shuffles of
TensorFlow and Grain lose an index at some sizes (at 65,537, for one), and their
four rounds are measurably uneven; six rounds of splitmix64 show no unevenness
in the same tests (tests/test_order.py).
"""
from collections.abc import Callable

import numpy as np

# (seed, step, batch size, number of examples, slots) -> (epoch, position)
Draw = Callable[..., tuple[np.ndarray, np.ndarray]]

VERSION = 1  # part of the data's fingerprint: a changed order cannot resume
_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(*words: int) -> int:
  """Returns a 64-bit key of ints.

  key(a, b) and key(a + 1, b - 1) are unrelated.
  """
  k = np.uint64(0x243F6A8885A308D3)
  with np.errstate(over='ignore'):
    for word in words:
      k = _mix(k ^ _mix(np.uint64(int(word) % 2**64) + _GOLDEN))
  return int(k)


def keys(seed: int, epoch: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Returns the keys for the randomness of examples on the host.

  Args:
    seed: of the run.
    epoch: int [n].
    index: int [n], record numbers.

  Returns:
    int32 [n, 2].
  """
  return mixed(seed, 2, epoch, index).view(np.int32).reshape(-1, 2)


def mixed(seed: int, stream: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns keys for `permute`, one for each pair of numbers: uint64 [n].

  Args:
    seed: of the run.
    stream: what the keys are for.
    a, b: int [n].
  """
  with np.errstate(over='ignore'):
    k = _mix(np.uint64(key(seed, stream)) ^ _mix(np.asarray(a, np.uint64)))
    return _mix(k ^ _mix(np.asarray(b, np.uint64) + _GOLDEN))


def permute(i: np.ndarray, n: int | np.ndarray,
            k: int | np.ndarray) -> np.ndarray:
  """Returns where the permutation with key `k` of [0, n) sends indices: int64.

  Args:
    i: indices in [0, n).
    n: how many there are; for all indices or, if `k` is too, for each.
    k: from `key` or `mixed`.
  """
  i, n, k = (np.asarray(x, np.uint64) for x in (i, n, k))
  bits = np.frexp((n - np.uint64(1)).astype(np.float64))[1]   # of n - 1
  half = ((np.maximum(2, bits) + 1) // 2).astype(np.uint64)
  mask = (np.uint64(1) << half) - np.uint64(1)
  with np.errstate(over='ignore'):
    rounds = [_mix(k + np.uint64(r) * _GOLDEN) for r in range(1, _ROUNDS + 1)]

    def once(v, half, mask, *rounds):
      left, right = v >> half, v & mask
      for r in rounds:
        left, right = right, left ^ (_mix(right ^ r) & mask)
      return (left << half) | right

    out = once(i, half, mask, *rounds)
    outside = out >= n
    while outside.any():
      out[outside] = once(out[outside], *(
          x[outside] if x.ndim else x for x in (half, mask, *rounds)))
      outside = out >= n
  return out.astype(np.int64)


def batch(seed: int, step: int, batch_size: int, num_examples: int,
          slots: tuple[int, int] | None = None
          ) -> tuple[np.ndarray, np.ndarray]:
  """Returns the examples of batch `step`.

  Every epoch visits each example once; a batch may span two epochs.

  Args:
    seed: of the run.
    step: number of the batch, from 0.
    batch_size: of the global batch.
    num_examples: N.
    slots: (first, last + 1) row of the global batch; all rows by default.

  Returns:
    (epoch, position), int64 arrays with one entry for each row; positions are
    in [0, N).
  """
  lo, hi = slots or (0, batch_size)
  count = np.arange(step * batch_size + lo, step * batch_size + hi)
  epoch, place = count // num_examples, count % num_examples
  position = np.empty_like(place)
  for e in np.unique(epoch):
    here = epoch == e
    position[here] = permute(place[here], num_examples, key(seed, 1, e))
  return epoch, position


def _mix(x):
  """The finaliser of splitmix64."""
  x = np.asarray(x).astype(np.uint64)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
