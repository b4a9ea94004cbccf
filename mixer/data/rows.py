"""What goes into each row of a batch: files, keys, labels, before decoding.

`training` and `evaluation` give the function `load` that `decode.batches` asks
for rows of a batch, and `like`, empty arrays of the kinds that it hands on. In
training an image that cannot be decoded is replaced by another of the epoch,
which one being a function of (seed, epoch, position), or by the next good one
of its window in a set that is read in sequence; in evaluation it is left out.
"""
from concurrent import futures
import functools
import itertools
import threading

import numpy as np

from mixer.core import errors
from mixer.data import order
from mixer.data import sequential_order
from mixer.images import decode_pillow

_TRIES = 1000   # until an example is found that can be decoded
_WINDOWS = 8   # likewise, of a set in sequence
_AT_ONCE = 64   # records of a read in sequence


def training(data, *, seed, batch_size, first, slots):
  """(load, like, close), the rest being (epoch, record, bad, labels[,
  weights]); `close` is to be called when no more is loaded.

  Args:
    data: `pipeline.Data`.
    seed, batch_size: of the run.
    first: the step that is asked for first, of a set read in sequence.
    slots: the process's rows of the global batch.
  """
  count = np.zeros(0, np.int32)
  like = (count, count, np.zeros(0, bool)) + _no_targets(data)
  if data.source.shards:
    load, close = _in_sequence(data, seed, batch_size, first, slots)
    return load, like, close

  @functools.lru_cache(maxsize=4)   # a step is asked for in parts
  def plan(step):
    return order.batch(seed, step, batch_size, len(data), slots)

  def load(step, lo, hi):
    epoch, position = (x[lo:hi].copy() for x in plan(step))
    files, labels, weights = data.read(position)
    bad = np.array([file is None for file in files], bool)
    for row in np.flatnonzero(bad):
      def usable(p):
        files[row], labels[row], more = _one(data, p)
        if weights is not None:
          weights[row] = more
        return files[row] is not None
      position[row] = substitute(
          data, seed, epoch[row], position[row], usable)
    data.vetting.check()
    record = data.split.records(position)
    rest = _ids(epoch, record, bad) + _targets(labels, weights)
    return files, order.keys(seed, epoch, record), rest

  return load, like, lambda: None


def substitute(data, seed, epoch, position, usable):
  """The position that stands in for one whose image is bad.

  Args:
    data: `pipeline.Data`.
    seed: of the run.
    epoch, position: of the bad one.
    usable: position -> whether its image is good.
  """
  for attempt in range(_TRIES):
    other = order.key(seed, 3, epoch, position, attempt) % len(data)
    if usable(other):
      return other
  data.vetting.check()
  raise errors.RunError(
      f'{data.source.name} {data.split.spec}: no image that can be decoded in '
      f'{_TRIES} tries')


def evaluation(data, *, batch_size, slots):
  """(number of batches, load, like), the rest being (mask, bad, position,
  labels[, weights]).

  Processes that read in sequence take consecutive parts of the split, since
  only the sums over all of it matter.
  """
  share = slots[1] - slots[0]
  no_flags, no_targets = np.zeros(0, bool), _no_targets(data)
  like = (no_flags, no_flags, np.zeros(0, np.int32)) + no_targets
  if not data.source.shards:
    def load(number, lo, hi):
      position = np.arange(lo, hi) + number * batch_size + slots[0]
      inside = position < len(data)
      files, labels, weights = data.read(position[inside])
      more = lambda x: None if x is None else np.concatenate(
          [x, np.zeros((np.sum(~inside), *x.shape[1:]), x.dtype)])
      files += [None] * int(np.sum(~inside))
      return _evaluated(inside, position, files, more(labels), more(weights))
    return -(-len(data) // batch_size), load, like

  part = -(-len(data) // (batch_size // share))
  begin = slots[0] // share * part
  rows = _rows_in_sequence(data, begin, min(begin + part, len(data)))
  blank = [np.zeros(x.shape[1:], x.dtype) for x in no_targets]
  blank = (None, *blank, None)[:3]

  def load(number, lo, hi):
    position = begin + number * share + np.arange(lo, hi)
    taken = list(itertools.islice(rows, hi - lo))
    inside = np.arange(lo, hi) < lo + len(taken)
    taken += [blank] * (hi - lo - len(taken))
    return _evaluated(inside, position, *_columns(taken))

  return -(-part // share), load, like


def _in_sequence(data, seed, batch_size, first, slots):
  """Rows come from the readers in turn, from wherever step `first` is."""
  readers = sequential_order.readers_for(batch_size, len(data))
  each, closed = batch_size // readers, threading.Event()
  plan = sequential_order.Windows(sequential_order.runs_of(data.split, data.source.shards.ends),
                         readers, data.window, seed)
  mine = range(slots[0] // each, slots[1] // each)

  def load():
    pool = futures.ThreadPoolExecutor(len(mine))
    try:
      streams = [_examples(data, plan, r, first * each, pool, closed)
                 for r in mine]
      while True:
        rows = [next(stream) for stream in streams for _ in range(each)]
        epoch, record, bad, *found = zip(*rows)
        files, labels, weights = _columns(list(zip(*found)))
        data.vetting.check()
        ids = _ids(np.array(epoch), np.array(record), np.array(bad))
        yield (files, order.keys(seed, epoch, record),
               ids + _targets(labels, weights))
    finally:   # perhaps by the garbage collector, in a thread of the pool
      pool.shutdown(wait=False, cancel_futures=True)

  stream = load()
  return lambda step, lo, hi: next(stream), closed.set


def _examples(data, plan, reader, count, pool, closed):
  """A reader's examples from its `count`-th on; one window is read ahead."""
  number, offset = plan.at(count)
  ahead = pool.submit(_window, data, plan, reader, number, closed)
  while True:
    number += 1
    rows, ahead = ahead.result(), pool.submit(
        _window, data, plan, reader, number, closed)
    yield from rows[offset:]
    offset = 0


def _window(data, plan, reader, number, closed):
  """The examples of a window, in its order: (epoch, record, bad, file, labels,
  weights); one that is bad is replaced by the next good one, of the windows
  that follow if there is none."""
  epoch, rows = _rows(data, plan, reader, number, closed)
  spare = rows
  for later in range(1, _WINDOWS):
    good = [i for i, row in enumerate(spare) if row[1] is not None]
    if good:
      break
    _, spare = _rows(data, plan, reader, number + later, closed)
  else:
    data.vetting.check()
    raise errors.RunError(
        f'{data.source.name} {data.split.spec}: no image of {_WINDOWS} windows '
        'can be decoded')
  after = np.searchsorted(good, np.arange(len(rows))) % len(good)
  return [(epoch, spare[good[g]][0], True, *spare[good[g]][1:])
          if row[1] is None else (epoch, row[0], False, *row[1:])
          for g, row in zip(after, rows)]


def _rows(data, plan, reader, number, closed):
  """(epoch, [(record, file, labels, weights)]) of a window, in its order."""
  epoch, parts, places = plan.read(reader, number)
  rows = []
  for begin, end in parts:
    for at in range(begin, end, _AT_ONCE):
      if closed.is_set():   # nobody waits for them; the process wants to end
        raise futures.CancelledError
      position = np.arange(at, min(at + _AT_ONCE, end))
      found = _split(*data.read(position))
      rows += [(r, *row) for r, row in zip(data.split.records(position), found)]
  return epoch, [rows[place] for place in places]


def _rows_in_sequence(data, begin, end):
  """(file, labels, weights) of the positions [begin, end), in their order."""
  for first, last in sequential_order.runs_of(data.split, data.source.shards.ends):
    first, last = max(first, begin), min(last, end)
    for at in range(first, last, _AT_ONCE):
      position = np.arange(at, min(at + _AT_ONCE, last))
      yield from _split(*data.read(position))


def _evaluated(inside, position, files, labels, weights):
  bad = np.array([file is None for file in files], bool) & inside
  files = [decode_pillow.BLANK if file is None else file for file in files]
  keys = np.zeros((len(files), 2), np.int32)
  flags = inside & ~bad, bad, position.astype(np.int32)
  return files, keys, flags + _targets(labels, weights)


def _one(data, position):
  files, labels, weights = data.read(np.array([position]))
  return files[0], labels[0], None if weights is None else weights[0]


def _split(files, labels, weights):
  """Columns to rows."""
  return zip(files, labels, [None] * len(files) if weights is None else weights)


def _columns(rows):
  """Rows to columns."""
  files, labels, weights = zip(*rows)
  return (list(files), np.stack(labels),
          None if weights[0] is None else np.stack(weights))


def _no_targets(data):
  _, labels, weights = data.source.read(np.zeros(0, np.int64))
  return _targets(labels, weights)


def _ids(epoch, record, bad):
  return np.asarray(epoch, np.int32), np.asarray(record, np.int32), bad


def _targets(labels, weights):
  return (labels,) if weights is None else (labels, weights)
