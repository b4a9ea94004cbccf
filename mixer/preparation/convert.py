"""Turns a prepared TFRecord set into ArrayRecord, record by record."""
import concurrent.futures
import multiprocessing
import os
import threading

from rich import progress

from mixer.core import errors
from mixer.preparation import shard_files

_FORM = 'array_record'


def convert(name, *, data_dir, out, workers):
  """Writes the set `name` of data_dir to out, in the same order.

  Args:
    name: of a TFDS set, perhaps with a config and a version.
    data_dir, out: data_dirs of TFDS.
    workers: processes.

  Returns:
    (the new directory, {split: [(records, bytes) of each shard]}).

  Raises:
    UserError: if it is no TFRecord set, or the new one is there already.
    RunError: if a record is damaged, or one is missing.
  """
  stored = shard_files.open_stored(name, data_dir)
  if stored.form != 'tfrecord':
    raise errors.UserError(f'--name: {name} is stored as {stored.form} already '
                           f'in {stored.path!r}; expected tfrecord')
  path = os.path.join(shard_files.local(out, '--out'), stored.full_name)
  base = stored.full_name.partition('/')[0]
  with shard_files.new_directory(path) as partial:
    jobs = [
        (source, count, os.path.join(partial, shard_files.file_name(
            base, split, _FORM, i, len(shards))))
        for split, shards in stored.splits.items()
        for i, (source, count) in enumerate(shards)]
    done = iter(_all(jobs, workers))
    shards = {split: [next(done) for _ in shards]
              for split, shards in stored.splits.items()}
    shard_files.describe(stored, partial, name=base, form=_FORM, shards=shards)
  return path, shards


def _all(jobs, workers):
  """What `_shard` returns for each job; the first error ends the others."""
  pool = concurrent.futures.ProcessPoolExecutor(
      workers, mp_context=multiprocessing.get_context('spawn'),
      initializer=_end_with_parent)
  try:
    return list(progress.track(pool.map(_shard, jobs), 'converting',
                               total=len(jobs), transient=True))
  finally:
    pool.shutdown(cancel_futures=True)


def _end_with_parent():
  """A worker outlives a command that was killed, otherwise, and writes on."""
  def watch():
    multiprocessing.parent_process().join()
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _shard(job):
  source, expected, target = job
  count, size = shard_files.write(target, _FORM, shard_files.read(source, 'tfrecord'))
  if count != expected:
    raise errors.RunError(f'{source!r} has {count} records, and its data set '
                          f'lists {expected}; prepare it again')
  return count, size
