"""Opens a split and gives its batches for training and evaluation.

A batch is a dict of arrays. A training batch has 'epoch' and 'record', int32
[B], which key all randomness of an example, and 'bad', bool [B]: whether the
row replaces an image that cannot be decoded. It also has 'image', 'labels' and
perhaps 'weights', or, for data that lives on the device, 'position', int32 [B].
An evaluation batch has 'mask', bool [B]: whether a row counts; 'bad': whether
it would count if its image could be decoded; and 'position' in the split,
besides 'image' and 'labels' if the data does not live on the device.
"""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Generator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import math
import typing
from typing import Any

import jax
import numpy as np

from mixer.core import errors
from mixer.data import order
from mixer.data import sources
from mixer.data import splits
from mixer.images import options
from mixer.models import grid

if typing.TYPE_CHECKING:
  from mixer.data import bad_images
  from mixer.data.rows import Rows

Batches = Generator[dict[str, np.ndarray], None, None]
_PREFLIGHT = 8   # images that are decoded before the first step


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """One split of a source, ready to be read in batches.

  Attributes:
    source: the data set.
    split: the split.
    key: config section of the split, for messages.
    image_size: (height, width).
    cut: 'crop', 'min_area' and 'interpolation' of its images, as for
      `decode_tf.batches`.
    window: number of examples that each reader of a set in sequence permutes.
    reader: reads encoded images and finds the bad ones; None if the images of
      the source are arrays.
    resident: None, or the whole split, to be put on the device and indexed by
      'position'; see `in_memory.Resident`.
    bad: bool [N], the positions of a resident split that cannot be decoded.
    draw: gives the examples of a training batch; `order.batch`, or that of
      `balance.Classes`.
  """
  source: sources.Source
  split: splits.Split
  key: str
  image_size: tuple[int, int]
  cut: dict[str, Any]
  window: int
  reader: bad_images.CheckedReader | None = None
  resident: dict[str, np.ndarray] | None = None
  bad: np.ndarray | None = None
  draw: order.Draw = order.batch

  def __len__(self) -> int:
    return len(self.split)

  def fingerprint(self, batch_size: int, seed: int) -> dict[str, Any]:
    """Returns what a checkpoint keeps to refuse another order of the data."""
    out = dict(source=self.source.fingerprint, split=self.split.spec,
               examples=len(self), batch_size=batch_size, seed=seed,
               order=order.VERSION)
    if self.split.mixed:
      out.update(slices='permuted')
    if self.draw is not order.batch:
      out.update(balance='classes')
    if self.source.shards:
      from mixer.data import sequential_order
      out.update(readers=sequential_order.readers_for(batch_size, len(self)),
                 window=self.window)
    return out

  def check(self, batch_size: int, slots: tuple[int, int]) -> None:
    """Raises a UserError if the processes cannot share the batches."""
    if self.source.shards and self.resident is None:
      from mixer.data import sequential_order
      sequential_order.check(batch_size, len(self), slots[1] - slots[0])

  def preflight(self) -> None:
    """Decodes the first images, to fail before the first step of a run.

    Raises:
      RunError: if none of them can be decoded.
    """
    if self.bad is not None:
      count, mask = len(self), ~self.bad
    else:
      count = min(_PREFLIGHT, len(self))
      rows = self.evaluation_rows(batch_size=count, slots=(0, count))
      batch, = self._decode(rows, 0, 1, count)
      mask = batch['mask']
    if not mask.any():
      assert self.reader is not None
      (name, why), *_ = self.reader.bad.values()
      raise errors.RunError(
          f'{self.key}.split: none of the first {count} images of '
          f'{self.source.name} {self.split.spec} can be decoded, such as '
          f'{name} ({why}); choose another split or repair the images')

  def train_batches(self, *, seed: int, batch_size: int, first: int, last: int,
                    slots: tuple[int, int]) -> Batches:
    """Yields this process's rows of the batches [first, last), in order.

    Args:
      seed: of the run.
      batch_size: of the global batch.
      first, last: number of the first batch, and of the last one + 1.
      slots: (first, last + 1) row of the global batch for this process.
    """
    if self.bad is not None:
      from mixer.data import in_memory
      yield from in_memory.training_batches(
          self.split, self.bad, self.reader, seed=seed, batch_size=batch_size,
          first=first, last=last, slots=slots, draw=self.draw)
      return
    from mixer.data import prefetch
    rows = self.training_rows(
        seed=seed, batch_size=batch_size, first=first, slots=slots)
    batches = prefetch.ahead(
        self._decode(rows, first, last, slots[1] - slots[0]))
    try:
      yield from batches
    finally:
      rows.close()   # first, so that reads give up before the thread is joined
      batches.close()

  def eval_batches(self, *, batch_size: int, slots: tuple[int, int]) -> Batches:
    """Yields batches that have each example once.

    Args:
      batch_size: of the global batch.
      slots: (first, last + 1) row of the global batch for this process.
    """
    if self.bad is not None:
      from mixer.data import in_memory
      yield from in_memory.evaluation_batches(
          self.bad, batch_size=batch_size, slots=slots)
      return
    from mixer.data import prefetch
    rows = self.evaluation_rows(batch_size=batch_size, slots=slots)
    yield from prefetch.ahead(
        self._decode(rows, 0, rows.count, slots[1] - slots[0]))

  def training_rows(self, *, seed: int, batch_size: int, first: int,
                    slots: tuple[int, int]) -> Rows:
    """Returns the rows of `train_batches` before they are decoded."""
    from mixer.data import rows
    assert self.reader is not None
    return rows.training(
        self.reader, seed=seed, batch_size=batch_size, first=first,
        slots=slots, draw=self.draw, window=self.window)

  def evaluation_rows(self, *, batch_size: int, slots: tuple[int, int]
                      ) -> Rows:
    """Returns the rows of `eval_batches` before they are decoded."""
    from mixer.data import rows
    assert self.reader is not None
    return rows.evaluation(self.reader, batch_size=batch_size, slots=slots)

  def _decode(self, rows, first, last, size):
    from mixer.images import decode_tf
    return decode_tf.batches(
        rows.load, rows.like, first=first, last=last, batch_size=size,
        image_size=self.image_size, channels=self.source.channels,
        in_order=bool(self.source.shards), **self.cut)


def fetch(batch: Mapping[str, jax.Array],
          stored: Mapping[str, jax.Array] | None
          ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Returns the images, labels and weights of a batch, inside of the step.

  Args:
    batch: as the top of the file describes it.
    stored: the split on the device; None if the batch has the images itself.
  """
  if stored is not None:
    batch = {k: jax.numpy.take(x, batch['position'], axis=0)
             for k, x in stored.items()}
  return batch['image'], batch['labels'], batch.get('weights')


def open_data(
    *, name: str | None, split: str | None, dir: str | None = None,
    access: str | None = None, window: int = 1024, crop: str = 'inception',
    min_area: float = 0.05, interpolation: str | None = None,
    max_pixels: int = options.MAX_PIXELS,
    max_bad_fraction: float | None = None, on_device: bool = False,
    balance: str | None = None, labels: str | None = None,
    held_out: str | None = None, image_size: int | Sequence[int] = 224,
    wanted: Sequence[str] = (), most: int | None = None, key: str = 'data',
    report: Callable[[dict[str, str]], None] | None = None) -> Data:
  """Opens a split of a data set; a config's `data` and `evals.NAME` sections.

  Args:
    name, dir, access: of the source, see `sources.open_source`.
    split: such as 'train' or 'train[:99%]+validation'.
    window: number of examples that each reader of a set in sequence permutes;
      the hosts hold up to twice as many for each of up to 64 readers.
    crop: 'inception', 'bit' or 'resize' for training, 'resmall',
      'resize_crop' or 'resize' for evaluation; see `decode_tf.batches`.
    min_area: smallest share of the image that an Inception crop shows.
    interpolation: one of `options.INTERPOLATIONS`; by default the crop's.
    max_pixels: largest height times width of an image; a larger one is bad.
    max_bad_fraction: share of the split's images that may be bad; None for any
      number, as in evaluation, where they are left out and counted.
    on_device: whether the whole split is decoded at the start, resized to
      `image_size` and kept on the device. Sources that are arrays always are.
      Evaluation crops are then the same as on the host. Random crops cannot be
      kept, so training images are resized whole. Arrays of size `image_size`
      stay as they are, whatever the crop.
    balance: None, or 'classes' to draw every class equally often in training,
      see `balance`; an epoch has as many examples as without.
    labels: a JSON file of labels to replace the set's own, see `real_labels`.
    held_out: splits, joined by '+', that are kept out of training unread.
    image_size: an int, or (height, width).
    wanted: all splits that the run asks of this source.
    most: number of examples, of which a longer split keeps the first.
    report: called with a dict for every bad image, or None.
    key: the config section, for error messages.

  Raises:
    UserError: if a value is invalid, or the source cannot be opened.
  """
  if name is None or split is None:
    raise errors.UserError(f'{key}.{"name" if name is None else "split"} is '
                           'not set; give it in the config or as a flag')
  known = list(options.CROPS if key == 'data' else options.EVALUATION_CROPS)
  if crop not in known:
    raise errors.unknown(f'{key}.crop', crop, known)
  if interpolation not in (None, *options.INTERPOLATIONS):
    raise errors.unknown(f'{key}.interpolation', interpolation,
                         options.INTERPOLATIONS)
  choices = (None, 'classes') if key == 'data' else (None,)
  if balance not in choices:
    raise errors.unknown(f'{key}.balance', balance, choices)
  _in_range(f'{key}.min_area', min_area, 0 < min_area <= 1, '0 < x <= 1')
  _in_range(f'{key}.max_bad_fraction', max_bad_fraction,
            0 <= (max_bad_fraction or 0) <= 1, '0 <= x <= 1')
  _in_range(f'{key}.window', window, window >= 1, 'at least 1')
  _in_range(f'{key}.max_pixels', max_pixels, max_pixels >= 1, 'at least 1')
  source = _open(name, data_dir=dir, access=access, labels=labels,
                 wanted=tuple(sorted({*wanted, split, held_out or split})))
  chosen = splits.select(
      source.stored, split, f'{key}.split', wanted).head(most)
  list(splits.parts(source.stored, held_out or split, f'{key}.held_out'))
  size = grid.pair(image_size)
  _in_range('run.image_size', image_size, min(size) >= 1, 'at least 1')
  data = Data(
      source=source, split=chosen, key=key, image_size=size, window=window,
      cut=dict(crop=crop, min_area=min_area,
               interpolation=interpolation or options.CROPS[crop]))
  if not source.decoded:
    data = dataclasses.replace(data, reader=_reader(
        data, max_bad_fraction, max_pixels, report))
  if source.decoded or on_device:
    from mixer.data import in_memory
    arrays, cut, bad = in_memory.load(
        source, chosen, data.reader, key=key, image_size=data.image_size,
        cut=data.cut)
    data = dataclasses.replace(data, resident=arrays, cut=cut, bad=bad)
  if balance is None:
    return data
  from mixer.data import balance as balancing
  return dataclasses.replace(data, draw=balancing.of(data).batch)


def _in_range(key, value, inside, expected):
  if not inside:
    raise errors.UserError(f'{key}: expected {expected}, got {value}')


_open = functools.lru_cache(maxsize=8)(sources.open_source)


def _reader(data, max_bad_fraction, max_pixels, report):
  from mixer.data import bad_images
  # A little more than 0, because 0.29 * 100 is less than 29 in floating point.
  most = (None if max_bad_fraction is None
          else math.floor(max_bad_fraction * len(data) + 1e-6))
  return bad_images.CheckedReader(
      data.source, data.split, key=data.key, most=most, max_pixels=max_pixels,
      report=report)
