"""Shards as files: read in sequence, written whole; sets appear at once.

For mixer.prepare, which goes through every record once; `prepared` reads the
same files at random. None of this imports TensorFlow.
"""
import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import struct
import uuid

from mixer.core import errors
from mixer.core import files

NOTE = 'mixer.json'   # in a set that mixer.prepare made: from what, and counts
FORMATS = ('array_record', 'tfrecord')
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'


@dataclasses.dataclass(frozen=True)
class Stored:
  """A set that TFDS prepared.

  Attributes:
    path: its version's directory.
    full_name: such as 'imagenet2012/5.1.0'.
    form: of the files, as TFDS calls it.
    splits: {split: ((path, records), ...)}, in TFDS's order.
  """
  path: str
  full_name: str
  form: str
  splits: dict


def open_stored(name, data_dir, flag='--data_dir'):
  """The prepared set `name` in data_dir, which `flag` gave.

  Raises:
    UserError: if it is not there, or in a form that cannot be read.
  """
  where = data_dir or os.environ.get('TFDS_DATA_DIR') or os.path.join(
      '~', 'tensorflow_datasets')
  where = local(where, flag)
  import tensorflow_datasets as tfds
  try:
    info = tfds.core.read_only_builder.builder_from_files(
        name, data_dir=where).info
  except Exception as e:
    raise errors.UserError(
        f'no prepared TFDS set {name!r} in {where!r}: give {flag}, the '
        'directory that TFDS prepared it in') from e
  form = info.file_format.value
  if form not in FORMATS:
    raise errors.UserError(f'{info.data_dir}: its format is {form}; expected '
                           f'{" or ".join(FORMATS)}')
  shards = {split: tuple(zip(map(str, s.filepaths), s.shard_lengths))
            for split, s in info.splits.items()}
  return Stored(str(info.data_dir), info.full_name, form, shards)


def local(path, flag):
  """The absolute path of a directory on this machine, or a mounted one."""
  if files.is_remote(path):
    raise errors.UserError(
        f'{flag}: {path!r} is a bucket; mount it (gcsfuse) and give the path '
        'of the mount')
  return files.absolute(path)


def read(path, form):
  """Yields a shard's records in order, verified.

  Raises:
    RunError: at the first one that is damaged.
  """
  try:
    yield from (_tfrecords(path) if form == 'tfrecord' else
                _array_records(path))
  except (OSError, ValueError, IndexError) as e:
    raise errors.RunError(f'cannot read {path!r}: {e}') from e


def write(path, form, records):
  """Writes a shard, which appears at `path` when it is whole.

  Returns:
    (number of records, bytes in them).
  """
  partial = f'{path}.{uuid.uuid4().hex}'   # a runner may try twice at a time
  count = size = 0
  try:
    writer = (_TfrecordWriter if form == 'tfrecord' else
              _array_record_writer)(partial)
    for record in records:
      writer.write(record)
      count, size = count + 1, size + len(record)
    writer.close()
    if form == 'array_record':
      stored = _array_record_reader(partial).num_records()
      if stored != count:
        raise OSError(f'it holds {stored} of {count} records')
  except errors.RunError:   # of what gives the records
    raise
  except (OSError, RuntimeError) as e:
    raise errors.RunError(f'cannot write {path!r}: {e}') from e
  os.replace(partial, path)
  return count, size


def file_name(name, split, form, shard, shards):
  """As TFDS names the files of a set."""
  return f'{name}-{split}.{form}-{shard:05d}-of-{shards:05d}'


def install(work, parts, target, name, split, form):
  """Moves the shards of a split to where they belong, without empty ones.

  Args:
    work: where they are now, as SPLIT-SHARD.
    parts: {'shard', 'records', 'bytes'} of each, in order.
    target: of the set.
    name, split, form: of the set.

  Returns:
    [(records, bytes) of each shard].
  """
  parts = [part for part in parts if part['records']]
  if not parts:
    raise errors.RunError(f'nothing is left of the split {split!r}')
  for i, part in enumerate(parts):
    os.rename(
        os.path.join(work, f'{split}-{part["shard"]}'),
        os.path.join(target, file_name(name, split, form, i, len(parts))))
  return [(part['records'], part['bytes']) for part in parts]


@contextlib.contextmanager
def new_directory(path):
  """Gives a directory to write into, which becomes `path` at the end.

  If that is not reached nothing is left of it; what a killed command left is
  removed by the next.

  Raises:
    UserError: if `path` is there already, or being made.
  """
  if os.path.exists(path):
    raise errors.UserError(f'{path!r} is there already, and is not overwritten;'
                           ' remove it or choose another place')
  partial = f'{path}.partial'
  try:
    os.makedirs(partial, exist_ok=True)
    lock = _lock(partial)
    for entry in os.scandir(partial):
      shutil.rmtree(entry) if entry.is_dir() else os.remove(entry)
  except BlockingIOError:
    raise errors.UserError(
        f'{path!r} is being made by another command') from None
  except OSError as e:
    raise errors.UserError(f'cannot make {path!r}: {e.strerror}') from e
  try:
    yield partial
    os.rename(partial, path)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    with contextlib.suppress(OSError):
      os.rmdir(os.path.dirname(path))   # if it is empty
    raise
  finally:
    os.close(lock)


def _lock(directory):
  """A descriptor that holds it; BlockingIOError if another process does."""
  lock = os.open(directory, os.O_RDONLY)
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(lock)
    raise
  except OSError:
    pass   # a file system without locks
  return lock


def describe(stored, partial, *, name, form, shards):
  """Writes what TFDS must know of a set made from another.

  Args:
    stored: the other one.
    partial: directory of the new one.
    name: of the new one.
    form: of its files.
    shards: {split: [(records, bytes), ...]}.
  """
  here = {path for split in stored.splits.values() for path, _ in split}
  for entry in os.scandir(stored.path):
    if entry.is_file() and entry.path not in here:
      shutil.copy(entry.path, partial)
  path = os.path.join(partial, 'dataset_info.json')
  with open(path) as f:
    info = json.load(f)
  info.update(name=name, fileFormat=form)
  for split in info['splits']:
    lengths, sizes = zip(*shards[split['name']])
    split.update(filepathTemplate=_TEMPLATE, numBytes=str(sum(sizes)),
                 shardLengths=[str(n) for n in lengths])
  with open(path, 'w') as f:
    json.dump(info, f, indent=2)


def _tfrecords(path):
  """A record is length, its checksum, the data, and their checksum."""
  with open(path, 'rb', buffering=1 << 20) as f:
    while head := f.read(12):
      length, = struct.unpack('<Q', head[:8].ljust(8))
      if _checksum(head[:8]) != head[8:]:
        raise ValueError('it is damaged')
      data, end = f.read(length), f.read(4)
      if _checksum(data) != end:
        raise ValueError('it is damaged')
      yield data


class _TfrecordWriter:
  """As the records are read above."""

  def __init__(self, path):
    self._file = open(path, 'wb', buffering=1 << 20)
    self.close = self._file.close

  def write(self, data):
    head = struct.pack('<Q', len(data))
    self._file.write(head + _checksum(head) + data + _checksum(data))


def _checksum(data):
  import google_crc32c
  crc = google_crc32c.value(data)
  return struct.pack(
      '<I', (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _array_records(path):
  reader = _array_record_reader(path)
  try:
    for i in range(reader.num_records()):
      yield reader.read([i])[0]
  finally:
    reader.close()


def _array_record_reader(path):
  from array_record.python import array_record_module
  return array_record_module.ArrayRecordReader(path)


def _array_record_writer(path):
  from array_record.python import array_record_module
  return array_record_module.ArrayRecordWriter(path, 'group_size:1')
