"""The evaluations of a config: opens their splits and computes their metrics.

The `evals` section holds classifications, the `fewshot` section linear models
that are fitted to a few examples of each class.

Axes: B images of a batch, K classes, C features.
"""
from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import inspect
from typing import Any
from typing import Protocol
from typing import TYPE_CHECKING
from typing import TypeAlias

import jax
import numpy as np

from mixer.core import errors
from mixer.data import pipeline
from mixer.data import splits
from mixer.evaluation import classification
from mixer.images import augment

if TYPE_CHECKING:
  from mixer.models import interface

# Keys that an evaluation takes from `data` unless its own section sets them.
INHERITED = ('name', 'dir', 'access', 'window', 'interpolation', 'max_pixels',
             'on_device')
# Arguments of the sections' functions that are not the user's to set.
_PASSED = ('data.image_size', 'data.wanted', 'data.most', 'data.key',
           'data.report', 'loss.weights', 'schedule.total_steps',
           'optimizer.schedule', 'sharding.devices', 'checkpoint.directory')

Evaluate: TypeAlias = Callable[..., dict[str, int | float]]
_Size: TypeAlias = int | tuple[int, int]
_Sections: TypeAlias = dict[str, dict[str, Any]]


class Plan(Protocol):
  """How arrays are placed on devices; `training.sharding.Plan` is one."""

  @property
  def replicated(self) -> jax.sharding.Sharding:
    """The sharding of an array that every device holds whole."""

  def place(self, tree: Any) -> Any:
    """Puts host arrays on the devices, replicated."""

  def slots(self, batch_size: int) -> tuple[int, int]:
    """Returns the rows of the global batch that this process reads."""

  def put_batch(self, batch: classification.Batch) -> dict[str, jax.Array]:
    """Makes a global batch of every process's rows."""


@dataclasses.dataclass(frozen=True)
class FewShot:
  """A few-shot evaluation.

  Attributes:
    train: the split that examples are picked from.
    test: the split that accuracy is measured on.
    settings: arguments of `fewshot.accuracies`.
  """
  train: pipeline.Data
  test: pipeline.Data
  settings: dict[str, Any]


_Opened: TypeAlias = tuple[dict[str, pipeline.Data], dict[str, FewShot]]


def sections(config: Mapping[str, Any]) -> tuple[_Sections, _Sections]:
  """Returns the settings of every split that a config names.

  Args:
    config: has the sections 'data' and 'evals', and perhaps 'fewshot'.

  Returns:
    ({'data': {...}, 'evals.NAME': {...}, 'fewshot.NAME.train': {...}, ...},
    each with what it inherits from `data`; {NAME: arguments of
    `fewshot.accuracies`} of the `fewshot` section).

  Raises:
    UserError: if a section has a key that nothing reads.
  """
  inherit = lambda section: dict(name=None, split=None) | {
      k: config['data'][k] for k in INHERITED if k in config['data']} | {
          k: v for k, v in section.items() if v is not None}
  out, settings = {'data': dict(config['data'])}, {}
  for name, section in config['evals'].items():
    check_keys(f'evals.{name}', section, pipeline.open_data)
    out[f'evals.{name}'] = inherit(section)
  if config.get('fewshot'):
    from mixer.evaluation import fewshot
    for name, section in config['fewshot'].items():
      check_keys(f'fewshot.{name}', section, fewshot.read_section)
      common, parts, settings[name] = fewshot.read_section(**section)
      for part, split in parts.items():
        out[f'fewshot.{name}.{part}'] = inherit(dict(common, split=split))
  return out, settings


def check_keys(name: str, section: Mapping[str, Any],
               reader: Callable[..., Any]) -> None:
  """Raises a UserError if a section of a config has a key that is unknown.

  Args:
    name, section: its name, and its keys with their values.
    reader: the function whose keyword arguments they are.
  """
  like = 'data' if name.startswith('evals.') else name
  known = [key for key in inspect.signature(reader).parameters
           if f'{like}.{key}' not in _PASSED]
  for key in section:
    if key not in known:
      raise errors.unknown(f'config.{name}', key, known)


def open_splits(config: Mapping[str, Any], image_size: _Size,
                report: Callable[[dict[str, str]], None] | None = None
                ) -> tuple[pipeline.Data, *_Opened]:
  """Opens all splits that a config names.

  Args:
    config: as `sections` takes it.
    image_size: of all splits, an int or (height, width).
    report: called with a dict for every image that cannot be decoded.

  Returns:
    (training split, {name: evaluation split}, {name: FewShot}).
  """
  found, settings = sections(config)
  train = _open('data', found, image_size, report=report)
  evals, few = _evaluations(found, settings, image_size, report=report)
  tested = {f'evals.{name}': split for name, split in evals.items()} | {
      f'fewshot.{name}.test': parts.test for name, parts in few.items()}
  for key, split in tested.items():
    if split.source.fingerprint == train.source.fingerprint:
      splits.log_shared(train.split, split.split, key, 'are trained on')
  return train, evals, few


def open_evaluations(config: Mapping[str, Any], image_size: _Size,
                     most: int | None = None) -> _Opened:
  """Returns `open_splits` without the training split, which is not opened; of
  a longer split, `pipeline.open_data` keeps `most` examples."""
  return _evaluations(*sections(config), image_size, most=most)


def _evaluations(found: Mapping[str, Any], settings: Mapping[str, Any],
                 image_size: _Size, **more: Any) -> _Opened:
  opened = {key: _open(key, found, image_size, **more)
            for key in found if key != 'data'}
  few = {name: FewShot(opened[f'fewshot.{name}.train'],
                       opened[f'fewshot.{name}.test'], more)
         for name, more in settings.items()}
  for name, parts in few.items():
    from mixer.evaluation import fewshot_evaluations
    fewshot_evaluations.log_shared(name, parts.train, parts.test)
  return ({key.removeprefix('evals.'): split for key, split in opened.items()
           if key.startswith('evals.')}, few)


def _open(key: str, found: Mapping[str, Any], image_size: _Size,
          **more: Any) -> pipeline.Data:
  try:
    return pipeline.open_data(
        **found[key], image_size=image_size, key=key,
        wanted=splits.wanted(found, found[key].get('name')), **more)
  except errors.UserError as e:
    if found[key]['name'] == found['data'].get('name'):
      raise
    raise errors.UserError(str(e).replace('data.name', f'{key}.name')) from e


def metrics(evals: Mapping[str, pipeline.Data],
            fewshots: Mapping[str, FewShot], loss: str) -> list[str]:
  """Returns the names of all metrics of which higher values are better.

  Args:
    evals, fewshots, loss: as for `make`.
  """
  kinds = lambda split: ('accuracy', 'accuracy_top5', *(
      _several(split, loss).METRICS if _several(split, loss) else ()))
  names = [f'eval/{name}/{kind}' for name, split in evals.items()
           for kind in kinds(split)]
  if fewshots:
    from mixer.evaluation import fewshot_evaluations
    names += fewshot_evaluations.metrics(fewshots)
  return names


def _several(split: pipeline.Data, loss: str) -> Any:
  """Returns `several_labels` if its metrics suit a split, or else None."""
  if loss != 'sigmoid':
    return None
  from mixer.evaluation import several_labels
  return several_labels if several_labels.possible(split) else None


def make(plan: Plan, model: 'interface.Model',
         evals: Mapping[str, pipeline.Data], fewshots: Mapping[str, FewShot], *,
         batch_size: int, loss_of: classification.LossOf,
         loss: str = 'softmax',
         classes: Mapping[str, np.ndarray] | None = None) -> Evaluate:
  """Returns a function that computes all evaluations of a network.

  Args:
    plan: spreads batches over the devices.
    model: the network, without parameters.
    evals, fewshots: as `open_splits` returns them.
    batch_size: images in a batch, over all devices.
    loss_of: the training loss, see `training.losses.of_labels`.
    loss: what the network was trained with, 'softmax' or 'sigmoid'.
    classes: as `class_names.numbers` returns them, by evaluation. If these
      are only some of the network's, 'NAME_subset' is over their logits alone.

  Returns:
    (params, details=None) -> {metric: number}. If `details` is a dict, the
    outcome of every example is put into it: {name of the evaluation: arrays, as
    `classification.collect` returns them}.
  """
  targets_of = lambda batch, stored: pipeline.fetch(batch, stored)[1:]
  replicated = lambda f: jax.jit(f, out_shardings=plan.replicated)
  made = functools.lru_cache(lambda name, several: replicated(
      classification.make_outcome(make_predict(model), targets_of, loss_of,
                                  loss, (classes or {}).get(name), several)))
  outcome_of = {name: made(name if name in (classes or {}) else None,
                           bool(_several(split, loss)))
                for name, split in evals.items()}
  splits = [*evals.values(), *(s for few in fewshots.values()
                               for s in (few.train, few.test))]
  stored = {id(s): None if s.resident is None else plan.place(s.resident)
            for s in splits}

  def collect(key, function, params, split):
    batches = split.eval_batches(batch_size=batch_size,
                                 slots=plan.slots(batch_size))
    return classification.collect(
        key, function, params, map(plan.put_batch, batches), stored[id(split)],
        len(split))

  linear: Evaluate = lambda params: {}
  if fewshots:
    from mixer.evaluation import fewshot_evaluations
    linear = fewshot_evaluations.make(fewshots, model, collect, replicated)

  def evaluate(params, details=None):
    scores = {}
    for name, split in evals.items():
      found = collect(f'evals.{name}', outcome_of[name], params, split)
      part, parts = found.pop('subset', None), {name: found}
      if part and split.source.num_classes < model.num_classes:
        parts[f'{name}_subset'] = found | part
      for kind, outcomes in parts.items():
        scores.update(classification.score(
            kind, outcomes, loss == 'sigmoid' and not split.source.relabelled))
        if 'scores' in outcomes:
          from mixer.evaluation import several_labels
          scores.update({f'eval/{kind}/{key}': value for key, value in
                         several_labels.means(outcomes).items()})
      if details is not None:
        details.update(parts)
    return scores | linear(params)

  return evaluate


def make_predict(model: 'interface.Model') -> Callable[..., jax.Array]:
  """Returns the network's prediction in evaluation mode.

  Returns:
    (params, batch, stored=None) -> logits [B, K]; `stored` is the split, if it
    lives on the device.
  """
  def predict(params, batch, stored=None):
    images, *_ = pipeline.fetch(batch, stored)
    return model.apply({'params': params}, augment.normalise(images))[0]
  return predict
