"""The few-shot evaluations of a config, made of the splits that it names.

The linear models themselves are in `evaluation.fewshot`.

Axes: B images of a batch.
"""
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from mixer.core.log import log
from mixer.data import class_counts
from mixer.data import pipeline
from mixer.data import splits
from mixer.evaluation import fewshot
from mixer.images import augment

if TYPE_CHECKING:
  from mixer.evaluation import suite
  from mixer.models import interface


def make(fewshots: Mapping[str, 'suite.FewShot'], model: 'interface.Model',
         collect: Callable[..., dict[str, np.ndarray]],
         compiled: Callable[[Any], Any]) -> Callable[..., dict[str, float]]:
  """Returns a function: params -> {metric: mean accuracy} of all evaluations.

  Args:
    fewshots: by name.
    model: the network, without parameters.
    collect: (name of the split, function, params, split) -> outcomes of a
      split.
    compiled: compiles the function: (params, batch, stored) -> outcomes [B].
  """
  def outcome(params, batch, stored):
    images, labels, *_ = pipeline.fetch(batch, stored)
    _, out = model.apply({'params': params}, augment.normalise(images))
    return dict(features=out['pre_logits'], mask=batch['mask'],
                labels=labels[:, 0], bad=batch['bad'],
                position=batch['position'])
  featured = compiled(outcome)

  def evaluate(params):
    scores = {}
    for name, few in fewshots.items():
      train, test = (collect(f'fewshot.{name}.{part}', featured, params, split)
                     for part, split in (('train', few.train),
                                         ('test', few.test)))
      most = max(s.source.num_classes for s in (few.train, few.test))
      scores.update({
          _metric(name, shot): value for shot, value in fewshot.scored(
              train, test, num_classes=most, **few.settings).items()})
    return scores

  return evaluate


def metrics(fewshots: Mapping[str, 'suite.FewShot']) -> list[str]:
  """Returns the names of the accuracies of all evaluations."""
  return [_metric(name, shot) for name, few in fewshots.items()
          for shot in few.settings['shots']]


def log_shared(name: str, train: pipeline.Data, test: pipeline.Data) -> None:
  """Warns if a linear model is tested on examples that it is fitted to, or if
  examples have more labels than it can learn.

  Args:
    name: of the few-shot evaluation.
    train, test: its splits.
  """
  if train.source.fingerprint == test.source.fingerprint:
    splits.log_shared(train.split, test.split, f'fewshot.{name}.test',
                      'may be picked for training')
  several = [int(np.sum(np.sum(class_counts.labels(s) >= 0, axis=1) > 1))
             for s in (train, test)]
  if any(several):
    log.warning('fewshot.%s: %d images to pick from and %d test images have '
                'several labels; only the first of each counts', name, *several)


def _metric(name: str, shot: int) -> str:
  return f'eval/{name}/accuracy_{shot}shot'
