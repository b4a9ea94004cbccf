"""The order of a set that is read in sequence: random shards, random windows.

A bucket is fast only at long reads. So the shards of an epoch are put into a
random order, and their records, one after the other, are divided among R
readers. Each reader permutes what it reads in windows of W examples. Every
batch takes the same number of examples from each reader, ordered by reader. All
of it is a function of (seed, step) and is the same for any number of processes
that divides R. An epoch leaves out N mod R examples, a different set each time.
"""
import bisect
import dataclasses

import numpy as np

from mixer.core import errors
from mixer.data import order
from mixer.data import splits

MOST_READERS = 64


@dataclasses.dataclass(frozen=True)
class Windows:
  """Which positions each reader reads, and when.

  Attributes:
    runs: int64 [n, 2], ranges [first, last) of positions of a split. Each lies
      in one shard; together they cover the split.
    readers: R.
    window: W, in examples.
    seed: of the run.
  """
  runs: np.ndarray
  readers: int
  window: int
  seed: int

  @property
  def share(self) -> int:
    """The number of examples that a reader reads in an epoch."""
    return int(np.diff(self.runs).sum()) // self.readers

  def at(self, count: int) -> tuple[int, int]:
    """Returns (number of the window, place in it) of a reader's n-th example.

    Args:
      count: n, from 0, over all epochs.
    """
    epoch, place = divmod(count, self.share)
    number, offset = divmod(place, self.window)
    return epoch * -(-self.share // self.window) + number, offset

  def read(self, reader: int, number: int
           ) -> tuple[int, list[tuple[int, int]], np.ndarray]:
    """Returns what a window of a reader holds.

    Args:
      reader: 0 to R - 1.
      number: of the window, from 0, over all epochs.

    Returns:
      (epoch, [(first, last), ...], permutation): the positions of the split in
      the order in which to read them, and which of them comes at each place of
      the window.
    """
    epoch, w = divmod(number, -(-self.share // self.window))
    count = min(self.window, self.share - w * self.window)
    key = lambda stream, *more: order.key(self.seed, stream, epoch, *more)
    n = len(self.runs)
    runs = self.runs[order.permute(np.arange(n), n, key(4))]
    ends = np.cumsum(runs[:, 1] - runs[:, 0])
    # The sequence is a circle that starts at a random record.
    begin = key(5) % int(ends[-1]) + reader * self.share + w * self.window
    parts, missing = [], count
    while missing:
      begin %= int(ends[-1])
      run = np.searchsorted(ends, begin, side='right')
      take = min(missing, int(ends[run]) - begin)
      last = int(runs[run, 1] - (ends[run] - begin)) + take
      parts.append((last - take, last))
      begin, missing = begin + take, missing - take
    return epoch, parts, order.permute(
        np.arange(count), count, key(6, reader, w))


def runs_of(split: splits.Split, ends: np.ndarray) -> np.ndarray:
  """Returns the positions of a split, cut where a shard ends: int64 [n, 2].

  Args:
    split: of a source.
    ends: int64 [shards], the record number after each shard's last record.
  """
  out, before = [], 0
  for piece in split.pieces:
    count = piece.stop - piece.start
    record = lambda p, piece=piece: int(piece.records(np.int64(p)))
    at = 0
    while at < count:
      shard = np.searchsorted(ends, record(at), side='right')
      last = bisect.bisect_left(
          range(count), int(ends[shard]), lo=at + 1, key=record)
      out.append((before + at, before + last))
      at = last
    before += count
  return np.array(out, np.int64)


def readers_for(batch_size: int, examples: int) -> int:
  """Returns R, the largest divisor of the batch size that is allowed.

  R is at most 64 and at most the number of examples.
  """
  return max(r for r in range(1, min(MOST_READERS, examples, batch_size) + 1)
             if batch_size % r == 0)


def check(batch_size: int, examples: int, share: int) -> None:
  """Raises a UserError if the processes cannot share the readers.

  Args:
    batch_size: of the global batch.
    examples: N.
    share: how many rows of the global batch each process reads.
  """
  readers = readers_for(batch_size, examples)
  if share % (batch_size // readers):
    raise errors.UserError(
        f'run.batch_size: a batch of {batch_size} from {examples} examples is '
        f'read in sequence by {readers} readers, which do not divide among '
        f'{batch_size // share} processes; choose a batch size with a larger '
        'power of two, or set data.access=random')
