"""A training order that draws every class equally often, as arithmetic.

The examples of a run are numbered n = epoch * N + place, where the places of an
epoch are permuted as without balance. Number n is a draw of class n mod C, its
(n div C)-th. A class gives its own examples in permuted order, each once before
any comes again, and goes on with that from epoch to epoch. So an example is a
function of (seed, step, row), and the draws of two classes differ by at most
one in every epoch.
"""
import dataclasses

import numpy as np

from mixer.core import errors
from mixer.data import class_counts
from mixer.data import order
from mixer.data import pipeline


@dataclasses.dataclass(frozen=True)
class Classes:
  """The positions of a split by class, for classes that have an example.

  Attributes:
    members: int64 [N], the positions, class after class.
    counts: int64 [C], the number of examples of each class.
  """
  members: np.ndarray
  counts: np.ndarray

  def batch(self, seed: int, step: int, batch_size: int, num_examples: int,
            slots: tuple[int, int] | None = None
            ) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of batch `step`, as `order.batch` does.

    Args:
      seed, step, batch_size, num_examples, slots: as for `order.batch`.

    Returns:
      (round, position): how often the class had given all its examples before,
      which tells apart the draws of one example, and the position.
    """
    epoch, place = order.batch(seed, step, batch_size, num_examples, slots)
    draw, of = np.divmod(epoch * num_examples + place, len(self.counts))
    count = self.counts[of]
    again, place = np.divmod(draw, count)
    inside = order.permute(place, count, order.mixed(seed, 5, of, again))
    return again, self.members[np.cumsum(self.counts)[of] - count + inside]


def of(data: pipeline.Data) -> Classes:
  """Returns the classes of a training split.

  Args:
    data: the split; every example must have exactly one label.

  Raises:
    UserError: if the labels are not known before the first step, or if an
      example has no label or several.
  """
  labels = class_counts.labels(data)
  if data.source.shards and data.resident is None or not len(labels):
    raise errors.UserError(
        "data.balance: 'classes' needs the labels of all examples before the "
        f'first step, and those of {data.source.name} can only be read '
        'together with the images; set data.on_device=True if they fit into '
        "the device's memory, or leave data.balance unset")
  labelled = labels >= 0
  wrong = np.flatnonzero(labelled.sum(axis=1) != 1)
  if wrong.size:
    raise errors.UserError(
        f"data.balance: 'classes' needs one label for each image, and "
        f'{wrong.size} of {len(labels)} images of {data.source.name} have none '
        f'or several, such as image {wrong[0]} of the split; leave it unset, '
        'or set loss.class_weights')
  label = labels[labelled]
  counts = np.bincount(label)
  return Classes(np.argsort(label, kind='stable'), counts[counts > 0])
