"""Chooses what each row of a batch holds, for sets read in sequence.

In training, an image that cannot be decoded is replaced by the next good one of
its window. In evaluation it is left out.
"""
from collections.abc import Iterator
from concurrent import futures
import itertools
import threading
from typing import Any

import numpy as np

from mixer.data import bad_images
from mixer.data import order
from mixer.data import rows
from mixer.data import sequential_order

_WINDOWS = 8   # windows that are searched for a good image
_AT_ONCE = 64   # records that are read at a time
# An encoded image, None if it is bad, and its targets.
_Example = tuple[bytes | None, dict[str, np.ndarray]]


def training(reader: bad_images.CheckedReader, *, seed: int, batch_size: int,
             first: int, slots: tuple[int, int], window: int) -> rows.Rows:
  """Returns the rows of training batches, which must be loaded in order.

  Args:
    reader: of the split.
    seed: of the run.
    batch_size: of the global batch.
    first: number of the batch that is loaded first.
    slots: (first, last + 1) row of the global batch for this process.
    window: number of examples that each reader permutes.
  """
  readers = sequential_order.readers_for(batch_size, len(reader))
  each, closed = batch_size // readers, threading.Event()
  plan = sequential_order.Windows(
      _runs_of(reader), readers=readers, window=window, seed=seed)
  mine = range(slots[0] // each, slots[1] // each)

  def load():
    pool = futures.ThreadPoolExecutor(len(mine))
    try:
      streams = [_examples(reader, plan, r, first * each, pool, closed)
                 for r in mine]
      while True:
        taken = [next(stream) for stream in streams for _ in range(each)]
        epoch, record, bad = (np.array([row[i] for row in taken])
                              for i in range(3))
        files, targets = _columns([example for *_, example in taken])
        reader.check()
        yield (files, order.keys(seed, epoch, record),
               rows.ids(epoch, record, bad) | targets)
    finally:   # perhaps run by the garbage collector, in a thread of the pool
      pool.shutdown(wait=False, cancel_futures=True)

  stream = load()
  return rows.Rows(lambda step, lo, hi: next(stream),
                   rows.training_like(reader), close=closed.set)


def evaluation(reader: bad_images.CheckedReader, *, batch_size: int,
               slots: tuple[int, int]) -> rows.Rows:
  """Returns the rows of an evaluation's batches: each example once.

  Each process reads one range of the split. Its rows then differ from those of
  reading at random, but the sums over the split do not.

  Args:
    reader: of the split.
    batch_size: of the global batch.
    slots: (first, last + 1) row of the global batch for this process.
  """
  share = slots[1] - slots[0]
  part = -(-len(reader) // (batch_size // share))
  begin = slots[0] // share * part
  stream = _in_sequence(reader, begin, min(begin + part, len(reader)))
  _, targets = reader.source.read(np.zeros(0, np.int64))
  blank: _Example = None, {
      name: np.zeros(x.shape[1:], x.dtype) for name, x in targets.items()}

  def load(number, lo, hi):
    position = begin + number * share + np.arange(lo, hi)
    taken = list(itertools.islice(stream, hi - lo))
    inside = np.arange(lo, hi) < lo + len(taken)
    files, targets = _columns(taken + [blank] * (hi - lo - len(taken)))
    return rows.evaluated(inside, position, files, targets)

  return rows.Rows(load, rows.evaluation_like(reader), count=-(-part // share))


def _examples(reader, plan, number_of_reader, count, pool, closed):
  """A reader's examples from its `count`-th on; one window is read ahead."""
  number, offset = plan.at(count)
  submit = lambda number: pool.submit(
      _window, reader, plan, number_of_reader, number, closed)
  ahead = submit(number)
  while True:
    number += 1
    window, ahead = ahead.result(), submit(number)
    yield from window[offset:]
    offset = 0


def _window(reader, plan, number_of_reader, number, closed):
  """The examples of a window in its order: (epoch, record, bad, example).

  A bad example is replaced by the next good one, or, if the window has none, by
  one of the windows that follow.
  """
  epoch, window = _read(reader, plan, number_of_reader, number, closed)
  spare = window
  for later in range(1, _WINDOWS):
    good = [i for i, (_, (file, _)) in enumerate(spare) if file is not None]
    if good:
      break
    _, spare = _read(reader, plan, number_of_reader, number + later, closed)
  else:
    reader.check()
    raise reader.no_good_image(f'{_WINDOWS} windows')
  after = np.searchsorted(good, np.arange(len(window))) % len(good)
  return [(epoch, spare[good[g]][0], True, spare[good[g]][1])
          if example[0] is None else (epoch, record, False, example)
          for g, (record, example) in zip(after, window)]


def _read(reader, plan, number_of_reader, number, closed):
  """(epoch, [(record, example)]) of a window, in its order."""
  epoch, parts, places = plan.read(number_of_reader, number)
  found: list[tuple[int, _Example]] = []
  for begin, end in parts:
    for at in range(begin, end, _AT_ONCE):
      if closed.is_set():   # nobody waits for the result; the process may end
        raise futures.CancelledError
      position = np.arange(at, min(at + _AT_ONCE, end))
      found += zip(reader.split.records(position),
                   _split(*reader.read(position)))
  return epoch, [found[place] for place in places]


def _in_sequence(reader, begin, end) -> Iterator[_Example]:
  """The examples at the positions [begin, end), in order."""
  for first, last in _runs_of(reader):
    first, last = max(first, begin), min(last, end)
    for at in range(first, last, _AT_ONCE):
      yield from _split(*reader.read(
          np.arange(at, min(at + _AT_ONCE, last))))


def _runs_of(reader):
  return sequential_order.runs_of(reader.split, reader.source.shards.ends)


def _split(files, targets) -> Iterator[_Example]:
  """Columns to rows."""
  for i, file in enumerate(files):
    yield file, {name: x[i] for name, x in targets.items()}


def _columns(examples) -> tuple[list[Any], dict[str, np.ndarray]]:
  """Rows to columns."""
  files, targets = zip(*examples)
  return list(files), {
      name: np.stack([t[name] for t in targets]) for name in targets[0]}
