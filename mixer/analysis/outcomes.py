"""A network's predictions for the examples of its evaluations, and mistakes."""
from collections.abc import Iterator
import dataclasses
from typing import Any
from typing import TYPE_CHECKING
from typing import TypeAlias

import numpy as np

from mixer.evaluation import confusion
from mixer.evaluation import several_labels

if TYPE_CHECKING:
  from mixer.data import pipeline
  from mixer.pretrained.network import Network


@dataclasses.dataclass(frozen=True)
class Outcome:
  """A network's predictions for all examples of an evaluation.

  Attributes:
    split: the examples.
    names: of the classes that are scored.
    found: as `classification.collect` returns it.
  """
  split: 'pipeline.Data'
  names: list[str]
  found: dict[str, np.ndarray]


Outcomes: TypeAlias = dict[str, Outcome]   # by the name of the evaluation


def class_names(network: 'Network', split: 'pipeline.Data',
                by_network: bool) -> list[str]:
  """Returns a name for each class that is scored.

  The network may have more classes than names; these are numbers.

  Args:
    network: the network.
    split: the examples.
    by_network: whether the classes are numbered as the network's.
  """
  ours, theirs = network.card['class_names'], split.source.class_names
  names = list(ours if by_network else theirs or ours or ())
  if ours and theirs and not by_network and len(theirs) < len(ours):
    return names   # the logits of the subset alone
  return names + [str(i) for i in range(len(names), network.model.num_classes)]


def tables(outcome: Outcome, most: int) -> dict[str, Any]:
  """Returns the worst classes and the most confused pairs, `most` of each, and
  the metrics of each class if images have several labels, fit for JSON."""
  found, names = outcome.found, outcome.names
  best = np.where(found['mask'], found['best'][:, 0], -1)
  return dict(
      worst_classes=confusion.worst_classes(
          found['labels'], best, names=names, most=most),
      confused_pairs=confusion.confused_pairs(
          found['labels'], best, names=names, most=most),
      **(dict(several_labels=[dict(row, name=names[row['class']])
                              for row in several_labels.by_class(found)])
         if 'scores' in found else {}))


def predictions(of: Outcomes) -> Iterator[dict[str, Any]]:
  """Yields the dict of each image that `scoring.evaluate` describes."""
  for name, each in of.items():
    split, names, found = each.split, each.names, each.found
    source = split.source
    named = lambda classes, names=names: [names[i] for i in classes.tolist()]
    records = split.split.records(np.arange(len(split)))
    for row, record in enumerate(records.tolist()):
      labels = found['labels'][row]
      more = dict(error='it cannot be decoded') if found['bad'][row] else dict(
          classes=named(found['best'][row]),
          probabilities=found['probabilities'][row].tolist())
      yield dict(eval=name, image=source.name_of(record),
                 labels=named(labels[labels >= 0]), **more)
