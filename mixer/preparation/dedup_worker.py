"""What `dedup` does on Beam's workers: hash test images and search shards."""
import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import os
from typing import Any

import numpy as np

from mixer.core import errors
from mixer.data import sources
from mixer.data import splits
from mixer.data.sources import Source
from mixer.images import decode_pillow
from mixer.preparation import beam_runner
from mixer.preparation import image_hash
from mixer.preparation import set_directory
from mixer.preparation import shard_files

_BATCH = 256   # records that are compared with the test images at a time
# (index of the test set, record numbers int [n], hashes uint64 [n, 1 or 2, 2]).
TestHashes = tuple[int, np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Images:
  """The images of one split of a source, opened once in each process.

  Beam sends it to workers inside of the steps, so it holds names only.

  Attributes:
    flag: the flag that gave the name, for messages.
    name: the source's name, as data.name in a config.
    split: the split, in TFDS's syntax.
    data_dir: the TFDS directory, or None for TFDS's default.
    dir_flag: the flag that gave data_dir.
  """
  flag: str
  name: str
  split: str
  data_dir: str | None
  dir_flag: str = '--data_dir'

  @property
  def source(self) -> Source:
    """The opened source.

    Raises:
      UserError: if it is missing or unknown, or needs a library that is not
        installed.
    """
    return _opened(self)[0]

  @property
  def records(self) -> np.ndarray:
    """The numbers of the split's records in the source, int [n]."""
    return _opened(self)[1]

  def pixels_of(self, record: int) -> np.ndarray | decode_pillow.BadImage:
    """Returns the image uint8 [H, W, C] of a record, or why it has none."""
    files, *_ = self.source.read(np.array([record]))
    return _pixels(files[0])

  def name_of(self, record: int) -> str:
    """Returns what to call a record in messages and reports."""
    return self.source.name_of(record)

  def __str__(self) -> str:
    return f'{self.name}:{self.split}'


@functools.cache   # equal `Images` share what is opened, also unpickled copies
def _opened(images: Images) -> tuple[Source, np.ndarray]:
  """Returns the source and the numbers of the split's records."""
  if is_stored(images.name):   # its error names the flag of the directory
    set_directory.open_stored(images.name, images.data_dir, images.dir_flag)
  try:
    source = sources.open_source(images.name, data_dir=images.data_dir)
  except errors.UserError as e:
    raise errors.UserError(str(e).replace('data.name', images.flag)) from e
  except ImportError as e:
    raise errors.UserError(
        f'{images.flag}: {images.name!r} needs {e.name}, which is not '
        'installed in this environment') from e
  flag = ('--split' if images.flag == '--source' else
          f'{images.flag} {images.name}')
  split = splits.select(source.stored, images.split, flag)
  return source, split.records(np.arange(len(split)))


@dataclasses.dataclass(frozen=True)
class Job:
  """Consecutive records to search: a stored shard, or a part of a source.

  Attributes:
    split: the split that stores them, in the old and in the new set.
    shard: the number of the shard in that split.
    first: the number of the first record in the source.
    wanted: bool [n], whether each record is searched and may be removed.
    path: the shard's file, or None to read the source by record number.
    file_format: the file's format, or None.
  """
  split: str
  shard: int
  first: int
  wanted: np.ndarray
  path: str | None = None
  file_format: str | None = None


def is_stored(name: str) -> bool:
  """Returns whether data.name means a set that TFDS prepared."""
  return sources.is_tfds_name(name)


def _pixels(file: Any) -> np.ndarray | decode_pillow.BadImage:
  """Returns the image uint8 [H, W, C] of what a source reads."""
  if isinstance(file, (np.ndarray, decode_pillow.BadImage)):
    return file
  try:
    return decode_pillow.pixels(file)
  except decode_pillow.BadImage as e:
    return e


def hash_tests(part: tuple[int, int, int], *, tests: Sequence[Images],
               flips: bool) -> Iterator[TestHashes]:
  """Yields the hashes of a range of test images, leaving out unreadable ones.

  Args:
    part: (index of the test set, first, last), a range of its records.
    tests: the test sets.
    flips: whether to hash the mirror images as well.
  """
  test, first, last = part

  def hashed(record):
    image = tests[test].pixels_of(record)
    if isinstance(image, decode_pillow.BadImage):
      return None
    return record, [image_hash.difference_hash(image, flip=flip)
                    for flip in ((False, True) if flips else (False,))]

  found = list(filter(None, beam_runner.map_in_threads(
      hashed, tests[test].records[first:last])))
  if found:
    records, hashes = zip(*found)
    yield test, np.array(records), np.array(hashes)


@dataclasses.dataclass(frozen=True)
class _TestTable:
  """All test images, one row for each hash.

  Attributes:
    tests: index of the test set, int [m].
    records: record number in that set, int [m].
    hashes: uint64 [m, 2].
  """
  tests: np.ndarray
  records: np.ndarray
  hashes: np.ndarray


def search(job: Job, test_hashes: Iterable[TestHashes], *, train: Images,
           distance: int, work: str, write: bool) -> None:
  """Finds the duplicates among a job's records, and writes the other records.

  Args:
    job: the records.
    test_hashes: all that `hash_tests` yields, in any order.
    train: the source that the records belong to.
    distance: the largest number of bits in which the hashes of duplicates
      differ.
    work: the directory for the new shard, and for the report beside it.
    write: whether to write the shard.

  Raises:
    RunError: if a record is damaged or missing, or no test image can be read.
  """
  table = _table(test_hashes)
  removed: list[dict[str, Any]] = []
  counts = collections.Counter(seen=0, unreadable=0)

  def kept_records():
    stream = beam_runner.map_in_threads(_with_hash, _records(job, train))
    while batch := list(itertools.islice(stream, _BATCH)):
      counts.update(seen=len(batch), unreadable=sum(
          isinstance(h, decode_pillow.BadImage) for *_, h in batch))
      found = _duplicates(batch, table, train, distance)
      removed.extend(found)
      records = {line['record'] for line in found}
      yield from (raw for record, raw, _ in batch if record not in records)

  path = os.path.join(work, f'{job.split}-{job.shard}')
  if write:
    assert job.file_format is not None
    kept, size = shard_files.write(path, job.file_format, kept_records())
  else:
    kept, size = sum(1 for _ in kept_records()), 0
  if job.path and counts['seen'] != len(job.wanted):
    raise errors.RunError(
        f'{job.path!r} has {counts["seen"]} records, and its data set lists '
        f'{len(job.wanted)}; prepare the data set again')
  beam_runner.write_report(path, dict(
      split=job.split, shard=job.shard, records=kept, bytes=size,
      before=counts['seen'], searched=int(job.wanted.sum()),
      unreadable=counts['unreadable'], removed=removed))


def _duplicates(batch: Sequence[tuple], table: _TestTable, train: Images,
                distance: int) -> list[dict[str, Any]]:
  """Returns what to report of each duplicate among what `_with_hash` gave."""
  hashed = [(record, h) for record, _, h in batch if isinstance(h, np.ndarray)]
  if not hashed:
    return []
  distances, indices, matches = image_hash.nearest(
      np.array([h for _, h in hashed]), table.hashes, distance)
  return [
      dict(record=int(record), name=train.name_of(record),
           test=int(table.tests[i]), match=int(table.records[i]),
           distance=int(bits), matches=int(count))
      for (record, _), bits, i, count in zip(
          hashed, distances, indices, matches) if count]


def _table(test_hashes: Iterable[TestHashes]) -> _TestTable:
  """Joins the parts, ordered, so that every worker finds the same nearest."""
  parts = sorted(test_hashes, key=lambda part: (part[0], part[1][0]))
  if not parts:
    raise errors.RunError('--against: none of the test images can be read')
  return _TestTable(
      tests=np.concatenate([np.full(h.shape[0] * h.shape[1], test)
                            for test, _, h in parts]),
      records=np.concatenate([np.repeat(r, h.shape[1]) for _, r, h in parts]),
      hashes=np.concatenate([h.reshape(-1, 2) for *_, h in parts]))


def _records(job: Job, train: Images
             ) -> Iterator[tuple[int, bytes | None, bool, Any]]:
  """Yields (record number, serialized record or None, wanted, image or None).

  Stored records are copied as they are, so they come serialized; of any other
  source only the wanted images are read.
  """
  if job.path is not None:
    assert job.file_format is not None
    for i, raw in enumerate(shard_files.read(job.path, job.file_format)):
      # A slice, because the file may hold more records than its set lists;
      # `search` counts them and reports it.
      yield job.first + i, raw, bool(job.wanted[i:i + 1].any()), None
    return
  for start in range(0, len(job.wanted), _BATCH):
    inside = np.flatnonzero(job.wanted[start:start + _BATCH])
    records = job.first + start + inside
    if len(records):
      images, *_ = train.source.read(records)
      yield from ((int(record), None, True, image)
                  for record, image in zip(records, images))


def _with_hash(item: tuple[int, bytes | None, bool, Any]
               ) -> tuple[int, bytes | None,
                          np.ndarray | decode_pillow.BadImage | None]:
  """Returns (record number, serialized record, hash), for `_records`' items.

  The hash is a BadImage if the image cannot be read, None if it is not wanted.
  """
  record, raw, wanted, image = item
  if not wanted:
    return record, raw, None
  if raw is not None:
    from tensorflow_datasets.proto import tf_example_pb2
    feature = tf_example_pb2.Example.FromString(raw).features.feature
    image = feature['image'].bytes_list.value[0]
  pixels = _pixels(image)
  if isinstance(pixels, decode_pillow.BadImage):
    return record, raw, pixels
  return record, raw, image_hash.difference_hash(pixels)
