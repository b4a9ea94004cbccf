"""Files that may be local or in a bucket ('gs://...')."""
import os
from typing import TypeAlias

from etils import epath

Path: TypeAlias = str | os.PathLike[str]


def is_remote(path: Path) -> bool:
  """Returns whether the path is a URL such as gs://bucket/name."""
  return '://' in str(path)


def absolute(path: Path) -> str:
  """Returns an absolute path, with '~' expanded; URLs stay as they are."""
  path = os.path.expanduser(str(path))
  return path if is_remote(path) else os.path.abspath(path)


def write(path: Path, text: str) -> None:
  """Writes a text file atomically: readers see the old file or the new one."""
  if is_remote(path):   # object stores write atomically by themselves
    epath.Path(path).write_text(text)
    return
  partial = str(path) + '.partial'
  with open(partial, 'w') as f:
    f.write(text)
  os.replace(partial, path)


def read(path: Path) -> str | None:
  """Returns the text of a file, or None if it does not exist."""
  file = epath.Path(path)
  return file.read_text() if file.exists() else None


def cache() -> str:
  """Returns this user's cache directory; anything in it can be recreated."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache')
  return os.path.join(os.path.expanduser(base), 'mlp-mixer')
