"""The work of `dedup`: hashes test images, searches shards for them."""
import dataclasses
import functools
import itertools
import os

import numpy as np

from mixer.core import errors
from mixer.data import sources
from mixer.data import splits
from mixer.data import tfds_sets
from mixer.images import decode_pillow
from mixer.preparation import beam_runner
from mixer.preparation import image_hash
from mixer.preparation import shard_files

_STEP = 256   # records compared at a time


@dataclasses.dataclass(frozen=True)
class Images:
  """A split of a source, as flags name it; a worker opens it once."""
  flag: str
  name: str
  split: str
  data_dir: str | None
  dir_flag: str = '--data_dir'

  @functools.cache
  def open(self):
    """(its `sources.Source`, the numbers of its records)."""
    if is_stored(self.name):
      shard_files.open_stored(self.name, self.data_dir, self.dir_flag)
    try:
      source = sources.open_source(self.name, data_dir=self.data_dir)
    except errors.UserError as e:
      raise errors.UserError(str(e).replace('data.name', self.flag)) from e
    except ImportError as e:
      raise errors.UserError(f'{self.flag}: {self.name!r} needs {e.name}, '
                             'which is not installed here') from e
    split = splits.select(
        source.stored, self.split, '--split' if self.flag == '--source' else
        f'{self.flag} {self.name}')
    return source, split.records(np.arange(len(split)))

  def pixels_of(self, number):
    """uint8 [H, W, C] of a record; a `BadImage` if that fails."""
    return pixels(self.open()[0].read(np.array([number]))[0][0])

  def name_of(self, number):
    return self.open()[0].name_of(number)

  def __str__(self):
    return f'{self.name}:{self.split}'


@dataclasses.dataclass(frozen=True)
class Job:
  """Consecutive records to search.

  Attributes:
    split, shard: where they are stored, and will be.
    first: number of the first one.
    wanted: bool, one a record: whether it may be removed.
    path, form: their file and its format, or None.
  """
  split: str
  shard: int
  first: int
  wanted: np.ndarray
  path: str | None = None
  form: str | None = None


def is_stored(name):
  """Whether data.name means a prepared set of TFDS."""
  return tfds_sets.is_name(name)


def pixels(file):
  """uint8 [H, W, C] of a file or array; a `BadImage` if that fails."""
  if isinstance(file, (np.ndarray, decode_pillow.BadImage)):
    return file
  try:
    return decode_pillow.pixels(file)
  except decode_pillow.BadImage as e:
    return e


def hash_tests(part, *, tests, flips):
  """Yields (test, record numbers [n], hashes [n, 1 or 2, 2]) of what is read.

  Args:
    part: (test, first, last), a range of the records of tests[test].
    tests: `Images`.
    flips: whether to hash the mirror images as well.
  """
  test, first, last = part

  def hashes(number):
    image = tests[test].pixels_of(number)
    if not isinstance(image, decode_pillow.BadImage):
      return number, [image_hash.hash_of(image, flip=flip)
                      for flip in (False, True)[:1 + flips]]

  found = list(filter(None, beam_runner.in_threads(
      hashes, tests[test].open()[1][first:last])))
  if found:
    yield test, *map(np.array, zip(*found))


def search(job, hashed, *, train, distance, work, write):
  """Finds duplicates in a job's records, and writes the others.

  Args:
    job: `Job`.
    hashed: all that `hash_tests` yields.
    train: `Images` of the source.
    distance: most bits in which the hashes of duplicates differ.
    work: where results go: the shard, and beside it what became of it.
    write: whether the shard is written.
  """
  tests, numbers, hashes = _table(hashed)
  removed, unreadable, seen = [], 0, 0

  def kept():
    nonlocal unreadable, seen
    stream = beam_runner.in_threads(_hashed, _stored(job, train))
    while batch := list(itertools.islice(stream, _STEP)):
      seen += len(batch)
      unreadable += sum(isinstance(h, decode_pillow.BadImage) for _, _, h in batch)
      mine = [(n, h) for n, _, h in batch if isinstance(h, np.ndarray)]
      gone = set()
      if mine:
        near = image_hash.nearest(
            np.array([h for _, h in mine]), hashes, distance)
        for (number, _), bits, which, count in zip(mine, *near):
          if count:
            gone.add(number)
            removed.append(dict(
                record=int(number), name=train.name_of(number),
                test=int(tests[which]), match=int(numbers[which]),
                distance=int(bits), matches=int(count)))
      yield from (raw for number, raw, _ in batch if number not in gone)

  path = os.path.join(work, f'{job.split}-{job.shard}')
  if write:
    count, size = shard_files.write(path, job.form, kept())
  else:
    count, size = sum(1 for _ in kept()), 0
  if job.path and seen != len(job.wanted):
    raise errors.RunError(f'{job.path!r} has {seen} records, and its data set '
                          f'lists {len(job.wanted)}; prepare it again')
  beam_runner.report(path, dict(
      split=job.split, shard=job.shard, records=count, bytes=size,
      before=seen, searched=int(job.wanted.sum()), unreadable=unreadable,
      removed=removed))


def _table(hashed):
  """(test, record number, hash) of all test images, in order."""
  parts = sorted(hashed, key=lambda part: (part[0], part[1][0]))
  if not parts:
    raise errors.RunError('--against: none of its images can be read')
  tests, numbers, hashes = zip(*[
      (np.full(h.shape[:2], test), np.broadcast_to(n[:, None], h.shape[:2]), h)
      for test, n, h in parts])
  flat = lambda arrays: np.concatenate([a.reshape(-1) for a in arrays])
  return (flat(tests), flat(numbers),
          np.concatenate([h.reshape(-1, 2) for h in hashes]))


def _stored(job, train):
  """Yields (record number, serialised record or None, wanted, image)."""
  if job.path is None:
    for first in range(0, len(job.wanted), _STEP):
      here = np.flatnonzero(job.wanted[first:first + _STEP])
      numbers = job.first + first + here
      if len(numbers):
        found = train.open()[0].read(numbers)[0]
        yield from ((n, None, True, file) for n, file in zip(numbers, found))
    return
  for i, raw in enumerate(shard_files.read(job.path, job.form)):
    yield job.first + i, raw, job.wanted[i:i + 1].any(), None


def _hashed(item):
  """(record number, serialised record, its hash or BadImage, if wanted)."""
  number, raw, wanted, file = item
  if not wanted:
    return number, raw, None
  if raw is not None:
    from tensorflow_datasets.proto import tf_example_pb2
    feature = tf_example_pb2.Example.FromString(raw).features.feature
    file = feature['image'].bytes_list.value[0]
  image = pixels(file)
  return number, raw, (image if isinstance(image, decode_pillow.BadImage) else
                       image_hash.hash_of(image))
