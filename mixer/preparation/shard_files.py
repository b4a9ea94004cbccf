"""Reads and writes whole shards, in both file formats of TFDS.

`mixer.prepare` reads every record once, in order; `data.array_records` and
`data.tfrecord` read the same files at random. Nothing here imports TensorFlow.
"""
from collections.abc import Iterable
from collections.abc import Iterator
import os
from typing import Any
import uuid

from mixer.core import errors
from mixer.data import tfrecord_sequence

FORMATS = ('array_record', 'tfrecord')   # as TFDS calls them


def read(path: str, file_format: str) -> Iterator[bytes]:
  """Yields the records of a shard in order, each checked against its checksum.

  Callers compare the number of records with the data set's own: a file that was
  cut short may end early without an error.

  Raises:
    RunError: at the first damaged record, or if the file cannot be read.
  """
  try:
    yield from (tfrecord_sequence.read_all(path) if file_format == 'tfrecord'
                else _array_records(path))
  except (OSError, ValueError, IndexError) as e:
    raise errors.RunError(f'cannot read {path!r}: {e}') from e


def write(path: str, file_format: str, records: Iterable[bytes]
          ) -> tuple[int, int]:
  """Writes a shard; the file appears at `path` once it is complete.

  Returns:
    (number of records, bytes in them without the format's own).

  Raises:
    RunError: if the file cannot be written.
  """
  # Unique, because a Beam runner may try the same shard twice at a time.
  partial = f'{path}.{uuid.uuid4().hex}'
  count = size = 0
  try:
    writer = (tfrecord_sequence.Writer(partial) if file_format == 'tfrecord'
              else _array_record_writer(partial))
    for record in records:
      writer.write(record)
      count, size = count + 1, size + len(record)
    writer.close()
    if file_format == 'array_record':
      # An ArrayRecord file that was cut short opens without an error.
      stored = _array_record_reader(partial).num_records()
      if stored != count:
        raise OSError(f'it holds {stored} of {count} records')
  except errors.RunError:   # raised by `records`, not by the writer
    raise
  except (OSError, RuntimeError) as e:
    raise errors.RunError(f'cannot write {path!r}: {e}') from e
  os.replace(partial, path)
  return count, size


def file_name(name: str, split: str, file_format: str, shard: int, shards: int
              ) -> str:
  """Returns the name that TFDS gives to a shard's file."""
  return f'{name}-{split}.{file_format}-{shard:05d}-of-{shards:05d}'


def _array_records(path: str) -> Iterator[bytes]:
  reader = _array_record_reader(path)
  try:
    for i in range(reader.num_records()):
      yield reader.read([i])[0]
  finally:
    reader.close()


def _array_record_reader(path: str) -> Any:
  from array_record.python import array_record_module
  return array_record_module.ArrayRecordReader(path)


def _array_record_writer(path: str) -> Any:
  from array_record.python import array_record_module
  # One record a group, so that a reader can fetch any record by itself.
  return array_record_module.ArrayRecordWriter(path, 'group_size:1')
