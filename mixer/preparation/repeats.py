"""Finds, by hashes, the images that a large manifest lists in several rows."""
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import os

import numpy as np

from mixer.core.log import log
from mixer.data import manifest
from mixer.data import repeated_rows


def hash_of(path: str, row: manifest.Row) -> int:
  """Returns a hash of a row's file, whose path may be written in two ways."""
  return hash(os.path.normpath(os.path.join(path, '..', row['path'])))


def refuse(source: str, path: str, seen: Mapping[str, Sequence[int]],
           labelled: Mapping[str, Sequence[int]]) -> None:
  """Refuses an image that has different labels in two rows of a split.

  Args:
    source, path: of the manifest.
    seen, labelled: by split, hashes of the paths and of the labels of its rows.

  Raises:
    UserError: if there is one; it names the two lines.
  """
  several = set()
  for split, paths in seen.items():
    pairs = np.unique(np.stack([paths, labelled[split]], 1), axis=0)
    hashes, counts = np.unique(pairs[:, 0], return_counts=True)
    several |= {(split, each) for each in hashes[counts > 1].tolist()}
  if several:
    repeated_rows.check(path, [
        row for row in manifest.rows(source)
        if (row['split'], hash_of(path, row)) in several])


def say(source: str, seen: Sequence[np.ndarray]) -> None:
  """Logs a line if an image is listed in two splits.

  Args:
    source: of the manifest.
    seen: for each split, the `hash_of` of its rows, int64.
  """
  again = np.concatenate([np.array([], np.int64), *(
      np.intersect1d(*pair) for pair in itertools.combinations(seen, 2))])
  if again.size:
    both = frozenset(again.tolist())
    path = manifest.file_of(source)
    first = next(row for row in manifest.rows(source)
                 if hash_of(path, row) in both)
    log.warning('%r: %d images are listed in several splits, such as %r in '
                'line %d; a network that was trained on them is evaluated on '
                'them too', path, len(both),
                first['path'], first['line'])
