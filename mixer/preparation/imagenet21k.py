"""ImageNet-21k as it is handed out: a tar of images for every synset.

The classes are frozen: the 21,841 synsets of the fall 2011 release by WordNet
id, in imagenet21k.txt (as in timm's imagenet22k_synsets.txt). A label is a
place in that list, whichever tars are there: the winter 2021 release has images
for 19,167 of them, under the same numbers.

The released checkpoints' heads have 21,843 columns: these synsets and two more,
by WordNet id again (timm's imagenet21k_goog_synsets.txt).
"""
import os
import pathlib
import posixpath
import tarfile

import numpy as np

from mixer.core import errors

_RELEASES = ('winter21_whole', 'fall11_whole')
_RELEASED_TOO = ('n03931044', 'n09859684')


def synsets():
  """The WordNet ids of the classes: 'n00004475' and so on."""
  path = pathlib.Path(__file__).with_name('imagenet21k.txt')
  return tuple(path.read_text().split())


def released_index():
  """The released heads' column of each of our labels: int64 [21841]."""
  ours = synsets()
  return np.searchsorted(sorted((*ours, *_RELEASED_TOO)), ours)


def tars(path):
  """{synset: path} of the tars in a directory, or in its winter21_whole or
  fall11_whole.

  Raises:
    UserError: if there are none, or one of no known synset.
  """
  for where in (path, *(os.path.join(path, r) for r in _RELEASES)):
    try:
      found = sorted(n for n in os.listdir(where) if n.endswith('.tar'))
    except OSError:
      found = []
    if found:
      break
  else:
    raise errors.UserError(
        f'--source: {path!r} has no tars; expected n00004475.tar and so on in '
        f'it, or in its {" or ".join(_RELEASES)}')
  unknown = sorted({n.removesuffix('.tar') for n in found} - set(synsets()))
  if unknown:
    raise errors.UserError(
        f'--source: {unknown[0]}.tar in {where!r} is not named by one of the '
        f'{len(synsets()):,} synsets of ImageNet-21k; remove it')
  return {n.removesuffix('.tar'): os.path.join(where, n) for n in found}


def members(path):
  """Yields (name, offset, size) of the regular files in a tar.

  Names are relative and stay inside: '/x', '../x' and 'a/../x' are all 'x'.

  Raises:
    RunError: if the tar is damaged.
  """
  try:
    with tarfile.open(path, 'r:') as tar:
      for member in tar:
        if member.isreg() and not member.issparse():
          name = posixpath.normpath(f'/{member.name}').lstrip('/')
          yield name, member.offset_data, member.size
  except (OSError, tarfile.TarError) as e:
    raise errors.RunError(f'{path!r} cannot be read as a tar ({e}); get it '
                          'again, or remove it') from e
