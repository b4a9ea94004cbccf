"""The lock of a workdir, so that no two runs write to it."""
from collections.abc import Iterator
import contextlib
import fcntl
import os
import pathlib
import socket
import time
from typing import IO
import zlib

from etils import epath

from mixer.core import errors
from mixer.core import files
from mixer.core import processes
from mixer.core import workdir
from mixer.core.log import log

# How long a network file system may take to show one host's file to another.
_VISIBLE_SECONDS = 10


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
  workdir.check_path(path)
  if not processes.first():
    yield
    return
  if files.is_remote(path):
    epath.Path(path).mkdir(parents=True, exist_ok=True)
    yield
    return
  lock = os.path.join(path, workdir.LOCK)
  made = not os.path.exists(lock)
  fresh = [p for p in (pathlib.Path(path), *pathlib.Path(path).parents)
           if not p.exists()]
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
          for folder in fresh:
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
      (files.read(os.path.join(path, workdir.LOCK)) or '').encode()) >> 1
  wanted, end = processes.of_first(seen()), time.monotonic() + _VISIBLE_SECONDS
  while seen() != wanted and time.monotonic() < end:
    time.sleep(0.1)
  if not processes.all_agree(seen() == wanted):
    raise errors.UserError(
        f'--workdir: {str(path)!r} is not the same directory for all '
        'processes; choose one that all hosts share')
