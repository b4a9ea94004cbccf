"""Checks that results can be written, before the work that makes them."""
import os
import pathlib

from mixer.core import errors
from mixer.core import files


def check_file(flag: str, path: str | None) -> None:
  """Raises a UserError if a flag names a file that cannot be written.

  Args:
    flag: its name.
    path: its value; None for no file.
  """
  folder = os.path.dirname(os.path.abspath(path or ''))
  if path and (not os.path.isdir(folder) or os.path.isdir(path)
               or not os.access(path if os.path.exists(path) else folder,
                                os.W_OK)):
    raise errors.UserError(f'--{flag}: {path!r}: expected a file in a folder '
                           'that exists and can be written to')


def check_folder(flag: str, path: str) -> None:
  """Raises a UserError if a flag names a local folder that cannot be written.

  Args:
    flag: its name.
    path: its value; the folder need not exist.
  """
  if files.is_remote(path):
    return
  folder = pathlib.Path(path).absolute()
  there = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
  if not there.is_dir() or not os.access(there, os.W_OK):
    raise errors.UserError(
        f'--{flag}: {path!r}: expected a folder that can be written to, or '
        f'made, and {str(there)!r} is not; choose another')
