"""Reads and writes TFRecord files, one record after the other."""
from collections.abc import Iterator
import contextlib
import os
import struct
from typing import IO

from etils import epath
import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.data.shards import Shards
from mixer.data.tfrecord import checksum
from mixer.data.tfrecord import HEAD
from mixer.data.tfrecord import verified
from mixer.images import decode_pillow

_MOST_OPEN = 256   # files that a reader leaves open


class Writer:
  """Writes a local TFRecord file."""

  def __init__(self, path: str):
    self._file = open(path, 'wb', buffering=1 << 20)

  def write(self, data: bytes) -> None:
    """Adds a record."""
    length = struct.pack('<Q', len(data))
    self._file.write(length + checksum(length) + data + checksum(data))

  def close(self) -> None:
    """Writes what is buffered and closes the file."""
    self._file.close()


def read(file: IO[bytes]) -> tuple[bytes, bytes] | None:
  """Reads the next record.

  Returns:
    (its data, their stored checksum), which `tfrecord.verified` compares; None
    if the length is damaged or the file ends before the record does.
  """
  head = file.read(HEAD)
  if checksum(head[:8]) != head[8:]:
    return None
  length, = struct.unpack('<Q', head[:8])
  data, stored = file.read(length), file.read(4)
  return (data, stored) if len(stored) == 4 else None


def read_all(path: str) -> Iterator[bytes]:
  """Yields the records of a local file in order.

  Raises:
    ValueError: at the first damaged record.
  """
  size = os.path.getsize(path)
  with files.open_regular(path, buffering=1 << 20) as f:
    while f.tell() < size:
      record = read(f)
      if record is None or checksum(record[0]) != record[1]:
        raise ValueError('it is damaged')
      yield record[0]


class SequentialReader:
  """Reads consecutive records of TFRecord files, which is fast in a bucket.

  Args:
    shards: the files.
    name: of the set, for error messages.
  """

  def __init__(self, shards: Shards, name: str):
    self._shards = shards
    self._name = name
    # (shard, number of its next record): a file that is open at that record.
    self._open: dict[tuple[int, int], IO[bytes]] = {}

  def __call__(self, records: np.ndarray
               ) -> list[bytes | decode_pillow.BadImage]:
    """Returns serialised records; a `BadImage` stands for a damaged one.

    Args:
      records: record numbers that ascend and lie in one shard.

    Raises:
      RunError: if the file ends too early, or the length of a record is wrong.
    """
    if not len(records):
      return []
    shard, first = self._shards.locate(records[0])
    places = set((records - records[0] + first).tolist())
    out, path, last = [], self._shards.paths[shard], max(places)
    f, begin = self._open.pop((shard, first), None), first
    if f is None:
      f, begin = _open_anywhere(path), 0
    with contextlib.ExitStack() as stack:
      stack.callback(f.close)
      for place in range(begin, last + 1):
        record = read(f)
        if record is None:
          raise errors.RunError(
              f'{path!r} is damaged: {self._name} lists '
              f'{self._shards.length(shard)} records for it, and it cannot be '
              f'read from record {place} on; prepare it again')
        if place in places:
          out.append(verified(*record))
      if (last + 1 < self._shards.length(shard)
          and len(self._open) < _MOST_OPEN):
        stack.pop_all()   # the next call goes on where this one ends
        self._open[shard, last + 1] = f
    return out


def _open_anywhere(path):
  try:
    if files.is_remote(path):
      return epath.Path(path).open('rb')
    return files.open_regular(path)
  except OSError as e:
    raise errors.RunError(f'cannot read {path!r}: {e.strerror or e}') from None
