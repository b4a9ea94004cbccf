"""What a classifier takes for what: tables of its mistakes.

Mistakes are counted by pairs that occur; no K x K matrix is made. Results are
rows (dicts) of plain numbers and strings, fit for JSON and for a table.
"""
import collections

import numpy as np

from mixer.core import errors


def worst_classes(labels, predictions, *, names=None, most=20, at_least=1):
  """The classes with the lowest accuracy, and what they are taken for.

  Args:
    labels: int [N, L] padded by -1. The first is the truth; any of them is
      right, as in `classification`. A row without a label is not counted.
    predictions: int [N], classes; a row with a negative one (an image that
      cannot be decoded) is not counted.
    names: one a class; None for numbers.
    most: rows at most.
    at_least: examples that a class must have to be listed.

  Returns:
    Rows, lowest accuracy first, then the class with more examples: 'class',
    'name', 'examples', 'accuracy'; and of the class that is wrongly predicted
    most for it 'taken_for', 'taken_for_name' and 'share', the part of all its
    examples (None, None and 0.0 for a class without mistakes).

  Raises:
    UserError: if names lacks a class.
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
    other, count = mistakes.get(k, [(None, 0)])[0]
    rows.append({
        'class': k, 'name': _name(names, k), 'examples': int(examples[k]),
        'accuracy': float(accuracy[i]), 'taken_for': other,
        'taken_for_name': None if other is None else _name(names, other),
        'share': float(count / examples[k])})
  return rows


def confused_pairs(labels, predictions, *, names=None, most=20):
  """The pairs of classes taken for each other most often.

  Args:
    labels, predictions, names, most: as in `worst_classes`.

  Returns:
    Rows, most mistakes first, one for a pair whichever way: 'classes' and
    'names', two each, the one that is taken for the other more often first;
    'mistakes', how often, first for second and second for first; and 'share',
    their sum over the examples of both classes.

  Raises:
    UserError: if names lacks a class.
  """
  truth, taken = _counted(labels, predictions)
  counts = {(a, b): n for a, found in _mistakes(truth, taken).items()
            for b, n in found}
  examples = collections.Counter(truth.tolist())
  pairs = []
  for (a, b), n in counts.items():
    back = counts.get((b, a), 0)
    if (-n, a) < (-back, b):   # a pair found both ways is one row
      pairs.append((-n - back, a, b, n, back))
  return [{
      'classes': [a, b], 'names': [_name(names, a), _name(names, b)],
      'mistakes': [n, back],
      'share': float((n + back) / (examples[a] + examples[b])),
  } for _, a, b, n, back in sorted(pairs)[:most]]


def _counted(labels, predictions):
  """(truth, prediction) of the rows that count; equal if it is any label."""
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  if labels.ndim != 2 or predictions.shape != labels.shape[:1]:
    raise ValueError('expected labels [N, L] and predictions [N], got '
                     f'{labels.shape} and {predictions.shape}')
  truth = labels[:, 0]
  hit = (labels == predictions[:, None]).any(1)
  counts = (truth >= 0) & (predictions >= 0)
  return truth[counts], np.where(hit, truth, predictions)[counts]


def _mistakes(truth, taken):
  """{class: [(class it is taken for, times), ...]}, most often first."""
  wrong = np.stack([truth, taken], 1)[truth != taken]
  pairs, counts = np.unique(wrong, axis=0, return_counts=True)
  found = {}
  for i in np.argsort(-counts, kind='stable'):
    a, b = pairs[i].tolist()
    found.setdefault(a, []).append((b, int(counts[i])))
  return found


def _name(names, k):
  if names is None:
    return str(k)
  if k >= len(names):
    raise errors.UserError(f'class names: class {k} has none, there are '
                           f'{len(names)}; give one for each class')
  return str(names[k])
