"""ImageNet-21k as it is distributed: one tar file of images for each synset.

The classes are fixed: the 21,841 synsets of the fall 2011 release, ordered by
WordNet id, in imagenet21k.txt (the same as timm's imagenet22k_synsets.txt). A
label is an index into that list, whichever tars are present: the winter 2021
release has images for 19,167 of the synsets, and they keep their numbers.

The heads of the released checkpoints have 21,843 columns: these synsets and two
more, also ordered by WordNet id (timm's imagenet21k_goog_synsets.txt).
"""
from collections.abc import Iterator
import os
import pathlib
import posixpath
import tarfile

import numpy as np

from mixer.core import errors
from mixer.core import files

_RELEASES = ('winter21_whole', 'fall11_whole')   # folders of the downloads
_ONLY_IN_HEADS = ('n03931044', 'n09859684')


def synsets() -> tuple[str, ...]:
  """Returns the WordNet ids of the classes, 'n00004475' first."""
  path = pathlib.Path(__file__).with_name('imagenet21k.txt')
  return tuple(path.read_text().split())


def released_columns() -> np.ndarray:
  """Returns the column of each class in a released head, int64 [21841]."""
  ours = synsets()
  return np.searchsorted(sorted((*ours, *_ONLY_IN_HEADS)), ours)


def find_tars(path: str) -> dict[str, str]:
  """Returns {synset: path of its tar}, ordered by synset.

  Args:
    path: the directory of the tars, or the one with the folder winter21_whole
      or fall11_whole that holds them.

  Raises:
    UserError: if there are no tars, or one is not named by a known synset.
  """
  for directory in (path, *(os.path.join(path, r) for r in _RELEASES)):
    try:
      names = sorted(n for n in os.listdir(directory) if n.endswith('.tar'))
    except OSError:
      names = []
    if names:
      break
  else:
    raise errors.UserError(
        f'--source: {path!r} has no tars; expected n00004475.tar and so on in '
        f'it, or in its folder {" or ".join(_RELEASES)}')
  tars = {n.removesuffix('.tar'): os.path.join(directory, n) for n in names}
  unknown = sorted(tars.keys() - set(synsets()))
  if unknown:
    raise errors.UserError(
        f'--source: {tars[unknown[0]]!r} is not named by one of the '
        f'{len(synsets()):,} synsets of ImageNet-21k; rename or remove it')
  return tars


def tar_members(path: str) -> Iterator[tuple[str, int, int]]:
  """Yields (name, offset, size) of each regular file in a tar.

  The names are relative and have no '..': '/x', '../x' and 'a/../x' all become
  'x'.

  Raises:
    RunError: if the tar is damaged.
  """
  try:
    with files.open_regular(path) as f, tarfile.open(fileobj=f,
                                                     mode='r:') as tar:
      for member in tar:
        if member.isreg() and not member.issparse():
          name = posixpath.normpath(f'/{member.name}').lstrip('/')
          yield name, member.offset_data, member.size
  except (OSError, tarfile.TarError) as e:
    raise errors.RunError(f'cannot read the tar {path!r} ({e}); download it '
                          'again, or remove it') from e
