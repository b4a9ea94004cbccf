"""A run's directory: who may write to it, and what it was started with."""
import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import zlib

from etils import epath
import jax

from mixer.core import errors
from mixer.core import files
from mixer.core import processes
from mixer.core.log import log

# What a run keeps, by name inside its workdir.
CONFIG = 'config.json'
CARD = 'model.json'
METRICS = 'metrics.jsonl'
PARAMETERS = 'parameters.txt'
CHECKPOINTS = 'checkpoints'
COMPILED = 'compiled'
LOCK = '.lock'

# What may change between a run and its continuation, by the start of the key:
# where and how it runs, and how it is looked at.
_FREE = ('data.dir', 'data.max_bad_fraction', 'run.log_every', 'evals',
         'fewshot', 'checkpoint', 'sharding', 'model.remat', 'model.scan',
         'run.micro_batches', 'run.heartbeat_timeout_seconds')
_SEEN_SECONDS = 10   # until a file of one host is seen by another


@contextlib.contextmanager
def claimed(path):
  """Makes the directory and holds it against a second run.

  A bucket has no locks: there it is only made. Of several processes the first
  holds it for all.

  Raises:
    UserError: if it cannot be written, or another process holds it.
  """
  if not processes.first():
    yield
    return
  if files.is_remote(path):
    epath.Path(path).mkdir(parents=True, exist_ok=True)
    yield
    return
  try:
    os.makedirs(path, exist_ok=True)
    file = open(os.path.join(path, '.lock'), 'a+')
  except OSError as e:
    raise errors.UserError(f'--workdir: cannot write to {path!r}: '
                           f'{e.strerror}; choose another')
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise errors.UserError(
          f'--workdir: {path!r} is in use by another run ({file.read()}); stop '
          'it or choose another') from None
    except OSError as e:
      log.info('%s cannot be locked (%s): see that only one run uses it', path,
               e.strerror)
    file.truncate(0)
    file.write(f'process {os.getpid()} on {socket.gethostname()}')
    file.flush()
    os.fsync(file.fileno())   # so that other hosts see it
    yield


def meet(path):
  """Returns when every process has come here, and sees what the first claimed.

  Raises:
    UserError: if one sees another directory, such as on a disk of its own; it
      would train to the first checkpoint and hang.
  """
  if files.is_remote(path):
    processes.meet('the workdir is there')
    return
  read = lambda: zlib.crc32((files.read(
      os.path.join(path, '.lock')) or '').encode()) >> 1
  wanted, end = processes.of_first(read()), time.monotonic() + _SEEN_SECONDS
  while read() != wanted and time.monotonic() < end:
    time.sleep(0.1)
  if not processes.all_agree(read() == wanted):
    raise errors.UserError(
        f'--workdir: {path!r} is not the same directory for all processes; '
        'choose one that all hosts share')


def agree(path, config):
  """Writes the config of a new run, or checks that an old one's is the same.

  Args:
    path: the workdir.
    config: nested dict.

  Raises:
    UserError: if it differs, with every key and both values.
  """
  if not processes.first():
    return
  file = os.path.join(path, 'config.json')
  new = json.loads(json.dumps(config))
  text = files.read(file)
  if text is not None:
    old = json.loads(text)
    differ = [
        f'{k} was {_show(flat_old.get(k))}, is {_show(flat_new.get(k))}'
        for flat_old, flat_new in [(_flat(old), _flat(new))]
        for k in sorted(flat_old.keys() | flat_new.keys())
        if flat_old.get(k) != flat_new.get(k) and not k.startswith(_FREE)]
    if differ:
      raise errors.UserError(
          f'--workdir: {path!r} holds a run of another config: '
          f'{"; ".join(differ)}. Give the same config to go on with it, or '
          'another --workdir')
  write_json(file, new)


class BadImages:
  """Notes images that cannot be decoded in the workdir's bad_images.jsonl, each
  once, also over restarts."""

  def __init__(self, path):
    number = jax.process_index()
    name = f'bad_images.{number}.jsonl' if number else 'bad_images.jsonl'
    self._path = os.path.join(path, name)
    text = files.read(self._path) or ''
    self._lines = dict.fromkeys(text.splitlines())
    self._lock = threading.Lock()

  def __call__(self, found):
    """Adds a dict of strings."""
    line = json.dumps(found)
    with self._lock:   # images are read by several threads
      if line not in self._lines:
        self._lines[line] = None
        if files.is_remote(self._path):   # a bucket cannot append
          files.write(self._path, ''.join(f'{x}\n' for x in self._lines))
        else:
          with open(self._path, 'a') as f:
            f.write(f'{line}\n')


def write_json(path, value):
  """Writes a JSON file for people, whole or not at all; process 0 does."""
  if processes.first():
    files.write(path, json.dumps(value, indent=2) + '\n')


def _flat(tree, prefix=''):
  out = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      out.update(_flat(value, f'{prefix}{key}.'))
    elif value is not None:
      out[prefix + key] = value
  return out


def _show(value):
  return 'unset' if value is None else repr(value)
