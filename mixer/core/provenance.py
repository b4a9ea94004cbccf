"""Records what a run was made with: versions, commit, devices, data, weights.

A run keeps it in its config.json under the key `provenance`.
"""
from collections.abc import Mapping
import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import jax

# Distributions whose version is kept; the later ones only if they are imported.
_ALWAYS = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')
_IF_IMPORTED = dict(tensorflow='tensorflow', pillow='PIL')
_GIT_SECONDS = 10


def collect(*, data: Mapping[str, Any],
            start: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Returns what this process runs with, fit for JSON; never fails.

  Args:
    data: fingerprint of the training split and its order.
    start: the weights that the run starts from and their checksum, or None.

  Returns:
    `versions` {name: version}, `commit` of the code's own git checkout and
    `uncommitted`, whether tracked files differ from it (both are absent without
    a checkout or without git), `devices` with their `kind` and `count` over all
    processes, `data`, and `start` if there is any.
  """
  return dict(
      versions=_versions(), **_commit(os.path.abspath(__file__)),
      devices=dict(kind=jax.devices()[0].device_kind, count=jax.device_count()),
      data=dict(data), **({'start': dict(start)} if start else {}))


def line(made: Mapping[str, Any], data: bool = False) -> str:
  """Returns commit and versions as one line of text, and the data if asked."""
  parts = [f'{k} {v}' for k, v in made.get('versions', {}).items()]
  if made.get('commit'):
    changed = ' with uncommitted changes' if made.get('uncommitted') else ''
    parts.insert(0, f'commit {str(made["commit"])[:12]}{changed}')
  if data and made.get('data', {}).get('source'):
    parts.append(f'data {made["data"]["source"]}')
  return ', '.join(parts)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
  """Returns what differs in commit, versions and devices; '' if nothing does.

  Args:
    old, new: as `collect` returns them.
  """
  was, now = ({key: made.get(key) for key in ('commit', 'uncommitted')} | {
      f'{prefix}{key}': value
      for section, prefix in (('versions', ''), ('devices', 'device '))
      for key, value in made.get(section, {}).items()} for made in (old, new))
  return ', '.join(
      f'{name} was {was.get(name)}, is {now.get(name)}'
      for name in dict.fromkeys((*was, *now)) if was.get(name) != now.get(name))


def _versions() -> dict[str, str]:
  out = dict(python=platform.python_version())
  for name in (*_ALWAYS, *(dist for dist, module in _IF_IMPORTED.items()
                           if module in sys.modules)):
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:   # such as tensorflow-cpu
      out[name] = str(getattr(sys.modules.get(name), '__version__', 'unknown'))
  return out


def _commit(file: str) -> dict[str, Any]:
  """Returns `commit` and `uncommitted` of the checkout that tracks a file."""
  folder, name = os.path.split(file)
  # A git hook's variables would point git to another repository.
  env = {key: value for key, value in os.environ.items()
         if not key.startswith('GIT_')}

  def git(*args: str) -> str:
    return subprocess.run(
        ('git', '--no-optional-locks', '-C', folder, *args), env=env,
        stdin=subprocess.DEVNULL, capture_output=True, check=True, text=True,
        timeout=_GIT_SECONDS).stdout.strip()

  try:
    # An installed copy may lie inside the checkout of another project.
    git('ls-files', '--error-unmatch', name)
    return dict(commit=git('rev-parse', 'HEAD'), uncommitted=bool(
        git('status', '--porcelain', '--untracked-files=no')))
  except (OSError, ValueError, subprocess.SubprocessError):
    return {}
