"""Weights of a workdir: which checkpoint, its parameters, and a checksum."""
from collections.abc import Mapping
import hashlib
import os
from typing import Any

from etils import epath

from mixer.core import checkpoint_reader
from mixer.core import errors
from mixer.core import files
from mixer.core import workdir
from mixer.core.log import log
from mixer.pretrained import fetch
from mixer.pretrained import registry


def resolved(section: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config's `start` section that names one checkpoint of a workdir.

  A workdir whose run still goes on has another checkpoint a moment later.

  Args:
    section: its `weights` and `best` are as `network.open_network` takes them;
      `weights` may also be empty.

  Raises:
    UserError: if a workdir has no checkpoint, or no best one.
  """
  weights = section['weights']
  there = epath.Path(files.absolute(weights)) / workdir.CHECKPOINTS
  if (not weights or registry.find(weights) or fetch.is_url(weights)
      or not there.is_dir()):
    return dict(section)
  try:
    found = checkpoint_reader.find(weights, section['best'])
  except errors.UserError as e:
    raise errors.UserError(f'start.weights: {e}') from e
  return dict(section, weights=found, best=False)


def read(path: str, best: bool = False, average: bool = False,
         tries: int = 5) -> tuple[str, dict[str, Any]]:
  """Returns the directory of a workdir's checkpoint and its parameters.

  A run that saves meanwhile may remove the checkpoint. Then its next one is
  read.

  Args:
    path, best: as `checkpoint_reader.find` takes them.
    average: as `checkpoint_reader.load_params` takes it.
    tries: how many checkpoints to try.

  Raises:
    UserError: if there is no checkpoint, or it cannot be read and no other has
      taken its place.
  """
  where = checkpoint_reader.find(path, best)
  try:
    return where, checkpoint_reader.load_params(where, average)
  except errors.UserError:
    # A run has saved another checkpoint before it removes one.
    if tries == 1 or checkpoint_reader.find(path, best) == where:
      raise
  log.info('%s was removed meanwhile; reading the next checkpoint', where)
  return read(path, best, average, tries - 1)


def of(weights: str) -> dict[str, str]:
  """Returns `weights` and their `sha256`, in hexadecimal.

  It is that of the file. For a checkpoint, which is a folder, it is that of the
  lines 'SHA-256 PATH' of the files in its params/, sorted by path.

  Args:
    weights: as `resolved` returns them, and readable.
  """
  return dict(weights=weights, sha256=_checksum(weights))


def _checksum(weights: str) -> str:
  release = registry.find(weights)
  source = release.url if release and weights == release.name else weights
  if workdir.run_of(source) is None:
    path = fetch.local(source) if fetch.is_url(source) else (
        os.path.expanduser(source))
    with open(path, 'rb') as f:
      return hashlib.file_digest(f, 'sha256').hexdigest()
  root, lines = epath.Path(source) / 'params', []
  for folder, _, names in root.walk():
    for name in names:
      file = folder / name
      with file.open('rb') as f:
        digest = hashlib.file_digest(f, 'sha256').hexdigest()
      lines.append((str(file.relative_to(root)), digest))
  return hashlib.sha256(''.join(
      f'{digest} {name}\n' for name, digest in sorted(lines)).encode()
                        ).hexdigest()
