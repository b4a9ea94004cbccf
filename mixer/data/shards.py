"""The files of a data set that TFDS prepared, and reading them at random.

Records are numbered shard by shard and split by split. `tfrecord` reads shards
in TFRecord format.
"""
from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import resource
import typing
import uuid

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.images import decode_pillow

if typing.TYPE_CHECKING:
  import tensorflow_datasets as tfds

THREADS = 16   # files that are opened at a time


@dataclasses.dataclass(frozen=True)
class Shards:
  """The files of a set.

  Attributes:
    paths: one for each shard, in the order of the records.
    ends: int64 [shards], the record number after each shard's last record.
  """
  paths: tuple[str, ...]
  ends: np.ndarray

  def locate(self, record: int) -> tuple[int, int]:
    """Returns (number of the shard, number of the record in it)."""
    shard = int(np.searchsorted(self.ends, record, side='right'))
    return shard, int(record - (self.ends[shard - 1] if shard else 0))

  def name_of(self, record: int) -> str:
    """Returns a record's name for messages: its file and its number there."""
    shard, at = self.locate(record)
    return f'{self.paths[shard]} record {at}'

  def length(self, shard: int) -> int:
    """Returns the number of records that a shard should have."""
    return int(self.ends[shard] - (self.ends[shard - 1] if shard else 0))

  def check_length(self, shard: int, found: int) -> None:
    """Raises a UserError if a shard has not as many records as it should."""
    expected = self.length(shard)
    if found != expected:
      raise errors.UserError(
          f'{self.paths[shard]!r} is damaged or missing: it has {found} whole '
          f'records, and its data set lists {expected}; prepare it again')


def shards_of(info: tfds.core.DatasetInfo) -> Shards:
  """Returns the files of all splits of a set."""
  pairs = [(str(path), length) for split in info.splits.values()
           for path, length in zip(split.filepaths, split.shard_lengths)]
  return Shards(tuple(p for p, _ in pairs),
                np.cumsum([n for _, n in pairs], dtype=np.int64))


def fingerprint(info: tfds.core.DatasetInfo, shards: Shards) -> str:
  """Returns the fingerprint of a set, the same for either file format."""
  lengths = np.diff(shards.ends, prepend=0).tolist()
  listed = [(os.path.basename(path).replace('.array_record', '.tfrecord'), n)
            for path, n in zip(shards.paths, lengths)]
  return hashlib.sha256(
      repr((info.full_name, listed)).encode()).hexdigest()[:16]


class ArrayRecords:
  """Reads ArrayRecord files by record number; all files stay open.

  Args:
    shards: the files.

  Raises:
    UserError: if a file is missing or shorter than its set says.
  """

  def __init__(self, shards: Shards):
    from array_record.python import array_record_module
    _allow_open_files(len(shards.paths))
    self._shards = shards
    make = array_record_module.ArrayRecordReader

    def open_one(shard):
      path = shards.paths[shard]
      try:
        os.close(files.descriptor(path))   # a FIFO would be waited for
      except OSError as e:
        raise errors.UserError(f'cannot read {path!r}: {e.strerror}') from None
      reader = make(path)
      # A missing or truncated file opens without an error and has 0 records.
      shards.check_length(shard, reader.num_records())
      return reader

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
      self._readers = list(pool.map(open_one, range(len(shards.paths))))

  def __call__(self, records: np.ndarray
               ) -> list[bytes | decode_pillow.BadImage]:
    """Returns serialised records; a `BadImage` stands for a damaged one."""
    return [self._read(int(r)) for r in records]

  def _read(self, record):
    shard, at = self._shards.locate(record)
    try:
      return self._readers[shard].read([at])[0]
    except (ValueError, IndexError, RuntimeError) as e:
      return decode_pillow.BadImage(decode_pillow.one_line(e))


def keep(path: str, array: np.ndarray) -> bool:
  """Writes an array to a file of the cache at once; returns whether it could.

  If not, the log says so, and the next run has to find out again.
  """
  part = f'{path}.{uuid.uuid4().hex}'   # machines may share a home directory
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(part, 'wb') as f:
      np.save(f, array)
      f.flush()
      os.fsync(f.fileno())
    os.replace(part, path)
    return True
  except OSError as e:
    log.info('%s cannot be written (%s)', path, e.strerror or e)
    return False


def _allow_open_files(count):
  """Raises the soft limit of open files if the hard limit allows it."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = len(os.listdir('/dev/fd')) + count + 512
  if soft != resource.RLIM_INFINITY and soft < wanted:
    if hard != resource.RLIM_INFINITY and hard < wanted:
      raise errors.UserError(
          f'{count} files must stay open, and the limit of open files is '
          f'{hard}; raise it (ulimit -n {wanted})')
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
