"""Image files on disk by record number, as a folder or a manifest lists them.
"""
import dataclasses
import hashlib
import os
from typing import IO
from typing import NoReturn

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.data import real_labels
from mixer.data import retries
from mixer.data import sources
from mixer.data import splits

STORED = ('train', 'validation', 'test')   # the usual splits, in this order


@dataclasses.dataclass(frozen=True)
class Listing:
  """Image files by record number, and their labels.

  Attributes:
    root: the folder that relative paths start from.
    paths: absolute, or relative to `root`.
    labels: int32 [N, L], padded by -1.
    weights: float32 [N, L] padded by 0, or None.
    class_names: one for each class.
    sizes: {split: number of records}; the records of a split follow those of
      the split before it, in this order.
    fingerprint: changes when the paths, labels or order of the files change,
      and in a folder when their sizes do.
  """
  root: str
  paths: list[str]
  labels: np.ndarray
  weights: np.ndarray | None
  class_names: tuple[str, ...]
  sizes: dict[str, int]
  fingerprint: str

  def file(self, record: int) -> str:
    """Returns the full path of a record's file."""
    return os.path.join(self.root, self.paths[record])


def make(root: str, paths: list[str], labels: np.ndarray,
         weights: np.ndarray | None, class_names: tuple[str, ...],
         sizes: dict[str, int], bytes_of: np.ndarray | None = None) -> Listing:
  """Makes a `Listing` and its fingerprint.

  Args:
    root, paths, labels, weights, class_names, sizes: as in `Listing`.
    bytes_of: int [N], the sizes of the files if they are known.
  """
  # ascii() gives different results for any two different strings, also for
  # names that are not valid text.
  digest = hashlib.sha256(ascii((class_names, sizes, labels.shape)).encode())
  for path in paths:
    digest.update(ascii(path).encode())
  for array in (labels, weights, bytes_of):
    if array is not None:
      digest.update(np.ascontiguousarray(array).data)
  return Listing(root, paths, labels, weights, class_names, sizes,
                 digest.hexdigest()[:16])


def open_files(name: str, listed: Listing, labels: str | None
               ) -> sources.Source:
  """Makes a source of image files.

  Args:
    name: of the source.
    listed: the files.
    labels: a JSON file of labels that replace those of the listing, or None.
  """
  other = (real_labels.load(labels, len(listed.class_names)) if labels
           else None)

  def targets(records):
    if other:
      return dict(labels=other.rows([listed.paths[int(r)] for r in records]))
    if listed.weights is None:
      return dict(labels=listed.labels[records])
    from mixer.data import label_weights
    return label_weights.counted(listed.labels[records],
                                 listed.weights[records])

  def read(records):
    return [_read(listed.file(int(r))) for r in records], targets(records)

  return sources.Source(
      name=name, stored=splits.whole(listed.sizes, mix=True),
      read=read, name_of=lambda record: listed.file(int(record)),
      num_classes=len(listed.class_names), class_names=listed.class_names,
      decoded=False, channels=3, upright=True, targets=targets,
      fingerprint=real_labels.fingerprint(listed.fingerprint, other))


def local(path: str) -> str:
  """Returns the absolute path of a folder or manifest.

  Raises:
    UserError: if it is in a bucket.
  """
  if files.is_remote(path):
    raise errors.UserError(
        f'data.name: {path!r} is in a bucket; mount the bucket and give the '
        'path of the mount, or prepare the data set once with python -m '
        'mixer.prepare build')
  return files.absolute(path)


def open_text(path: str) -> IO[str]:
  """Opens a text file; bytes that are not UTF-8 are kept, as in file names.

  Raises:
    UserError: if it cannot be opened.
  """
  try:
    return files.open_regular(path, 'r', encoding='utf-8-sig',
                              errors='surrogateescape', newline='')
  except OSError as e:
    cannot_read(e)


def cannot_read(error: OSError, key: str = 'data.name: ') -> NoReturn:
  """Raises a UserError for a file or folder that cannot be read.

  Args:
    error: from the operating system.
    key: begins the message; '' if no config names the file.
  """
  raise errors.UserError(f'{key}cannot read {error.filename!r}: '
                         f'{error.strerror}') from error


def wrong(path: str, line: int, what: str, value: object, expected: str
          ) -> errors.UserError:
  """Returns an error about a line of a list of images.

  Args:
    path: of the list.
    line: its number, from 1.
    what: the part of the line that is wrong, such as 'label'.
    value: of this part.
    expected: a description of what was expected.
  """
  return errors.UserError(
      f'{path!r}, line {line}: {what} {repr(value)[:200]}; expected {expected}')


def _read(path):
  """The bytes of a file, or a `BadImage` if they cannot be read."""
  def read():
    with files.open_regular(path) as f:
      return f.read()
  try:
    return read()
  except OSError as e:
    return retries.again(read, path, e)
