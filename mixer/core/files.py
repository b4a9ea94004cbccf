"""Paths that may be local or in a bucket ('gs://...')."""
import os

from etils import epath


def is_remote(path):
  """Whether the path is a URL such as gs://bucket/name."""
  return '://' in str(path)


def absolute(path):
  """The path as it is from anywhere; a URL is that already."""
  path = os.path.expanduser(str(path))
  return path if is_remote(path) else os.path.abspath(path)


def write(path, text):
  """Writes a file whole or not at all."""
  if is_remote(path):   # an object store never shows half an object
    epath.Path(path).write_text(text)
    return
  partial = str(path) + '.partial'
  with open(partial, 'w') as f:
    f.write(text)
  os.replace(partial, path)


def read(path):
  """The text of a file, or None if it is not there."""
  path = epath.Path(path)
  return path.read_text() if path.exists() else None


def cache():
  """Where this user's machine keeps what can be had again."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache')
  return os.path.join(os.path.expanduser(base), 'mlp-mixer')
