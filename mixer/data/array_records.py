"""Reads the records of ArrayRecord files by number."""
import concurrent.futures
import os
import resource

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.data.shards import Shards
from mixer.data.shards import THREADS
from mixer.images import decode_pillow


class Reader:
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
