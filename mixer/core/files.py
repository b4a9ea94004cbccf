"""Files that may be local or in a bucket ('gs://...')."""
import contextlib
import errno
import json
import os
import stat
from typing import Any
from typing import IO
from typing import TypeAlias

from etils import epath

from mixer.core import errors

Path: TypeAlias = str | os.PathLike[str]


def is_remote(path: Path) -> bool:
  """Returns whether the path is a URL such as gs://bucket/name."""
  return '://' in str(path)


def absolute(path: Path) -> str:
  """Returns an absolute path, with '~' expanded; URLs stay as they are."""
  path = os.path.expanduser(str(path))
  return path if is_remote(path) else os.path.abspath(path)


def write(path: Path, content: str | bytes) -> None:
  """Writes a file atomically: readers see the old file or the new one."""
  content = content.encode() if isinstance(content, str) else content
  if is_remote(path):   # object stores write atomically by themselves
    epath.Path(path).write_bytes(content)
    return
  partial = str(path) + '.partial'
  with open(partial, 'wb') as f:
    f.write(content)
    f.flush()
    os.fsync(f.fileno())   # else a power cut could leave an empty file
  os.replace(partial, path)


def open_regular(path: Path, mode: str = 'rb', **options: Any) -> IO[Any]:
  """Opens a local file of the user's for reading, and never waits.

  Opening or reading a FIFO or a device may wait for ever.

  Args:
    path: of the file.
    mode: 'rb' or 'r'.
    **options: as `open` takes them.

  Raises:
    OSError: as `open` does, and if the file is not a regular one.
  """
  return open(path, mode, opener=descriptor, **options)


def descriptor(path: Path, flags: int = os.O_RDONLY) -> int:
  """Opens a local file as `os.open`, but as `open_regular` never waits."""
  # Without O_NONBLOCK, opening a FIFO waits for its writer.
  file = os.open(path, flags | os.O_NONBLOCK)
  kind = os.fstat(file).st_mode
  if stat.S_ISREG(kind) or stat.S_ISDIR(kind):   # `open` refuses a folder
    return file
  os.close(file)
  raise OSError(errno.EINVAL, f'a {"FIFO" if stat.S_ISFIFO(kind) else "device"}'
                ', not a regular file', path)


def read(path: Path) -> str | None:
  """Returns the text of a file, or None if it does not exist.

  Raises:
    UserError: if it is not a regular file, or does not hold text.
  """
  try:
    if is_remote(path):
      file = epath.Path(path)
      return file.read_text() if file.exists() else None
    with open_regular(path, 'r') as f:
      return f.read()
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (OSError, UnicodeDecodeError) as e:
    if getattr(e, 'errno', errno.EINVAL) not in (errno.EINVAL, errno.EISDIR):
      raise
    raise errors.UserError(
        f'{str(path)!r} is not a text file: '
        f'{getattr(e, "strerror", None) or "it holds other bytes"}') from e


def read_json(path: Path) -> dict[str, Any] | None:
  """Returns the object in a JSON file, or None if it does not exist.

  Raises:
    UserError: if the file holds anything else.
  """
  text = read(path)
  try:
    found = None if text is None else json.loads(text)
  except (ValueError, RecursionError):
    found = ()
  if not isinstance(found, dict | None):
    raise errors.UserError(f'{str(path)!r} is damaged: it holds no JSON object;'
                           ' restore it from a copy, or move it away')
  return found


def json_lines(text: str | None) -> list[Any]:
  """Returns the value of each line of a text that is JSON; other lines, such as
  one that a kill cut short, are left out."""
  out = []
  for line in (text or '').splitlines():
    with contextlib.suppress(ValueError):
      out.append(json.loads(line))
  return out


def cache() -> str:
  """Returns this user's cache directory; anything in it can be recreated."""
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join('~', '.cache')
  return os.path.join(os.path.expanduser(base), 'mlp-mixer')
