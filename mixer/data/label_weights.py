"""Labels that have a weight each.

Axes: N examples, L labels of one example padded by -1.
"""
import numpy as np


def counted(labels: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
  """Returns targets without the labels of weight 0, as `Source.read` does.

  Training does not learn such a label, so no evaluation may take it for right.

  Args:
    labels: int32 [N, L].
    weights: float32 [N, L].

  Returns:
    'labels' and 'weights' of the same shapes; the labels that count come first.
  """
  counts = weights > 0
  order = np.argsort(~counts, axis=1, kind='stable')
  first = lambda x: np.take_along_axis(x, order, axis=1)
  return dict(labels=first(np.where(counts, labels, -1)),
              weights=first(weights))
