"""Other labels for ImageNet's validation images: ReaL (arXiv 2006.07159).

real.json of github.com/google-research/reassessed-imagenet is a list of 50,000
lists of classes; the first belongs to ILSVRC2012_val_00000001.JPEG. 3,163 of
them are empty, and these images do not count (section 4 of the Mixer paper
gives accuracies for both ImageNet's labels and ReaL's).
"""
from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import os
import re
import typing

from etils import epath
import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.data import sources

if typing.TYPE_CHECKING:
  import tensorflow_datasets as tfds

  from mixer.data import tfds_sets

# Sets name the feature that holds an image's file name in different ways.
_FILE_NAMES = ('file_name', 'filename', 'image/file_name')
_NUMBER = re.compile(r'ILSVRC2012_val_0*(\d+)(\.\w+)?')


@dataclasses.dataclass(frozen=True)
class Labels:
  """Labels by file name.

  Attributes:
    path: the file that they were read from.
    lists: the labels of each image, by its number - 1.
    width: the most labels that an image has, at least 1.
    digest: of the file.
  """
  path: str
  lists: list[list[int]]
  width: int
  digest: str

  def of(self, name: str) -> list[int]:
    """Returns the labels of a file; there may be none.

    Raises:
      UserError: if the name is not that of an image of ImageNet's validation
        set, or there are no labels for its number.
    """
    match = _NUMBER.fullmatch(os.path.basename(name))
    if not match or not 0 < int(match[1]) <= len(self.lists):
      raise errors.UserError(
          f'labels: {self.path!r} has labels for ILSVRC2012_val_00000001.JPEG '
          f'to number {len(self.lists)}, but none for {name!r}; expected '
          "ImageNet's validation set with its own file names")
    return self.lists[int(match[1]) - 1]

  def rows(self, names: Sequence[str]) -> np.ndarray:
    """Returns the labels of files: int32 [names, width], padded by -1."""
    out = np.full((len(names), self.width), -1, np.int32)
    for row, name in zip(out, names):
      labels = self.of(name)
      row[:len(labels)] = labels
    return out


def load(path: str, num_classes: int) -> Labels:
  """Reads the labels in a JSON file.

  Args:
    path: local or in a bucket.
    num_classes: number of classes that the labels are of.

  Raises:
    UserError: if the file cannot be read, is not a list of lists of ints, or
      has a label outside the classes.
  """
  try:
    content = _content(os.path.expanduser(path))
    lists = json.loads(content)
  except (OSError, ValueError) as e:
    raise errors.UserError(
        f'labels: cannot read {path!r} as JSON: {e}; expected a file such as '
        'real.json of github.com/google-research/reassessed-imagenet') from e
  if not isinstance(lists, list) or not lists or not all(
      isinstance(labels, list) and all(type(v) is int for v in labels)
      for labels in lists):
    raise errors.UserError(
        f'labels: {path!r} is not a list of lists of class numbers; expected '
        'one list for each validation image of ImageNet')
  for number, labels in enumerate(lists, 1):
    if not all(0 <= v < num_classes for v in labels):
      raise errors.UserError(
          f'labels: {path!r} gives image {number} the labels {labels}; the '
          f'data set has the classes 0 to {num_classes - 1}')
  return Labels(path, lists, max(1, *map(len, lists)),
                hashlib.sha256(content).hexdigest())


def _content(path):
  """The bytes of a file that is local or in a bucket."""
  if files.is_remote(path):
    return epath.Path(path).read_bytes()
  with files.open_regular(path) as f:
    return f.read()


def fingerprint(own: str, labels: Labels | None) -> str:
  """Returns the fingerprint of a source whose labels are replaced.

  Args:
    own: fingerprint of the source itself.
    labels: those that replace its own, or None.
  """
  return own if labels is None else hashlib.sha256(
      (own + labels.digest).encode()).hexdigest()[:16]


def relabelled(parse: tfds_sets.Parsing, name: str,
               info: tfds.core.DatasetInfo, other: Labels
               ) -> tfds_sets.Parsing:
  """Returns how a TFDS set is parsed if its labels are replaced.

  Args:
    parse: how it is parsed otherwise.
    name: of the set.
    info: of the set.
    other: the labels.

  Raises:
    UserError: if its records have no file names.
  """
  key = next((k for k in _FILE_NAMES if k in info.features), None)
  if key is None:
    raise errors.UserError(
        f'labels: {other.path!r} gives labels by file name, and {name} has '
        f'the features {sorted(info.features)}; expected {_FILE_NAMES[0]!r}')

  def labels_of(features):
    value, = features[key].bytes_list.value
    return other.of(value.decode(errors='replace'))

  return dataclasses.replace(parse, labels_of=labels_of, width=other.width,
                             fewest=0, weighted=False)


def check(opened: sources.Source) -> None:
  """Raises an error if the label file lacks the first image of every split.

  One split is enough: training images, for example, need no labels.

  Raises:
    UserError: the error that reading the images would raise later.
  """
  error = None
  for piece in opened.stored.values():
    try:
      opened.read(piece.records(np.arange(1)))
      return
    except errors.UserError as e:
      error = e
  if error:
    raise error
