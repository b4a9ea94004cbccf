"""Which classes a classifier confuses: tables of its mistakes.

Only pairs that occur are counted; no K x K matrix is made. The results of
`worst_classes` and `confused_pairs` are rows (dicts) of plain numbers and
strings, for JSON and for tables.

Axes: N examples, L labels of one example padded by -1, K classes.
"""
import collections
from collections.abc import Sequence
from typing import Any

import numpy as np

from mixer.core import errors


def worst_classes(labels: np.ndarray, predictions: np.ndarray, *,
                  names: Sequence[str] | None = None, most: int = 20,
                  at_least: int = 1) -> list[dict[str, Any]]:
  """Returns the classes with the lowest accuracy.

  Args:
    labels: int [N, L]. The first label is an example's true class, but any of
      them is right, as in `classification`. Rows without a label are not
      counted.
    predictions: int [N], classes; negative for an image that cannot be decoded,
      which is not counted.
    names: class names [K]; by default the numbers.
    most: the largest number of rows.
    at_least: classes with fewer examples are left out.

  Returns:
    Rows in order of accuracy, lowest first; of equal ones, classes with more
    examples first. Each has 'class', 'name', 'examples' and 'accuracy'; the
    class that is most often predicted instead, as 'taken_for' and
    'taken_for_name'; and 'share', the fraction of all examples that this
    happens to. For a class without mistakes these are None, None and 0.0.

  Raises:
    UserError: if a class has no name.
  """
  truth, taken = _counted(labels, predictions)
  examples = np.bincount(truth)
  right = np.bincount(truth[truth == taken], minlength=len(examples))
  classes = np.flatnonzero(examples >= max(at_least, 1))
  accuracy = right[classes] / examples[classes]
  worst = np.lexsort((classes, -examples[classes], accuracy))[:most]
  mistakes = _mistakes(truth, taken)
  rows = []
  for i in worst:
    k = int(classes[i])
    row = {'class': k, 'name': _name(names, k), 'examples': int(examples[k]),
           'accuracy': float(accuracy[i]), 'taken_for': None,
           'taken_for_name': None, 'share': 0.0}
    if k in mistakes:
      other, count = mistakes[k][0]
      row.update(taken_for=other, taken_for_name=_name(names, other),
                 share=float(count / examples[k]))
    rows.append(row)
  return rows


def confused_pairs(labels: np.ndarray, predictions: np.ndarray, *,
                   names: Sequence[str] | None = None,
                   most: int = 20) -> list[dict[str, Any]]:
  """Returns the pairs of classes that are most often confused.

  Args:
    labels, predictions, names, most: as in `worst_classes`.

  Returns:
    One row for each pair, in order of mistakes, most first. 'classes' and
    'names' have two items, first the class that is more often taken for the
    other; 'mistakes' counts first taken for second, and second taken for first;
    'share' is their sum as a fraction of both classes' examples.

  Raises:
    UserError: if a class has no name.
  """
  truth, taken = _counted(labels, predictions)
  counts = {(a, b): n for a, found in _mistakes(truth, taken).items()
            for b, n in found}
  examples = collections.Counter(truth.tolist())
  pairs = []
  for (a, b), n in counts.items():
    back = counts.get((b, a), 0)
    if (-n, a) < (-back, b):   # of a pair that occurs both ways, keep one
      pairs.append((-n - back, a, b, n, back))
  return [{
      'classes': [a, b], 'names': [_name(names, a), _name(names, b)],
      'mistakes': [n, back],
      'share': float((n + back) / (examples[a] + examples[b])),
  } for _, a, b, n, back in sorted(pairs)[:most]]


def matrix(labels: np.ndarray, predictions: np.ndarray, *, num_classes: int,
           most: int = 20) -> tuple[np.ndarray, np.ndarray]:
  """Returns how often each class is taken for each other one.

  Args:
    labels, predictions: as in `worst_classes`.
    num_classes: K.
    most: the largest number of classes. If there are more, those are kept that
      take part in most mistakes.

  Returns:
    (int [k], the classes, ascending; int [k, k + 1], one row for each true
    class, one column for each predicted class, and a last column for all
    classes that are left out).
  """
  truth, taken = _counted(labels, predictions)
  wrong = truth != taken
  mistakes = sum(np.bincount(x[wrong], minlength=num_classes)
                 for x in (truth, taken))
  kept = np.sort(np.argsort(-mistakes, kind='stable')[:most])
  place = np.full(num_classes, len(kept))
  place[kept] = np.arange(len(kept))
  out = np.zeros((len(kept) + 1, len(kept) + 1), int)
  np.add.at(out, (place[truth], place[taken]), 1)
  return kept, out[:-1]


def _counted(labels: np.ndarray,
             predictions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns (true class, predicted class) of the rows that are counted.

  They are equal if the prediction is any of the labels.
  """
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  if labels.ndim != 2 or predictions.shape != labels.shape[:1]:
    raise ValueError('expected labels [N, L] and predictions [N], got '
                     f'{labels.shape} and {predictions.shape}')
  truth = labels[:, 0]
  hit = (labels == predictions[:, None]).any(1)
  counts = (truth >= 0) & (predictions >= 0)
  return truth[counts], np.where(hit, truth, predictions)[counts]


def _mistakes(truth: np.ndarray,
              taken: np.ndarray) -> dict[int, list[tuple[int, int]]]:
  """Returns {class: [(other class, times), ...]}, most frequent first."""
  wrong = np.stack([truth, taken], 1)[truth != taken]
  pairs, counts = np.unique(wrong, axis=0, return_counts=True)
  found: dict[int, list[tuple[int, int]]] = {}
  for i in np.argsort(-counts, kind='stable'):
    a, b = pairs[i].tolist()
    found.setdefault(a, []).append((b, int(counts[i])))
  return found


def _name(names: Sequence[str] | None, k: int) -> str:
  if names is None:
    return str(k)
  if k >= len(names):
    raise errors.UserError(f'class names: class {k} has none, there are '
                           f'{len(names)}; give one for each class')
  return str(names[k])
