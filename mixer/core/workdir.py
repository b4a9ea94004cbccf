"""A run's directory: the names of its files, and its config."""
from collections.abc import Mapping
from collections.abc import Sequence
import json
import os
import shlex
import threading
from typing import Any

import jax

from mixer.core import errors
from mixer.core import files
from mixer.core import processes

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

# Keys, by their beginning, that may change when a run is resumed: they say
# where and how it computes and how it is evaluated, but not what it learns.
_MAY_CHANGE = ('data.dir', 'data.max_bad_fraction', 'run.log_every', 'evals',
               'fewshot', 'checkpoint', 'sharding', 'model.remat', 'model.scan',
               'run.patience', 'run.micro_batches', 'run.nonfinite',
               'run.heartbeat_timeout_seconds', 'run.stall_seconds')
_LENGTH = ('run.total_steps', 'run.total_epochs')
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
  stored = _stored(path)
  return stored and {k: v for k, v in stored.items() if k != _PROVENANCE}


def card_of(path: files.Path) -> dict[str, Any] | None:
  """Returns the card (`core.cards`) of the run in a workdir, or None without
  one."""
  text = files.read(os.path.join(path, CARD))
  return json.loads(text) if text else None


def provenance(path: files.Path) -> dict[str, Any] | None:
  """Returns what the run in a workdir was made with, see `core.provenance`.

  Returns:
    None if config.json does not say it, or there is none.
  """
  return (_stored(path) or {}).get(_PROVENANCE)


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


def agree(path: files.Path, config: Mapping[str, Any]) -> None:
  """Writes a config, unless `check_config` refuses it.

  Args:
    path: the workdir.
    config: nested dict, fit for JSON.

  Raises:
    UserError: as `check_config` raises it.
  """
  check_config(path, config)
  write_json(os.path.join(path, CONFIG), config)


def check_config(path: files.Path, config: Mapping[str, Any]) -> None:
  """Checks that a workdir holds no config, or the same; writes nothing.

  Args:
    path: the workdir.
    config: nested dict, fit for JSON.

  Raises:
    UserError: if a key differs that must not; names each with both values.
  """
  if not processes.first():
    return
  new, old = json.loads(json.dumps(config)), config_of(path)
  if old is not None:
    was, now = flat(old), flat(new)
    free = _MAY_CHANGE + (_LENGTH if _any_length(was, now) else ())
    differ = [k for k in sorted(was.keys() | now.keys())
              if was.get(k) != now.get(k) and not k.startswith(free)]
    if differ:
      listed = '; '.join(f'{k} was {_shown(was.get(k))}, is '
                         f'{_shown(now.get(k))}' for k in differ)
      raise errors.UserError(
          f'--workdir: {str(path)!r} holds a run of another config: {listed}. '
          + (_train_on(path, now) if set(differ) <= set(_LENGTH) else
             'Give the same config to resume it, or another --workdir'))


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


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns {'section.key': value}, without keys that are not set.

  Args:
    tree: nested dict, such as a config.
    prefix: put before each key.
  """
  out: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      out.update(flat(value, f'{prefix}{key}.'))
    elif value is not None:
      out[prefix + key] = value
  return out


def _any_length(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
  """Returns whether the learning rate by step is the same for any length.

  A warm-up that is not shorter than the run is cut, see `schedules.make`.

  Args:
    was, now: as `flat` returns them.
  """
  warmup = now.get('schedule.warmup_steps', 0)
  return now.get('schedule.decay') == 'constant' and (
      not warmup or all(each.get('run.total_steps', 0) > warmup
                        for each in (was, now)))


def _train_on(path: files.Path, now: Mapping[str, Any]) -> str:
  """Returns how to train further a run whose length cannot change."""
  flags = f'--workdir=NEW --config.start.weights={shlex.quote(str(path))}'
  if now.get('start.dont_load'):
    flags += ' --config.start.dont_load='
  return (
      'Its learning rate depends on the length (schedule.decay='
      f'{now.get("schedule.decay")}, schedule.warmup_steps='
      f'{now.get("schedule.warmup_steps", 0)}), so a run of another length is '
      f'another run. To train on from its weights, add {flags} to the command; '
      'the length is then that of the new run alone')


def _stored(path: files.Path) -> dict[str, Any] | None:
  """Returns what config.json holds, or None without one."""
  text = files.read(os.path.join(path, CONFIG))
  return None if text is None else json.loads(text)


def _shown(value: object) -> str:
  return 'unset' if value is None else repr(value)
