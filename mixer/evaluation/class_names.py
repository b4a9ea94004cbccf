"""Finds the classes of a data set among those of a network, by name."""
import collections
from collections.abc import Sequence
import re
from typing import TYPE_CHECKING

import numpy as np

from mixer.core import errors

if TYPE_CHECKING:
  from mixer.data.sources import Source

_SYNSET = re.compile(r'n\d{8} ')


def numbers(source: 'Source', num_classes: int | None,
            names: Sequence[str] | None,
            exactly: bool = False) -> np.ndarray | None:
  """Returns the network's number of each class of a source, found by name.

  Args:
    source, num_classes, names, exactly: as for `other_classes`.

  Returns:
    int32 [classes of the source], or None if the numbers are the same.

  Raises:
    UserError: if the network lacks a class.
  """
  theirs = source.class_names
  if not names or not theirs:
    wrong = other_classes(source, num_classes, names, exactly)
    if wrong:
      raise errors.UserError(wrong)
    return None
  if list(theirs) == list(names):
    return None
  ours = by_name(names)
  lacking = [i for i, name in enumerate(theirs) if name not in ours]
  if lacking:
    raise errors.UserError(
        f'class {lacking[0]} of {source.name} is {theirs[lacking[0]]!r}, and '
        f'the network lacks {len(lacking)} of its {len(theirs)} classes'
        + ', or has several of that name' * (theirs[lacking[0]] in names))
  found = np.array([ours[name] for name in theirs], np.int32)
  return None if len(found) == len(names) and (
      found == np.arange(len(names))).all() else found


def by_name(names: Sequence[str]) -> dict[str, int]:
  """Returns the number of each class name and of each synset among the names.

  A name that several classes share is left out.

  Args:
    names: of the classes in order; released weights name a synset with a word,
      such as 'n01440764 tench'.
  """
  synsets = {name.partition(' ')[0]: i for i, name in enumerate(names)
             if _SYNSET.match(name)}
  times = collections.Counter(names)
  return synsets | {name: i for i, name in enumerate(names) if times[name] == 1}


def other_classes(source: 'Source', num_classes: int | None,
                  names: Sequence[str] | None,
                  exactly: bool = False) -> str | None:
  """Returns why a network and a source have different classes, or None.

  Args:
    source: a data set with labels.
    num_classes: of the network; None or 0 without a head.
    names: of the network's classes, if they are known.
    exactly: whether the network may not have more classes than the source.
  """
  have = num_classes or 0
  if have < source.num_classes or (exactly and have > source.num_classes):
    return (f'{source.name} has {source.num_classes} classes, the network '
            f'{have or "no head"}')
  for i, (ours, theirs) in enumerate(zip(names or (),
                                         source.class_names or ())):
    # Released weights name a synset with a word: 'n01440764 tench'.
    if ours != theirs and not ours.startswith(f'{theirs} '):
      fewer = set(source.class_names or ()) < set(names or ())
      return (f'class {i} of {source.name} is {theirs!r}, the network has '
              f'{ours!r}: ' + (
                  'the data lack some classes of the network; put the splits '
                  'into one folder, as DIR/train and DIR/val, or evaluate '
                  'these data after training, by mixer.evaluate --data'
                  if fewer else 'they were made for different classes'))
  return None
