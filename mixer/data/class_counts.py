"""Finds the classes that have no example in a split, before a run begins."""
from collections.abc import Mapping

import numpy as np

from mixer.core import errors
from mixer.core.log import log
from mixer.data import pipeline

_SHOWN = 5   # names of classes in a message


def of(data: pipeline.Data) -> np.ndarray | None:
  """Returns the number of examples of each class, int64 [num_classes].

  Returns None if labels can only be read together with the images.
  """
  source = data.source
  if data.resident is not None:
    labels = data.resident['labels']
  elif source.targets is not None:
    labels = source.targets(data.split.records(np.arange(len(data))))['labels']
  else:
    return None
  return np.bincount(labels[labels >= 0], minlength=source.num_classes)


def check(train: pipeline.Data, evals: Mapping[str, pipeline.Data]) -> None:
  """Logs how many classes have no example in a split, and refuses a mismatch.

  Args:
    train: the training split.
    evals: {name: evaluation split}.

  Raises:
    UserError: if no class of an evaluation occurs in training.
  """
  trained = of(train)
  for name, split in {'data': train, **{
      f'evals.{name}': split for name, split in evals.items()}}.items():
    counts = of(split)
    if counts is None:
      continue
    if trained is not None and counts.any() and not (
        counts[:len(trained)] * trained[:len(counts)]).any():
      raise errors.UserError(
          f'{name}.split: none of the classes in {split.split.spec!r} occurs '
          f'in the training split {train.split.spec!r}, so its accuracy would '
          f'be 0; choose another split, of {", ".join(split.source.stored)}')
    absent = np.flatnonzero(counts == 0)
    if len(absent):
      names = split.source.class_names
      few = ', '.join(str(names[i] if names else i) for i in absent[:_SHOWN])
      log.warning(
          '%s: %d of the %d classes have no example in %r: %s%s', name,
          len(absent), len(counts), split.split.spec, few,
          ', ...' if len(absent) > _SHOWN else '')
