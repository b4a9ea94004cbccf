"""Finds the classes that have no example in a split, before a run begins."""
from collections.abc import Mapping
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mixer.core import errors
from mixer.core.log import log

if TYPE_CHECKING:
  from mixer.data import pipeline

_SHOWN = 5   # names of classes in a message
_IDS = '; if labels are ids, list them in classes.txt beside the manifest'


def labels(data: 'pipeline.Data') -> np.ndarray:
  """Returns the labels of a split, int32 [N, L], padded by -1.

  They are [0, L] if labels can only be read together with the images.
  """
  if data.resident is not None:
    return data.resident['labels']
  source, none = data.source, np.zeros(0, np.int64)
  if source.targets is None:
    return source.read(none)[1]['labels']
  return source.targets(data.split.records(np.arange(len(data))))['labels']


def of(data: 'pipeline.Data') -> np.ndarray | None:
  """Returns the number of examples of each class, int64 [num_classes].

  Returns None if labels can only be read together with the images.
  """
  found = labels(data)
  counts = np.bincount(found[found >= 0], minlength=data.source.num_classes)
  return counts if len(found) else None


def overview(data: 'pipeline.Data') -> str:
  """Returns the first class names of a split and how often each occurs.

  Such as 'cat (1,200), dog (950), ... 35 more'; '' if labels can only be read
  together with the images.
  """
  if (counts := of(data)) is None:
    return ''
  names = data.source.class_names or range(len(counts))
  parts = [f'{name} ({count:,})' for name, count in zip(names, counts[:_SHOWN])]
  if len(counts) > _SHOWN:
    parts.append(f'... {len(counts) - _SHOWN:,} more')
  return ', '.join(parts)


def check(train: 'pipeline.Data', evals: 'Mapping[str, pipeline.Data]') -> None:
  """Logs how many classes have no example in a split, and refuses a mismatch.

  Training needs at least two classes, or images without labels.

  Args:
    train: the training split.
    evals: {name: evaluation split}.

  Raises:
    UserError: if a split has no label, no class of an evaluation occurs in
      training, or there is only one class and all training images have it.
  """
  trained, source = of(train), train.source
  if source.num_classes == 1 and (
      trained is None or trained[0] == len(train)):
    raise errors.UserError(
        f'data.name: all images of {source.name} are of one class, '
        f'{(source.class_names or "0")[0]!r}, which leaves nothing to learn; '
        'give data of at least two classes')
  reported: set[int] = set()   # of the training split
  for name, split in {'data': train, **{
      f'evals.{name}': split for name, split in evals.items()}}.items():
    counts = of(split)
    if counts is None:
      continue
    if not counts.any():
      raise errors.UserError(
          f'{name}.split: no example in {split.split.spec!r} has a label; '
          f'choose another split, of {", ".join(split.source.stored)}')
    if trained is not None and not (
        counts[:len(trained)] * trained[:len(counts)]).any():
      raise errors.UserError(
          f'{name}.split: none of the classes in {split.split.spec!r} occurs '
          f'in the training split {train.split.spec!r}, so its accuracy would '
          f'be 0; choose another split, of {", ".join(split.source.stored)}')
    absent = np.flatnonzero(counts == 0).tolist()
    if not reported.issuperset(absent):
      source = split.source
      log.warning('%s: %s', name, without_examples(
          counts, source.class_names, f' in {split.split.spec!r}',
          ids=source.name.startswith('manifest:')))
    if split is train:
      reported = set(absent)


def without_examples(counts: np.ndarray, names: Sequence[str] | None,
                     where: str = '', ids: bool = False) -> str:
  """Returns how many classes have no example, and the first of them.

  Args:
    counts: int [classes], the examples of each.
    names: of the classes, or None.
    where: follows in the text.
    ids: whether the classes may be all numbers up to the largest label.
  """
  absent = np.flatnonzero(counts == 0)
  few = ', '.join(str(names[i] if names else i) for i in absent[:_SHOWN])
  ids = ids and list(names or ()) == list(map(str, range(len(counts))))
  return (f'{len(absent)} of the {len(counts)} classes have no example{where}: '
          f'{few}{", ..." if len(absent) > _SHOWN else ""}'
          f'{_IDS if ids else ""}')
