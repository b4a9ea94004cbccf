"""Converts a TFDS set from TFRecord to ArrayRecord, record by record."""
from collections.abc import Sequence
import concurrent.futures
import multiprocessing
import os
import threading

from mixer.core import errors
from mixer.core import tables
from mixer.preparation import set_directory
from mixer.preparation import shard_files

_NEW_FORMAT = 'array_record'
# A shard to convert: (its file, the number of records in it, the new file).
_Job = tuple[str, int, str]


def convert(name: str, *, data_dir: str | None, out: str, workers: int
            ) -> tuple[str, dict[str, list[tuple[int, int]]]]:
  """Writes the set `name` to another directory, in the same order.

  Args:
    name: the name of a TFDS set, perhaps with a config and a version.
    data_dir: the TFDS directory that holds it; None for TFDS's default.
    out: the TFDS directory to write to.
    workers: number of processes.

  Returns:
    (the new set's directory, {split: [(records, bytes) of each shard]}).

  Raises:
    UserError: if the set is not stored as TFRecord, or the new one exists.
    RunError: if a record is damaged or missing.
  """
  stored = set_directory.open_stored(name, data_dir)
  if stored.file_format != 'tfrecord':
    raise errors.UserError(
        f'--name: {name} is stored as {stored.file_format} already in '
        f'{stored.path!r}; expected tfrecord')
  path = os.path.join(set_directory.local_path(out, '--out'), stored.full_name)
  base = stored.full_name.partition('/')[0]
  with set_directory.create(path) as partial:
    jobs = [
        (source, count, os.path.join(partial, shard_files.file_name(
            base, split, _NEW_FORMAT, i, len(shards))))
        for split, shards in stored.splits.items()
        for i, (source, count) in enumerate(shards)]
    results = iter(_convert_shards(jobs, workers))
    converted = {split: [next(results) for _ in shards]
                 for split, shards in stored.splits.items()}
    set_directory.copy_metadata(
        stored, partial, name=base, file_format=_NEW_FORMAT, shards=converted)
  return path, converted


def _convert_shards(jobs: Sequence[_Job], workers: int
                    ) -> list[tuple[int, int]]:
  """Runs `_convert_shard` on each job; the first error cancels the others."""
  # Not forked: a child of a process with threads can inherit a held lock.
  pool = concurrent.futures.ProcessPoolExecutor(
      workers, mp_context=multiprocessing.get_context('spawn'),
      initializer=_exit_with_parent)
  try:
    return list(tables.track(
        pool.map(_convert_shard, jobs), 'converting', total=len(jobs)))
  finally:
    pool.shutdown(cancel_futures=True)


def _exit_with_parent() -> None:
  """Makes a worker exit with its parent; it would go on writing otherwise."""
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch():
    parent.join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _convert_shard(job: _Job) -> tuple[int, int]:
  """Returns (records, bytes) of the new shard."""
  source, expected, target = job
  count, size = shard_files.write(
      target, _NEW_FORMAT, shard_files.read(source, 'tfrecord'))
  if count != expected:
    raise errors.RunError(f'{source!r} has {count} records, and its data set '
                          f'lists {expected}; prepare the data set again')
  return count, size
