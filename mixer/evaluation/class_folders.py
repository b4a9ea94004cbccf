"""Accuracy over images that lie in folders with the names of classes."""
from collections.abc import Iterable
from collections.abc import Sequence
import os
from typing import Any

import numpy as np

from mixer.core.log import log
from mixer.data import split_names
from mixer.evaluation import class_names

Label = tuple[str, int]


def labels(paths: Iterable[str], given: Iterable[str],
           names: Sequence[str]) -> list[Label | None]:
  """Returns (root, class number) of each image in a class folder of a root.

  Args:
    paths: of images; those below a root begin with it.
    given: paths; the folders among them are roots, whose sub-folders may be
      named like classes.
    names: of the network's classes, found as `class_names.by_name` says.

  Returns:
    One entry for each path; None if it is not in ROOT/CLASS/.
  """
  numbers = class_names.by_name(names)
  starts = {os.path.join(root, ''): root for root in given
            if os.path.isdir(root)}

  def of(path: str) -> Label | None:
    for start, root in starts.items():
      name, *below = path.removeprefix(start).split(os.sep)
      if path.startswith(start) and below and name in numbers:
        return root, numbers[name]
    return None

  found = [of(path) for path in paths]
  others = found.count(None)
  if 0 < others < len(found):
    log.warning('accuracy is over the %d images in folders with the names of '
                'classes; %d others have no label', len(found) - others, others)
  return found


def trained_on(root: str, source: str | None) -> bool:
  """Returns whether a folder has images that a network was trained on.

  Args:
    root: a folder.
    source: of the training set, such as 'folder:PATH', or None.
  """
  kind, _, path = (source or '').partition(':')
  if kind != 'folder':
    return False
  path = os.path.realpath(os.path.expanduser(path))
  below = os.path.relpath(os.path.realpath(os.path.expanduser(root)), path)
  first = below.split(os.sep)[0]
  if first == os.pardir:
    return False
  # Beside folders of splits, training reads no other folder.
  split, whole = split_names.of(first), first == os.curdir
  has_splits = os.path.isdir(path) and any(
      map(split_names.of, os.listdir(path)))
  return split == 'train' or not split and (whole or not has_splits)


def place(label: Label | None, found: np.ndarray | Exception) -> int | None:
  """Returns how many classes are likelier than the label; None without both.

  Args:
    label: as `labels` returns it.
    found: class probabilities [K], or the error of an unreadable image.
  """
  if label is None or isinstance(found, Exception):
    return None
  return int(np.argsort(np.argsort(-found, kind='stable'))[label[1]])


def scores(labelled: Iterable[Label | None], places: Iterable[int | None],
           num_classes: int) -> list[dict[str, Any]]:
  """Returns the accuracy over the labelled images of each root.

  Args:
    labelled: as `labels` returns them.
    places: as `place` returns them, for the same images.
    num_classes: of the network.

  Returns:
    Dicts with 'path' (the root), 'examples', 'accuracy' and, of a network of
    more than 5 classes, 'accuracy_top5'. Unreadable images are not counted.
  """
  by_root: dict[str, list[int]] = {}
  for label, at in zip(labelled, places):
    if label and at is not None:
      by_root.setdefault(label[0], []).append(at)
  tops = dict(accuracy=1, accuracy_top5=5) if num_classes > 5 else dict(
      accuracy=1)
  return [dict(path=root, examples=len(found), **{
      name: float(np.mean(np.array(found) < top))
      for name, top in tops.items()}) for root, found in by_root.items()]
