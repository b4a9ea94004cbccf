"""The order of a set that is read in sequence: keyed shards, keyed windows.

A bucket is fast at long reads only. So the shards of an epoch are put into a
keyed order, their records, one after the other, are shared out to R canonical
readers, and each reader permutes what it reads in windows of W. Every batch
takes as many examples from each reader, ordered by reader; all of it is a
function of (seed, step), for any number of processes that divides R. N mod R
examples are left out of an epoch, others in every one.
"""
import bisect
import dataclasses

import numpy as np

from mixer.data import order

MOST_READERS = 64


@dataclasses.dataclass(frozen=True)
class Windows:
  """Who reads what, when.

  Attributes:
    runs: int64 [n, 2], positions [first, last) of a split that lie in one
      shard each; together all of them.
    readers: R.
    window: W, in examples.
    seed: of the run.
  """
  runs: np.ndarray
  readers: int
  window: int
  seed: int

  @property
  def share(self):
    """Examples of one epoch and reader."""
    return int(np.diff(self.runs).sum()) // self.readers

  def at(self, count):
    """(number of the window, place in it) of a reader's example `count`."""
    epoch, place = divmod(count, self.share)
    number, offset = divmod(place, self.window)
    return epoch * -(-self.share // self.window) + number, offset

  def read(self, reader, number):
    """What a reader's window holds.

    Returns:
      (epoch, [(first, last), ...], permutation): positions of the split, in
      the order to read them, and which of them comes at each place.
    """
    epoch, w = divmod(number, -(-self.share // self.window))
    count = min(self.window, self.share - w * self.window)
    key = lambda stream, *more: order.key(self.seed, stream, epoch, *more)
    n = len(self.runs)
    runs = self.runs[order.permute(np.arange(n), n, key(4))]
    ends = np.cumsum(runs[:, 1] - runs[:, 0])
    begin = key(5) % int(ends[-1]) + reader * self.share + w * self.window
    parts, missing = [], count
    while missing:
      begin %= int(ends[-1])   # the sequence begins anywhere, and is a circle
      run = np.searchsorted(ends, begin, side='right')
      take = min(missing, int(ends[run]) - begin)
      last = int(runs[run, 1] - (ends[run] - begin)) + take
      parts.append((last - take, last))
      begin, missing = begin + take, missing - take
    return epoch, parts, order.permute(
        np.arange(count), count, key(6, reader, w))


def runs_of(split, ends):
  """The positions of a split cut at the ends of shards: int64 [n, 2]."""
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


def readers_for(batch_size, examples):
  """R: the largest divisor of the batch up to 64, and up to the examples."""
  return max(r for r in range(1, min(MOST_READERS, examples, batch_size) + 1)
             if batch_size % r == 0)
