"""A run's directory: the names of its files, its config, and its lock."""
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import fcntl
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any
from typing import IO
import zlib

from etils import epath
from flax import traverse_util
import jax

from mixer.core import errors
from mixer.core import files
from mixer.core import processes
from mixer.core.log import log

_PROVENANCE = 'provenance'   # a key of config.json that is no section
# Names inside a workdir.
CONFIG = 'config.json'
CARD = 'model.json'
METRICS = 'metrics.jsonl'
PARAMETERS = 'parameters.txt'
BAD_IMAGES = 'bad_images.jsonl'
NONFINITE = 'nonfinite.jsonl'
CHECKPOINTS = 'checkpoints'
DIVERGED = 'diverged'
COMPILED = 'compiled'
REPORT = 'report.html'
LOCK = '.lock'

# How long a network file system may take to show one host's file to another.
_VISIBLE_SECONDS = 10
_BUCKETS = ('gs://', 's3://', 'az://')   # what epath can write to


def run_of(checkpoint: files.Path) -> str | None:
  """Returns the workdir of WORKDIR/checkpoints/STEP or WORKDIR/diverged/STEP.

  Returns:
    None if the path is not that of a run's checkpoint.
  """
  folder, _, step = str(checkpoint).rstrip('/').rpartition('/')
  run, _, name = folder.rpartition('/')
  known = name in (CHECKPOINTS, DIVERGED) and step.isdigit()
  return run if run and known else None


def config_of(path: files.Path) -> dict[str, Any] | None:
  """Returns the config of the run in a workdir, or None without one."""
  stored = files.read_json(os.path.join(path, CONFIG))
  return stored and {k: v for k, v in stored.items() if k != _PROVENANCE}


def card_of(path: files.Path) -> dict[str, Any] | None:
  """Returns the card of the run in a workdir (see `models.catalog`), or None
  without one."""
  return files.read_json(os.path.join(path, CARD))


def provenance(path: files.Path) -> dict[str, Any] | None:
  """Returns what the run in a workdir was made with, see `core.provenance`.

  Returns:
    None if config.json does not say it, or there is none.
  """
  return (files.read_json(os.path.join(path, CONFIG)) or {}).get(_PROVENANCE)


def write_config(path: files.Path, config: Mapping[str, Any],
                 made: Mapping[str, Any] | None) -> None:
  """Writes config.json, with what the run was made with if that is known."""
  more = {_PROVENANCE: made} if made else {}
  write_json(os.path.join(path, CONFIG), dict(config, **more))


def check_path(path: files.Path) -> None:
  """Raises a UserError if checkpoints under a path could not be read again.

  Orbax takes some characters of a path for a pattern of file names, so it
  saves there but finds nothing.

  Args:
    path: a workdir.
  """
  text = files.absolute(path)
  wrong = [c for c in '[]\\' if c in text]
  if wrong:
    raise errors.UserError(
        f'--workdir: {text!r} has {" and ".join(wrong)} in its path, and '
        'checkpoints there could not be read again; choose a path without '
        '[, ] and \\')
  if files.is_remote(path) and not text.startswith(_BUCKETS):
    raise errors.UserError(
        f'--workdir: {text!r}: expected a local folder, or an address that '
        f'begins with {" or ".join(_BUCKETS)}')


def keep_compiled(path: files.Path) -> None:
  """Makes JAX keep compiled programs in the workdir, for the next start.

  If JAX_COMPILATION_CACHE_DIR is set, they are kept there instead.
  """
  if not jax.config.jax_compilation_cache_dir:   # type: ignore[attr-defined]
    jax.config.update('jax_compilation_cache_dir', os.path.join(
        files.absolute(path), COMPILED))


@contextlib.contextmanager
def claimed(path: files.Path) -> Iterator[None]:
  """Makes a workdir and locks it, so that no second run writes to it.

  Process 0 holds the lock for all processes. Buckets have no locks: there the
  directory is only made. If the block raises a UserError, what was made here
  is removed again, unless other files are in it.

  Raises:
    UserError: if the path cannot be a workdir, the directory is not writable,
      or another run holds it.
  """
  check_path(path)
  if not processes.first():
    yield
    return
  if files.is_remote(path):
    epath.Path(path).mkdir(parents=True, exist_ok=True)
    yield
    return
  lock = os.path.join(path, LOCK)
  made = not os.path.exists(lock)
  fresh = [p for p in (pathlib.Path(path, COMPILED), pathlib.Path(path),
                       *pathlib.Path(path).parents) if not p.exists()]
  file, locked = _lock(path, lock)
  with file:
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    os.fsync(file.fileno())   # `meet` reads it on other hosts
    try:
      yield
    except errors.UserError:
      if made and locked:
        with contextlib.suppress(OSError):   # other files are there
          os.remove(lock)
          for folder in filter(os.path.exists, fresh):
            folder.rmdir()
      raise


def _lock(path: files.Path, lock: str) -> tuple[IO[str], bool]:
  """Makes a workdir; returns its lock file, and whether it could be locked."""
  while True:
    try:
      os.makedirs(path, exist_ok=True)
      file = open(lock, 'a+')
    except OSError as e:
      raise errors.UserError(f'--workdir: cannot write to {str(path)!r}: '
                             f'{e.strerror}; choose another')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      with file:
        file.seek(0)
        raise errors.UserError(
            f'--workdir: {str(path)!r} is in use by another run '
            f'({file.read()}); stop it or choose another') from None
    except OSError as e:   # some network file systems have no locks
      log.info('%s cannot be locked (%s): make sure that only one run uses it',
               path, e.strerror)
      return file, False
    # A command that was refused may have removed the file since it was opened;
    # a lock on a removed file excludes nobody.
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
        return file, True
    file.close()


def meet(path: files.Path) -> None:
  """Waits until all processes see the workdir that process 0 claimed.

  Raises:
    UserError: if a process sees another directory, such as one on its own
      host's disk. Saving the first checkpoint would hang.
  """
  if files.is_remote(path):
    processes.meet('the workdir is there')
    return
  seen = lambda: zlib.crc32(
      (files.read(os.path.join(path, LOCK)) or '').encode()) >> 1
  wanted, end = processes.of_first(seen()), time.monotonic() + _VISIBLE_SECONDS
  while seen() != wanted and time.monotonic() < end:
    time.sleep(0.1)
  if not processes.all_agree(seen() == wanted):
    raise errors.UserError(
        f'--workdir: {str(path)!r} is not the same directory for all '
        'processes; choose one that all hosts share')


class BadImages:
  """Writes images that cannot be decoded to the workdir's bad_images.jsonl.

  Nothing is written before `begin`, so a refused run leaves the file as it was.
  Each image is written once, also if the run is restarted. Every process writes
  a file of its own: process 1 writes bad_images.1.jsonl.
  """

  def __init__(self, path: files.Path):
    number = jax.process_index()
    stem, suffix = os.path.splitext(BAD_IMAGES)
    name = f'{stem}.{number}{suffix}' if number else BAD_IMAGES
    self._path = os.path.join(path, name)
    text = files.read(self._path) or ''
    self._lines = dict.fromkeys(text.splitlines())
    self._lock = threading.Lock()
    self._held: list[str] | None = []

  def __call__(self, found: Mapping[str, str]) -> None:
    """Writes what is known of one image, unless it was written before."""
    line = json.dumps(found)
    with self._lock:   # several threads read images
      if line not in self._lines:
        self._lines[line] = None
        if self._held is None:
          self._write([line])
        else:
          self._held.append(line)

  def begin(self) -> None:
    """Writes the images found so far, and from now on each at once."""
    with self._lock:
      held, self._held = self._held, None
      if held:
        self._write(held)

  def _write(self, lines: Sequence[str]) -> None:
    if files.is_remote(self._path):   # a bucket cannot append
      files.write(self._path, ''.join(f'{x}\n' for x in self._lines))
    else:
      with open(self._path, 'a') as f:
        f.writelines(f'{line}\n' for line in lines)


def write_json(path: files.Path, value: Any) -> None:
  """Writes an indented JSON file atomically; only process 0 writes."""
  if processes.first():
    files.write(path, json.dumps(value, indent=2) + '\n')


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
  """Returns {'section.key': value} of a nested dict, without None values."""
  return {key: value for key, value in traverse_util.flatten_dict(
      tree, sep='.').items() if value is not None}
