"""The TFRecord format: checksums, reading at random and in sequence, writing.

A record is the length of its data (uint64), the checksum of the length, the
data, and the checksum of the data. The format has no index, so reading at
random needs the offset of every record. One scan of the headers finds the
offsets, and the user's cache keeps them.
"""
from collections.abc import Iterator
import concurrent.futures
import contextlib
import hashlib
import os
import struct
import time
from typing import IO

from etils import epath
import google_crc32c
import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.data.shards import keep
from mixer.data.shards import Shards
from mixer.data.shards import THREADS
from mixer.images import decode_pillow

_HEAD, _FRAME = 12, 16   # bytes before the data, and around them
_MOST_OPEN = 256   # files that a reader in sequence leaves open


def checksum(data: bytes) -> bytes:
  """Returns the masked CRC-32C of data, 4 bytes."""
  crc = google_crc32c.value(data)
  return struct.pack(
      '<I', (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


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
    (its data, their stored checksum), which `verified` compares; None if the
    length is damaged or the file ends before the record does.
  """
  head = file.read(_HEAD)
  if checksum(head[:8]) != head[8:]:
    return None
  length, = struct.unpack('<Q', head[:8])
  data, stored = file.read(length), file.read(4)
  return (data, stored) if len(stored) == 4 else None


def verified(data: bytes, stored: bytes) -> bytes | decode_pillow.BadImage:
  """Returns the data of a record, or a `BadImage` if their checksum is wrong.
  """
  if checksum(data) == stored:
    return data
  return decode_pillow.BadImage('the record does not match its checksum')


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


class RandomReader:
  """Reads TFRecord files by record number.

  A file is open only while it is read, because sets have more shards than a
  process may have open files.

  Args:
    shards: the files.
    name: of the set, for the log.

  Raises:
    UserError: if a file is missing or shorter than its set says.
  """

  def __init__(self, shards: Shards, name: str):
    self._shards = shards
    self._offsets = _offsets(shards, name)

  def __call__(self, records: np.ndarray
               ) -> list[bytes | decode_pillow.BadImage]:
    """Returns serialised records; a `BadImage` stands for a damaged one."""
    shards = np.searchsorted(self._shards.ends, records, side='right')
    begins = self._offsets[records + shards].tolist()
    ends = self._offsets[records + shards + 1].tolist()
    return list(map(self._read, shards.tolist(), begins, ends))

  def _read(self, shard, begin, end):
    file = _open(self._shards.paths[shard])
    try:
      data = os.pread(file, end - begin - _HEAD, begin + _HEAD)
    finally:
      os.close(file)
    return verified(data[:-4], data[-4:])


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


def _offsets(shards, name):
  """The offset of every record: int64 [records + shards].

  The offsets of a shard are followed by its end. The cache file is named after
  a hash of the paths, sizes and times of all files. It is memory-mapped, so
  that a large set costs little memory.
  """
  stats = [_stat(path) for path in shards.paths]
  sizes = [s.st_size for s in stats]
  key = hashlib.sha256(repr(
      [(os.path.abspath(p), s.st_size, s.st_mtime_ns)
       for p, s in zip(shards.paths, stats)]).encode()).hexdigest()[:32]
  cache = os.path.join(files.cache(), f'offsets-{key}.npy')
  kept = _kept(cache, shards, sizes)
  if kept is not None:
    return kept
  began = time.monotonic()
  log.info('%s: finding the records of %d files, once', name, len(stats))
  with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
    parts = list(pool.map(lambda i: _scan(shards, i), range(len(stats))))
  offsets = np.concatenate(parts)
  log.info('%s: found %d records in %.0f s', name, shards.ends[-1],
           time.monotonic() - began)
  keep(cache, offsets)
  kept = _kept(cache, shards, sizes)
  return offsets if kept is None else kept


def _kept(cache, shards, sizes):
  """The offsets in a cache file, or None if it is missing or does not fit."""
  try:
    out = np.asarray(np.load(cache, mmap_mode='r'))
  except (OSError, ValueError, EOFError):
    return None
  ends = shards.ends + np.arange(len(sizes))   # where the end of a file is
  begins = np.append(0, ends[:-1] + 1)
  if (out.dtype != np.int64 or out.shape != (ends[-1] + 1,)
      or np.any(out[begins]) or np.any(out[ends] > sizes)
      or np.any(np.delete(np.diff(out), ends[:-1]) < _FRAME)):
    return None
  return out


def _scan(shards, shard):
  """The offsets of the records of a file and its end, by their headers."""
  file = _open(shards.paths[shard])
  try:
    size, at, out = os.fstat(file).st_size, 0, [0]
    while at + _FRAME <= size:
      length, = struct.unpack('<Q', os.pread(file, 8, at))
      if at + length + _FRAME > size:
        break
      at += length + _FRAME
      out.append(at)
  finally:
    os.close(file)
  shards.check_length(shard, len(out) - 1)
  return np.array(out, np.int64)


def _stat(path):
  try:
    return os.stat(path)
  except OSError as e:
    raise errors.UserError(f'cannot read {path!r}: {e.strerror}') from None


def _open(path):
  try:
    return files.descriptor(path)
  except OSError as e:
    raise errors.UserError(f'cannot read {path!r}: {e.strerror}') from None


def _open_anywhere(path):
  try:
    if files.is_remote(path):
      return epath.Path(path).open('rb')
    return files.open_regular(path)
  except OSError as e:
    raise errors.RunError(f'cannot read {path!r}: {e.strerror or e}') from None
