"""The files of a data set that TFDS prepared.

Records are numbered shard by shard and split by split. `array_records` and
`tfrecord` read shards in their formats.
"""
from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import typing
import uuid

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log

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
  """Returns the fingerprint of a set, the same for either file format.

  Of a set that `mixer.prepare` made, it changes with the images and the labels;
  of others, with the names of the files and the numbers of their records.
  """
  lengths = np.diff(shards.ends, prepend=0).tolist()
  listed = [(os.path.basename(path).replace('.array_record', '.tfrecord'), n)
            for path, n in zip(shards.paths, lengths)]
  made = files.read(os.path.join(info.data_dir, 'mixer.json')) or ''
  contents = re.findall(r'"contents": "(\w+)"', made)
  return hashlib.sha256(
      repr((info.full_name, listed, *contents)).encode()).hexdigest()[:16]


def keep(path: str, array: np.ndarray) -> bool:
  """Writes an array to the cache atomically; returns whether it could.

  If not, the log says so, and the next run has to compute it again.
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
