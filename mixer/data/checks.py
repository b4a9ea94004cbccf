"""Keeps between runs which images of a TFDS set passed their check.

For a set whose images `mixer.prepare build` checked, an empty file says so; its
name has a hash of the names and sizes of the set's files. For others, the
user's cache has a bit for each image that a run has checked, in a file whose
name has a hash of their times too. A set with other files is checked again.
"""
import functools
import hashlib
import os
import threading

import numpy as np

from mixer.core import files
from mixer.core.log import log
from mixer.data import shards
from mixer.data.sources import Source
from mixer.images import decode_tf

PREFIX = 'checked-'
_FEWEST = 1024   # images that are checked before the cache learns of it
_say_once = functools.cache(log.info)


def mark_of(directory: str, order: str = '') -> str:
  """Returns the path of the file that says which images of a set passed.

  Args:
    directory: of the set.
    order: the order of the set's records, for the file in the user's cache; by
      default the file is in the directory, and says that all have passed.
  """
  known = sorted((x.name, x.stat().st_size, order and x.stat().st_mtime_ns)
                 for x in os.scandir(directory) if x.is_file() and not (
                     PREFIX in x.name or x.name.endswith(('.json', '.txt'))))
  key = repr((known, order, order and os.path.abspath(directory))).encode()
  return os.path.join(files.cache() if order else directory,
                      PREFIX + hashlib.sha256(key).hexdigest()[:32])


class Checks:
  """Checks the images of a source, each once, from any number of threads.

  Two processes that write at the same time may lose some of what they found.
  Then a later run checks these images again.

  Args:
    source: whose images they are.
    count: number of its records.
    read: number of those that the run reads.
  """

  def __init__(self, source: Source, count: int, read: int):
    self._passed, self._fresh, self._path = np.zeros(count, bool), 0, ''
    self._every = max(_FEWEST, read // 256)
    self._lock = threading.Lock()
    where = source.directory
    if where and os.path.isdir(where):   # not in a bucket
      self._path = mark_of(where, f'{source.name} {source.fingerprint}')
      self._passed = self._kept() | os.path.exists(mark_of(where))
    known = self._passed.sum()
    self._line = '' if not self._path or known == count else (
        f'{source.name}: {known:,} of {count:,} images are known to decode; '
        'each of the others is decoded in full when first read')

  def __call__(self, record: int, file: bytes) -> None:
    """Checks an image with `decode_tf.check`, unless it has passed already.

    Args:
      record: its number.
      file: the bytes of an image file.

    Raises:
      BadImage: if any part of it cannot be decoded.
    """
    if self._line:
      with self._lock:   # else two threads say it
        _say_once(self._line)
    if self._passed[record]:
      return
    decode_tf.check(file)
    with self._lock:
      self._passed[record] = True
      self._fresh += 1
      if self._path and self._fresh % self._every == 0:
        self._passed |= self._kept()   # what other processes found
        if not shards.keep(self._path, np.packbits(self._passed)):
          self._path = ''

  def _kept(self):
    try:
      return np.unpackbits(np.load(self._path), count=len(self._passed)) > 0
    except (OSError, ValueError, EOFError, TypeError):
      return np.zeros(len(self._passed), bool)
