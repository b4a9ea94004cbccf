"""Directories of TFDS data sets: opens them, and creates new ones at once."""
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from typing import Any

from mixer.core import errors
from mixer.core import files
from mixer.data import checks
from mixer.data import set_features
from mixer.preparation import shard_files

# A file in each set that mixer.prepare made: its source, settings and counts.
PROVENANCE = 'mixer.json'
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'


@dataclasses.dataclass(frozen=True)
class StoredSet:
  """The files of a set that TFDS prepared.

  Attributes:
    path: the directory of its version.
    full_name: name, config and version, such as 'imagenet2012/5.1.0'.
    file_format: one of shard_files.FORMATS.
    splits: {split: ((path, number of records) of each shard)}, in TFDS's order.
  """
  path: str
  full_name: str
  file_format: str
  splits: Mapping[str, Sequence[tuple[str, int]]]


def open_stored(name: str, data_dir: str | None, flag: str = '--data_dir'
                ) -> StoredSet:
  """Returns the files of the TFDS set `name` in data_dir.

  Args:
    name: the set's name, perhaps with a config and a version.
    data_dir: the TFDS directory; None for TFDS's default.
    flag: the flag that gave data_dir, for messages.

  Raises:
    UserError: if the set is not there, or its files have another format than
      shard_files.FORMATS.
  """
  directory = local_path(data_dir or os.environ.get('TFDS_DATA_DIR') or
                         os.path.join('~', 'tensorflow_datasets'), flag)
  import tensorflow_datasets as tfds
  try:
    set_features.check(name, directory)
    info = tfds.core.read_only_builder.builder_from_files(
        name, data_dir=directory).info
  except errors.UserError:
    raise
  except Exception as e:   # TFDS raises many kinds for what is not there
    raise errors.UserError(
        f'no prepared TFDS set {name!r} in {directory!r}; set {flag} to the '
        'directory in which TFDS prepared it') from e
  file_format = info.file_format.value
  if file_format not in shard_files.FORMATS:
    raise errors.UserError(f'{info.data_dir}: the file format is {file_format};'
                           f' expected {" or ".join(shard_files.FORMATS)}')
  splits = {name: tuple(zip(map(str, split.filepaths), split.shard_lengths))
            for name, split in info.splits.items()}
  return StoredSet(str(info.data_dir), info.full_name, file_format, splits)


def write_provenance(path: str, facts: Mapping[str, Any], contents: object
                     ) -> None:
  """Writes the file that says how a set was made.

  Args:
    path: the directory of the set.
    facts: its source, settings and counts.
    contents: whatever the images and labels depend on. A hash of it becomes a
      part of the set's fingerprint, so that a run notices another set of the
      same name.
  """
  digest = hashlib.sha256(ascii(contents).encode()).hexdigest()[:16]
  files.write(os.path.join(path, PROVENANCE), json.dumps(
      dict(facts, contents=digest), indent=2))


def local_path(path: str, flag: str) -> str:
  """Returns the absolute path of a local or mounted directory.

  Args:
    path: as the user gave it.
    flag: the flag that gave it, for the message.

  Raises:
    UserError: if the path is a bucket: file locks and renames, on which
      `create` relies, do not exist there.
  """
  if files.is_remote(path):
    raise errors.UserError(
        f'{flag}: {path!r} is a bucket; mount it (gcsfuse) and give the path '
        'of the mount')
  return files.absolute(path)


def move_shards(work: str, reports: Iterable[Mapping[str, Any]], target: str,
                name: str, split: str, file_format: str
                ) -> list[tuple[int, int]]:
  """Moves the shards of a split into its set, without the empty ones.

  TFDS numbers the files of a split without gaps, so the names are known only
  when every shard is written.

  Args:
    work: the directory that holds them as SPLIT-SHARD.
    reports: {'shard', 'records', 'bytes'} of each shard of the split, in order.
    target: the directory of the set.
    name: the name of the set.
    split: the name of the split.
    file_format: one of shard_files.FORMATS.

  Returns:
    [(records, bytes) of each shard].

  Raises:
    RunError: if all shards are empty.
  """
  filled = [report for report in reports if report['records']]
  if not filled:
    raise errors.RunError(f'no record is left in the split {split!r}')
  for i, report in enumerate(filled):
    file = shard_files.file_name(name, split, file_format, i, len(filled))
    os.rename(os.path.join(work, f'{split}-{report["shard"]}'),
              os.path.join(target, file))
  return [(report['records'], report['bytes']) for report in filled]


@contextlib.contextmanager
def create(path: str) -> Iterator[str]:
  """Gives a directory to write into, which becomes `path` at the end.

  After an error nothing of it remains. What a killed command left behind is
  removed by the next one that makes the same directory.

  Raises:
    UserError: if `path` exists, cannot be made, or another command is making
      it.
  """
  if os.path.exists(path):
    raise errors.UserError(f'{path!r} exists already; remove it or choose '
                           'another place')
  partial = f'{path}.partial'
  made: list[str] = []   # the folders above it that are new, innermost first
  above = os.path.dirname(os.path.abspath(path))
  while not os.path.exists(above):
    made.append(above)
    above = os.path.dirname(above)
  try:
    os.makedirs(partial, exist_ok=True)
    lock = _lock(partial)
    for entry in os.scandir(partial):
      shutil.rmtree(entry) if entry.is_dir() else os.remove(entry)
  except BlockingIOError:
    raise errors.UserError(f'another command is making {path!r} now; wait for '
                           'it, or choose another place') from None
  except OSError as e:
    raise errors.UserError(f'cannot make {path!r}: {e.strerror}') from e
  try:
    yield partial
    os.rename(partial, path)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    with contextlib.suppress(OSError):   # another version may be there
      for folder in made:
        os.rmdir(folder)
    raise
  finally:
    os.close(lock)


def _lock(directory: str) -> int:
  """Locks a directory until the returned file descriptor is closed.

  The system releases the lock of a killed process too. Raises BlockingIOError
  if another process holds it.
  """
  lock = os.open(directory, os.O_RDONLY)
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(lock)
    raise
  except OSError:
    pass   # some network file systems have no locks
  return lock


def copy_metadata(stored: StoredSet, target: str, *, name: str,
                  file_format: str,
                  shards: Mapping[str, Sequence[tuple[int, int]]]) -> None:
  """Writes the metadata of a set that was made from another one.

  Args:
    stored: the other set; all its files but the shards are copied, and if it
      is noted as checked, so is the new one.
    target: the directory of the new set, which holds its shards.
    name: the name of the new set.
    file_format: one of shard_files.FORMATS, of the new set.
    shards: {split: [(records, bytes) of each shard]} of the new set.
  """
  old_shards = {path for split in stored.splits.values() for path, _ in split}
  for entry in os.scandir(stored.path):
    if entry.is_file() and entry.path not in old_shards and (
        not entry.name.startswith(checks.PREFIX)):
      shutil.copy(entry.path, target)
  path = os.path.join(target, 'dataset_info.json')
  with open(path) as f:
    info = json.load(f)
  info.update(name=name, fileFormat=file_format)
  for split in info['splits']:
    lengths, sizes = zip(*shards[split['name']])
    split.update(filepathTemplate=_TEMPLATE, numBytes=str(sum(sizes)),
                 shardLengths=[str(n) for n in lengths])
  with open(path, 'w') as f:
    json.dump(info, f, indent=2)
  if os.path.exists(checks.mark_of(stored.path)):
    files.write(checks.mark_of(target), '')
