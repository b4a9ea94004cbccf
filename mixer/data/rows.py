"""Chooses what each row of a batch holds, before decoding.

In training, an image that cannot be decoded is replaced by another of the same
epoch; which one is a function of (seed, epoch, position). In evaluation it is
left out. `sequential_rows` does this for sets that are read in sequence.
"""
from collections.abc import Callable
import dataclasses
import functools

import numpy as np

from mixer.data import bad_images
from mixer.data import order
from mixer.images import decode_pillow
from mixer.images import decode_tf


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of batches, as `decode_tf.batches` asks for them.

  Attributes:
    load: (batch number, first row, last row + 1) -> (encoded images, keys of
      their crops, other arrays by name).
    like: empty arrays with the names, dtypes and shapes of the other arrays.
    count: number of batches; 0 in training, where there is no end.
    close: ends the threads that read ahead, once no more is loaded.
  """
  load: decode_tf.Load
  like: dict[str, np.ndarray]
  count: int = 0
  close: Callable[[], None] = lambda: None


def training(reader: bad_images.CheckedReader, *, seed: int, batch_size: int,
             first: int, slots: tuple[int, int], draw: order.Draw,
             window: int) -> Rows:
  """Returns the rows of training batches.

  The other arrays are 'epoch', 'record' and 'bad' (whether the row replaces a
  bad image), 'labels' and perhaps 'weights'.

  Args:
    reader: of the split.
    seed: of the run.
    batch_size: of the global batch.
    first: number of the batch that is loaded first.
    slots: (first, last + 1) row of the global batch for this process.
    draw: gives the examples of a batch, of a set that is read at random.
    window: number of examples that each reader of a set in sequence permutes.
  """
  if reader.source.shards:
    from mixer.data import sequential_rows
    return sequential_rows.training(
        reader, seed=seed, batch_size=batch_size, first=first, slots=slots,
        window=window)

  @functools.lru_cache(maxsize=4)   # a batch is loaded in several parts
  def plan(step):
    return draw(seed, step, batch_size, len(reader), slots)

  def load(step, lo, hi):
    epoch, position = (x[lo:hi].copy() for x in plan(step))
    files, targets = reader.read(position)
    bad = np.array([file is None for file in files], bool)
    for row in np.flatnonzero(bad):
      def usable(other):
        (files[row],), found = reader.read(np.array([other]))
        for name, x in found.items():
          targets[name][row] = x[0]
        return files[row] is not None
      position[row] = reader.substitute(
          seed, epoch[row], position[row], usable)
    reader.check()
    record = reader.split.records(position)
    return (files, order.keys(seed, epoch, record),
            ids(epoch, record, bad) | targets)

  return Rows(load, training_like(reader))


def evaluation(reader: bad_images.CheckedReader, *, batch_size: int,
               slots: tuple[int, int]) -> Rows:
  """Returns the rows of an evaluation's batches: each example once.

  The other arrays are those of `evaluated`.

  Args:
    reader: of the split.
    batch_size: of the global batch.
    slots: (first, last + 1) row of the global batch for this process.
  """
  if reader.source.shards:
    from mixer.data import sequential_rows
    return sequential_rows.evaluation(
        reader, batch_size=batch_size, slots=slots)

  def load(number, lo, hi):
    position = np.arange(lo, hi) + number * batch_size + slots[0]
    inside = position < len(reader)
    files, targets = reader.read(position[inside])
    missing = int(np.sum(~inside))
    targets = {name: np.concatenate(
        [x, np.zeros((missing, *x.shape[1:]), x.dtype)])
               for name, x in targets.items()}
    return evaluated(inside, position, files + [None] * missing, targets)

  return Rows(load, evaluation_like(reader),
              count=-(-len(reader) // batch_size))


def ids(epoch: np.ndarray, record: np.ndarray, bad: np.ndarray
        ) -> dict[str, np.ndarray]:
  """Returns what identifies the examples of training rows."""
  return dict(epoch=np.asarray(epoch, np.int32),
              record=np.asarray(record, np.int32), bad=bad)


def evaluated(inside: np.ndarray, position: np.ndarray,
              files: list[bytes | None], targets: dict[str, np.ndarray]
              ) -> tuple[list[bytes], np.ndarray, dict[str, np.ndarray]]:
  """Returns what `Rows.load` returns in evaluation.

  The other arrays are 'mask' (whether a row counts), 'bad' (whether it would
  count if its image could be decoded), 'position', 'labels' and perhaps
  'weights'.

  Args:
    inside: bool [n], whether a row holds an example at all.
    position: int [n].
    files: encoded images, None for one that is bad or missing.
    targets: 'labels', int32 [n, L], and perhaps 'weights', float32 [n, L].
  """
  bad = np.array([file is None for file in files], bool) & inside
  images = [decode_pillow.BLANK if file is None else file for file in files]
  return images, np.zeros((len(files), 2), np.int32), dict(
      mask=inside & ~bad, bad=bad, position=position.astype(np.int32),
      **targets)


def training_like(reader: bad_images.CheckedReader) -> dict[str, np.ndarray]:
  """Returns `Rows.like` of training."""
  none = np.zeros(0, np.int64)
  return ids(none, none, np.zeros(0, bool)) | reader.source.read(none)[1]


def evaluation_like(reader: bad_images.CheckedReader) -> dict[str, np.ndarray]:
  """Returns `Rows.like` of evaluation."""
  none = np.zeros(0, np.int64)
  return evaluated(np.zeros(0, bool), none, [],
                   reader.source.read(none)[1])[2]
