"""The TFRecord format: checksums, and reading at random.

A record is the length of its data (uint64), the checksum of the length, the
data, and the checksum of the data. The format has no index, so reading at
random needs the offset of every record. One scan of the headers finds the
offsets, and the user's cache keeps them. `tfrecord_sequence` reads and writes
one record after the other.
"""
import concurrent.futures
import hashlib
import os
import struct
import time

import google_crc32c
import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.data.shards import keep
from mixer.data.shards import Shards
from mixer.data.shards import THREADS
from mixer.images import decode_pillow

HEAD, _FRAME = 12, 16   # bytes before the data, and around them


def checksum(data: bytes) -> bytes:
  """Returns the masked CRC-32C of data, 4 bytes."""
  crc = google_crc32c.value(data)
  return struct.pack(
      '<I', (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def verified(data: bytes, stored: bytes) -> bytes | decode_pillow.BadImage:
  """Returns the data of a record, or a `BadImage` if their checksum is wrong.
  """
  if checksum(data) == stored:
    return data
  return decode_pillow.BadImage('the record does not match its checksum')


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
    def read():
      file = files.descriptor(self._shards.paths[shard])
      try:
        return os.pread(file, end - begin - HEAD, begin + HEAD)
      finally:
        os.close(file)
    try:
      data = read()
    except OSError as e:
      from mixer.data import retries  # few reads fail
      data = retries.again(read, self._shards.paths[shard], e)
    return verified(data[:-4], data[-4:]) if isinstance(data, bytes) else data


def _offsets(shards, name):
  """The offset of every record: int64 [records + shards].

  The offsets of a shard are followed by its end. The cache file is named after
  a hash of the paths, sizes and times of all files. It is memory-mapped, so
  that a large set costs little memory.
  """
  stats = [_tried(os.stat, path) for path in shards.paths]
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
  file = _tried(files.descriptor, shards.paths[shard])
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


def _tried(function, path):
  try:
    return function(path)
  except OSError as e:
    raise errors.UserError(f'cannot read {path!r}: {e.strerror}') from None
