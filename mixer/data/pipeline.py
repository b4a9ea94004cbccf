"""Joins order, sources and decoding into batches for the training step.

A batch is a dict of arrays of the global batch: 'epoch' and 'record', int32
[B], from which all randomness of an example is keyed, and either 'image' and
'labels' themselves, or, for a data set that lives on the device, 'position',
its place there.
"""
import dataclasses
import functools
import io

import threading
import queue

import numpy as np

from mixer.core import checks
from mixer.core.log import log
from mixer.data import order
from mixer.data import sources
from mixer.data import splits

CROPS = ('inception', 'resmall', 'resize')


@dataclasses.dataclass(frozen=True)
class Data:
  """One split of a source, ready to be read in batches.

  Attributes:
    source: `sources.Source`.
    split: `splits.Split`.
    image_size: (height, width).
    crop: how the host cuts a decoded image, see `decode.batches`.
    resident: None, or {'image': uint8 [N, H, W, C], 'labels': int32 [N, L]},
      the whole split, to be put on the device and indexed by 'position'.
  """
  source: sources.Source
  split: splits.Split
  image_size: tuple
  crop: str
  min_area: float
  resident: dict | None

  def __len__(self):
    return len(self.split)

  def fingerprint(self, batch_size, seed):
    """What a checkpoint remembers, so that a changed order cannot resume."""
    return dict(source=self.source.fingerprint, split=self.split.spec,
                examples=len(self), batch_size=batch_size, seed=seed,
                order=order.VERSION)

  def train_batches(self, *, seed, batch_size, first, last, slots):
    """Yields the process's slots of the batches [first, last), in order."""
    def plan(step):
      epoch, position = order.batch(seed, step, batch_size, len(self), slots)
      record = self.split.records(position)
      return epoch, position, record

    def requests(step):
      epoch, _, record = plan(step)
      return record, order.keys(seed, epoch, record)

    numbers = range(first, last)
    if self.resident is None:
      decoded = self._decode(requests, first, last, slots[1] - slots[0])
      for step, (image, labels) in zip(numbers, ahead(decoded)):
        epoch, _, record = plan(step)
        yield dict(_ids(epoch, record), image=image, labels=labels)
    else:
      for step in numbers:
        epoch, position, record = plan(step)
        yield dict(_ids(epoch, record), position=position.astype(np.int32))

  def eval_batches(self, *, batch_size, slots):
    """Yields each example once, in order; 'mask' is 0 where a batch is padded.
    """
    count = -(-len(self) // batch_size)

    def positions(number):
      place = np.arange(*slots) + number * batch_size
      return np.minimum(place, len(self) - 1), place < len(self)

    def requests(number):
      record = self.split.records(positions(number)[0])
      return record, np.zeros((len(record), 2), np.int32)

    if self.resident is None:
      decoded = self._decode(requests, 0, count, slots[1] - slots[0])
      for number, (image, labels) in enumerate(ahead(decoded)):
        yield dict(image=image, labels=labels, mask=positions(number)[1])
    else:
      for number in range(count):
        position, mask = positions(number)
        yield dict(position=position.astype(np.int32), mask=mask)

  def _decode(self, requests, first, last, size):
    from mixer.data import decode
    return decode.batches(
        self.source.read, requests, first=first, last=last, batch_size=size,
        image_size=self.image_size, channels=self.source.channels,
        crop=self.crop, min_area=self.min_area)


def open_data(*, name, split, dir=None, crop='inception', min_area=0.05,
              on_device=False, image_size=224, wanted=(), key='data'):
  """Opens a split of a data set; a config's `data` and `evals.NAME` sections.

  Args:
    name: of the source, see `sources.open_source`.
    split: such as 'train' or 'train[:99%]+validation'.
    dir: where TFDS sets lie.
    crop: 'inception' or 'resize' for training, 'resmall' or 'resize' for
      evaluation.
    min_area: smallest share of the image that an Inception crop shows.
    on_device: whether the whole split is decoded at the start, resized to
      `image_size` and kept on the device. Sources that are arrays always are.
    image_size: an int, or (height, width).
    wanted: all splits that the run asks of this source.
    key: of the config section, for error messages.

  Returns:
    A `Data`.
  """
  if name is None or split is None:
    raise checks.UserError(f'{key}.{"name" if name is None else "split"} is '
                           'not set')
  if crop not in CROPS:
    raise checks.unknown(f'{key}.crop', crop, CROPS)
  if not 0 < min_area <= 1:
    raise checks.UserError(f'{key}.min_area: expected 0 < x <= 1, got '
                           f'{min_area}')
  source = _open(name, dir, tuple(sorted(set(wanted) | {split})))
  chosen = splits.select(source.stored, split, f'{key}.split')
  size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
  if min(size) < 1:
    raise checks.UserError(f'run.image_size: expected at least 1, got '
                           f'{image_size}')
  resident = None
  if on_device or source.decoded:
    resident = _load(source, chosen, size)
    if crop != 'resize':
      log.info('%s: images in memory are resized whole; %s.crop=%r is for '
               'those that are decoded on the host', key, key, crop)
      crop = 'resize'
  return Data(source, chosen, size, crop, min_area, resident)


@functools.lru_cache(maxsize=8)
def _open(name, data_dir, wanted):
  return sources.open_source(name, data_dir=data_dir, wanted=wanted)


def _load(source, split, size):
  """The whole split in memory, decoded by Pillow, so without TensorFlow."""
  from PIL import Image
  images, labels = source.read(split.records(np.arange(len(split))))
  if source.decoded and images.shape[1:3] == size:
    return dict(image=images, labels=labels)
  mode = 'L' if source.channels == 1 else 'RGB'
  out = np.empty((len(images), *size, source.channels), np.uint8)
  for i, image in enumerate(images):
    if source.decoded:
      picture = Image.fromarray(image.squeeze())
    else:
      try:
        picture = Image.open(io.BytesIO(image)).convert(mode)
      except (OSError, SyntaxError, ValueError) as e:
        raise checks.RunError(f'{source.name} {split.spec}: image {i} cannot '
                              f'be decoded ({_one_line(e)})') from e
    if picture.size != size[::-1]:
      picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    out[i] = np.asarray(picture).reshape(*size, -1)
  log.info('%s %s: %d images in memory, %.0f MB', source.name, split.spec,
               len(out), out.nbytes / 1e6)
  return dict(image=out, labels=labels)


def _one_line(error):
  return ' '.join(str(error).split())[:200]


def _ids(epoch, record):
  return dict(epoch=epoch.astype(np.int32), record=record.astype(np.int32))


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
