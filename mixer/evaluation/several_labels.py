"""Metrics of images with several labels or none, over a whole split.

Every class is predicted on its own: is it present? Precision, recall and F1
count a class as predicted from a probability of 0.5 on. Average precision is
the sum of (R_n - R_{n-1}) P_n over the thresholds n, where examples of equal
probability share a threshold, as in scikit-learn.

Axes: N examples of the split, K classes, L labels of one example.
"""
from collections.abc import Mapping
from typing import Any

import numpy as np

from mixer.data import class_counts
from mixer.data import pipeline

_THRESHOLD = 0.5
_KINDS = dict(mAP='average_precision', precision='precision', recall='recall',
              f1='f1')
METRICS = (*_KINDS, *(f'{kind}_micro' for kind in _KINDS))


def possible(split: pipeline.Data) -> bool:
  """Returns whether the images of a split may have several labels or none.

  Those of a label file such as ReaL's do not count: an image without a label
  there is one in doubt, not one of no class.
  """
  labels = class_counts.labels(split)
  return not split.source.relabelled and (
      labels.shape[1] > 1 or bool((labels < 0).any()))


def average_precision(scores: np.ndarray, present: np.ndarray) -> float:
  """Returns the average precision of one question.

  Args:
    scores: float [N].
    present: bool [N], of which at least one is true.
  """
  order = np.argsort(-scores, kind='stable')
  last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
  found = np.cumsum(present[order])[last]
  recall = np.diff(found, prepend=0) / found[-1]
  return float(np.sum(recall * found / (last + 1)))


def by_class(found: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
  """Returns the metrics of each class that an example has, in their order.

  Args:
    found: what `classification.collect` returns, with 'scores'. Examples
      without a label count: they show none of the classes.

  Returns:
    A list of {'class': number, 'examples': with the class, 'average_precision',
    'precision', 'recall', 'f1'}; a ratio without any case is 0.
  """
  scores, present = _answers(found)
  return [{'class': int(k), 'examples': int(present[:, k].sum()),
           **_metrics(scores[:, k], present[:, k])}
          for k in np.flatnonzero(present.any(axis=0))]


def means(found: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Returns the numbers that `METRICS` names.

  Means are over the classes that an example of the split has, because recall
  and average precision are defined for these only. The 'micro' metrics take all
  pairs of an example and a class as one question.

  Args:
    found: as for `by_class`.
  """
  rows = by_class(found)
  scores, present = _answers(found)
  micro = _metrics(scores.ravel(), present.ravel())
  return {kind: float(np.mean([row[key] for row in rows]))
          for kind, key in _KINDS.items()} | {
              f'{kind}_micro': micro[key] for kind, key in _KINDS.items()}


def _answers(found: Mapping[str, np.ndarray]
             ) -> tuple[np.ndarray, np.ndarray]:
  """Returns (scores, whether the class is a label), [N, K] each."""
  scores, labels = (found[key][found['mask']] for key in ('scores', 'labels'))
  present = np.zeros(scores.shape, bool)
  row, column = np.nonzero(labels >= 0)
  present[row, labels[row, column]] = True
  return scores, present


def _metrics(scores: np.ndarray, present: np.ndarray) -> dict[str, float]:
  predicted = scores >= _THRESHOLD
  right = float(np.sum(predicted & present))
  count = int(predicted.sum()), int(present.sum())
  return dict(
      average_precision=average_precision(scores, present),
      precision=right / max(1, count[0]), recall=right / max(1, count[1]),
      f1=2 * right / max(1, sum(count)))
