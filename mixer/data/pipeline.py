"""Joins order, sources and decoding into batches for the training step.

A training batch is a dict of arrays of the global batch: 'epoch' and 'record',
int32 [B], from which all randomness of an example is keyed; 'bad', bool [B],
whether it stands in for one that cannot be decoded; and either 'image' and
'labels' (and 'weights') themselves, or, for a data set that lives on the
device, 'position', its place there. An evaluation batch has 'mask', bool [B],
whether a row counts, 'bad', whether it would if it could be decoded, and
'position' in the split.
"""
import dataclasses
import functools
import itertools
import math
import queue
import threading
from typing import Any

import numpy as np

from mixer.core import errors
from mixer.core.log import log
from mixer.data import bad_images
from mixer.data import order
from mixer.data import rows
from mixer.data import sequential_order
from mixer.data import sources
from mixer.data import splits
from mixer.images import decode_pillow
from mixer.images import decode_tf
from mixer.images import eval_crops
from mixer.models import grid

_PREFLIGHT = 8   # images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """One split of a source, ready to be read in batches.

  Attributes:
    source: `sources.Source`.
    split: `splits.Split`.
    vetting: `vetting.Vetting` of the split.
    image_size: (height, width).
    cut: what of an image is shown, as `decode.batches` is told; of a resident
      split, what was.
    window: of a set that is read in sequence, in examples.
    resident: None, or {'image': uint8 [N, H, W, C], 'labels': int32 [N, L]}
      and perhaps 'weights', float32 [N, L]: the whole split, to be put on the
      device and indexed by 'position'.
    bad: bool [N], the positions of a resident split that cannot be decoded.
  """
  source: sources.Source
  split: splits.Split
  vetting: bad_images.Vetting
  image_size: tuple
  cut: dict
  window: int
  resident: dict | None = None
  bad: Any = None

  def __len__(self):
    return len(self.split)

  def read(self, position):
    """(files, labels, weights) at positions; a file that is bad is None."""
    return self.vetting.read(self.split.records(position))

  def fingerprint(self, batch_size, seed):
    """What a checkpoint remembers, so that a changed order cannot resume."""
    out = dict(source=self.source.fingerprint, split=self.split.spec,
               examples=len(self), batch_size=batch_size, seed=seed,
               order=order.VERSION)
    if self.source.shards:
      out.update(readers=sequential_order.readers_for(batch_size, len(self)),
                 window=self.window)
    return out

  def check(self, batch_size, slots):
    """Raises a UserError if batches cannot be shared out to the processes."""
    if self.source.shards and self.resident is None:
      readers = sequential_order.readers_for(batch_size, len(self))
      share = slots[1] - slots[0]
      if share % (batch_size // readers):
        raise errors.UserError(
            f'run.batch_size: {batch_size} images of {len(self)} are read in '
            f'sequence by {readers} readers, which do not divide over '
            f'{batch_size // share} processes; choose a batch size with a '
            'larger power of two, or data.access=random')

  def preflight(self):
    """Decodes the first images, so that a split that cannot be read stops the
    run before its first step.

    Raises:
      RunError: if none of them can be decoded.
    """
    if self.resident is not None:
      count, mask = len(self), ~self.bad
    else:
      count = min(_PREFLIGHT, len(self))
      _, *load = rows.evaluation(self, batch_size=count, slots=(0, count))
      (_, (mask, *_)), = self._decode(load, 0, 1, count)
    if not mask.any():
      (name, why), *_ = self.vetting.bad.values()
      raise errors.RunError(
          f'{self.vetting.key}.split: none of the first {count} images of '
          f'{self.source.name} {self.split.spec} can be decoded: {name} '
          f'({why}); give another, or mend them')

  def train_batches(self, *, seed, batch_size, first, last, slots):
    """Yields the process's slots of the batches [first, last), in order."""
    if self.resident is not None:
      yield from self._resident_batches(seed, batch_size, first, last, slots)
      return
    *load, close = rows.training(self, seed=seed, batch_size=batch_size,
                                    first=first, slots=slots)
    decoded = self._decode(load, first, last, slots[1] - slots[0])
    try:
      for image, (epoch, record, bad, labels, *weights) in ahead(decoded):
        more = dict(weights=weights[0]) if weights else {}
        yield dict(epoch=epoch, record=record, bad=bad, image=image,
                   labels=labels, **more)
    finally:
      close()

  def eval_batches(self, *, batch_size, slots):
    """Yields each example once; 'mask' is False where a row does not count."""
    if self.resident is None:
      count, *load = rows.evaluation(
          self, batch_size=batch_size, slots=slots)
      decoded = self._decode(load, 0, count, slots[1] - slots[0])
      for image, (mask, bad, position, labels, *_) in ahead(decoded):
        yield dict(image=image, labels=labels, mask=mask, bad=bad,
                   position=position)
      return
    for begin in range(0, len(self), batch_size):
      place = np.arange(*slots) + begin
      inside, place = place < len(self), np.minimum(place, len(self) - 1)
      yield dict(position=place.astype(np.int32),
                 mask=inside & ~self.bad[place], bad=inside & self.bad[place])

  def _resident_batches(self, seed, batch_size, first, last, slots):
    usable = lambda p: not self.bad[p]
    for step in range(first, last):
      epoch, position = order.batch(seed, step, batch_size, len(self), slots)
      bad = self.bad[position]
      for row in np.flatnonzero(bad):
        position[row] = rows.substitute(
            self, seed, epoch[row], position[row], usable)
      yield dict(epoch=epoch.astype(np.int32),
                 record=self.split.records(position).astype(np.int32),
                 bad=bad, position=position.astype(np.int32))

  def _decode(self, load, first, last, size):
    return decode_tf.batches(
        *load, first=first, last=last, batch_size=size,
        image_size=self.image_size, channels=self.source.channels,
        in_order=bool(self.source.shards), **self.cut)


def open_data(*, name, split, dir=None, access=None, window=1024,
              crop='inception', min_area=0.05, interpolation=None,
              max_pixels=decode_pillow.MAX_PIXELS, max_bad_fraction=None,
              on_device=False, labels=None, image_size=224, wanted=(),
              report=None, key='data'):
  """Opens a split of a data set; a config's `data` and `evals.NAME` sections.

  Args:
    name: of the source, see `sources.open_source`.
    split: such as 'train' or 'train[:99%]+validation'.
    dir: where TFDS sets lie.
    access: None, 'random' or 'sequential', see `sources.open_source`.
    window: examples that each reader of a set in sequence permutes; the hosts
      hold up to twice as many for each of up to 64 readers.
    crop: 'inception', 'bit' or 'resize' for training, 'resmall',
      'resize_crop' or 'resize' for evaluation; see `decode.batches`.
    min_area: smallest share of the image that an Inception crop shows.
    interpolation: one of `views.INTERPOLATIONS`; by default the crop's.
    max_pixels: of an image; a larger one counts as bad.
    max_bad_fraction: of the split that may be bad; None for any number, as in
      evaluation, where they are left out and counted.
    on_device: whether the whole split is decoded at the start, resized to
      `image_size` and kept on the device. Sources that are arrays always are.
      Evaluation's crops are what they are on the host; of a random crop,
      nothing can be kept, so the images are whole. Arrays of just `image_size`
      stay as they are, whatever the crop.
    labels: a JSON file of labels by file name that replace the set's own, such
      as ReaL's; see `relabel`.
    image_size: an int, or (height, width).
    wanted: all splits that the run asks of this source.
    report: called with a dict for every bad image, or None.
    key: of the config section, for error messages.

  Returns:
    A `Data`.
  """
  if name is None or split is None:
    raise errors.UserError(f'{key}.{"name" if name is None else "split"} is '
                           'not set')
  known = decode_tf.CROPS if key == 'data' else eval_crops.CROPS
  if crop not in known:
    raise errors.unknown(f'{key}.crop', crop, list(known))
  if interpolation not in (None, *decode_tf.INTERPOLATIONS):
    raise errors.unknown(f'{key}.interpolation', interpolation,
                         decode_tf.INTERPOLATIONS)
  _in_range(f'{key}.min_area', min_area, 0 < min_area <= 1, '0 < x <= 1')
  _in_range(f'{key}.max_bad_fraction', max_bad_fraction,
            0 <= (max_bad_fraction or 0) <= 1, '0 <= x <= 1')
  _in_range(f'{key}.window', window, window >= 1, 'at least 1')
  _in_range(f'{key}.max_pixels', max_pixels, max_pixels >= 1, 'at least 1')
  source = _open(name, dir, tuple(sorted(set(wanted) | {split})), access,
                 labels)
  chosen = splits.select(source.stored, split, f'{key}.split')
  size = grid.pair(image_size)
  _in_range('run.image_size', image_size, min(size) >= 1, 'at least 1')
  most = (None if max_bad_fraction is None
          else math.floor(max_bad_fraction * len(chosen) + 1e-6))
  vet = bad_images.Vetting(source, key=key, most=most, max_pixels=max_pixels,
                        report=report)
  data = Data(
      source=source, split=chosen, vetting=vet, image_size=size, window=window,
      cut=dict(crop=crop, min_area=min_area,
               interpolation=interpolation or decode_tf.CROPS[crop]))
  if not on_device and not source.decoded:
    return data
  return dataclasses.replace(data, **_load(data))


def _in_range(key, value, inside, expected):
  if not inside:
    raise errors.UserError(f'{key}: expected {expected}, got {value}')


@functools.lru_cache(maxsize=8)
def _open(name, data_dir, wanted, access, labels):
  return sources.open_source(name, data_dir=data_dir, wanted=wanted,
                             access=access, labels=labels)


def _load(data):
  """The whole split in memory, decoded by Pillow, so without TensorFlow."""
  source, size, cut = data.source, data.image_size, data.cut
  records = data.split.records(np.arange(len(data)))
  images, labels, weights = _read_all(data, records)
  bad = np.zeros(len(records), bool)
  ready = source.decoded and images.shape[1:3] == size
  if ready or cut['crop'] not in eval_crops.CROPS:
    if cut['crop'] != 'resize':
      log.info('%s: images in memory are kept whole, resized if need be; '
               '%s.crop=%r is for those that are decoded on the host',
               data.vetting.key, data.vetting.key, cut['crop'])
    cut = dict(cut, crop='resize')
  if not ready:
    out = np.zeros((len(records), *size, source.channels), np.uint8)
    for i, image in enumerate(images):
      if not source.decoded:
        image = data.vetting.pixels(int(records[i]), image)
        if image is None:
          bad[i] = True
          continue
      out[i] = eval_crops.view(image, size=size, crop=cut['crop'],
                          interpolation=cut['interpolation'])
    images = out
    log.info('%s %s: %d images in memory, %.0f MB', source.name,
             data.split.spec, len(out), out.nbytes / 1e6)
  data.vetting.check()
  resident = dict(image=images, labels=labels)
  if weights is not None:
    resident['weights'] = weights
  return dict(resident=resident, bad=bad, cut=cut)


def _read_all(data, records):
  if not data.source.shards:
    return data.source.read(records)
  found, labels, weights = zip(*(   # a shard at a time
      data.source.read(records[first:last]) for first, last in
      sequential_order.runs_of(data.split, data.source.shards.ends)))
  return (list(itertools.chain(*found)), np.concatenate(labels),
          None if weights[0] is None else np.concatenate(weights))


def ahead(iterator):
  """Runs an iterator in a thread, one item ahead; passes its errors on."""
  items = queue.Queue(maxsize=1)
  closed = threading.Event()

  def put(item):
    while not closed.is_set():
      try:
        return items.put(item, timeout=0.1)
      except queue.Full:
        continue

  def work():
    try:
      for item in iterator:
        put((item, None))
        if closed.is_set():
          return
      put((None, StopIteration()))
    except BaseException as e:  # handed to the consumer, which raises it
      put((None, e))

  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  try:
    while True:
      item, error = items.get()
      if isinstance(error, StopIteration):
        return
      if error is not None:
        raise error
      yield item
  finally:
    closed.set()
    thread.join(timeout=10)   # a thread alive at exit can abort the process
