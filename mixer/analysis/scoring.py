"""Scores a network on the evaluations of a config and lists its mistakes."""
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import itertools
import re
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from mixer.analysis import outcomes
from mixer.analysis import training_images
from mixer.core import errors
from mixer.core import workdir
from mixer.core.log import log
from mixer.data import sources
from mixer.data import splits
from mixer.evaluation import class_names
from mixer.evaluation import suite
from mixer.training import losses
from mixer.training import sharding
from mixer.training import watchdog

if TYPE_CHECKING:
  from mixer.data import pipeline
  from mixer.pretrained.network import Network

_IMAGENET, _V2 = 'imagenet2012', 'imagenet_v2/matched-frequency'
# What --data keeps of a config's section `data`.
KEPT = ('dir', 'access', 'window', 'max_pixels')


def config_of(network: 'Network',
              data: str | None = None) -> dict[str, Any]:
  """Returns the config of the run that a network comes from.

  Args:
    network: the network to evaluate.
    data: the data set that replaces those of the config, if there is one.

  Raises:
    UserError: if there is neither a run nor `data`.
  """
  run = workdir.run_of(network.name)
  config = run and workdir.config_of(run)
  if not config and data:
    return dict(data={}, evals={})
  if not config:
    raise errors.UserError(
        f'--config is required: {network.name!r} is not from a run, so its '
        'evaluations are unknown; give a config with `evals`, such as '
        '--config=configs/mixer_b16.py')
  return config


def requested(config: Mapping[str, Any], network: 'Network', *,
              real: str | None = None, v2: bool = False,
              fewshot: str | None = None,
              data: str | None = None) -> dict[str, Any]:
  """Returns a config's evaluations with those that the flags add.

  Released weights use the preprocessing they were trained with; your own runs
  use their config's.

  Args:
    config: nested dict with the sections `data`, `evals` and perhaps `fewshot`.
    network: the network to evaluate.
    real: a file of ReaL labels. Every evaluation on ImageNet's validation set
      is added once more with them.
    v2: whether to add ImageNet-V2, preprocessed like ImageNet's validation set.
    data: a data set to evaluate in place of the config's: each split that it
      stores, whole, or 'all' if it is only one.
    fewshot: a split; few-shot evaluations that pick examples from it are added
      for every evaluation.

  Returns:
    A nested dict with 'data', 'evals' and 'fewshot'.

  Raises:
    UserError: if a section is missing, or there is no evaluation for `real`.
  """
  if data:
    config = _whole(data, config.get('data') or {}, network)
  if not config.get('data') or 'evals' not in config:
    raise errors.UserError('--config: expected the sections data and evals; '
                           'start from recipe.base()')
  common, evals = config['data'], dict(config['evals'])
  few, asked = dict(config.get('fewshot') or {}), list(evals)
  validation = _imagenet_validation(common, evals)
  if real and not validation:
    has = [f'{name}: {section.get("name") or common["name"]} '
           f'{section.get("split")}' for name, section in evals.items()]
    raise errors.UserError(
        f'--real: ReaL labels are for the split validation of {_IMAGENET}, or '
        'of a folder or manifest of its files; the config has '
        + (', '.join(has) or 'no evaluations'))
  if real:
    evals.update({f'{name}_real': dict(evals[name], labels=real)
                  for name in validation})
  if v2:
    like = evals[validation[0]] if validation else next(
        iter(evals.values()), {})
    evals['v2'] = dict(name=_V2, split='test', on_device=False,
                       crop=like.get('crop') or 'resmall',
                       interpolation=like.get('interpolation'))
  if not workdir.run_of(network.name):
    own = network.card['preprocessing']
    log.info('images are preprocessed as this network was trained: %s, %s',
             own['crop'], own['interpolation'])
    evals = {name: dict(section, **own) for name, section in evals.items()}
  if fewshot:
    few.update({name: _fewshot(evals[name], fewshot) for name in asked})
  return dict(data=common, evals=evals, fewshot=few)


def alone(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
  """Returns a config with some of its evaluations, on the images as before.

  Without the others, a split that is not stored might no longer be held out.

  Args:
    config: as `requested` returns it.
    names: of the evaluations that stay; few-shot ones do not.
  """
  found, _ = suite.sections(config)
  return dict(config, fewshot={}, evals={name: dict(
      config['evals'][name], held_out='+'.join(splits.wanted(
          found, found[f'evals.{name}']['name']))) for name in names})


def held_out(config: Mapping[str, Any]) -> str | None:
  """Returns the splits of a config that its training set does not store.

  They are joined by '+', as `data.held_out` takes them; None if there are none.

  Args:
    config: has the sections 'data' and 'evals', and perhaps 'fewshot'.
  """
  found, _ = suite.sections(config)
  data = found['data']
  stored = sources.open_source(data['name'], data_dir=data.get('dir'),
                               access=data.get('access')).stored
  asked = {name for split in splits.wanted(found, data['name'])
           for name in splits.names(split)}
  return '+'.join(sorted(asked - set(stored))) or None


def _whole(data: str, like: Mapping[str, Any],
           network: 'Network') -> dict[str, Any]:
  """Returns a config that evaluates all that a data set stores."""
  common = {key: like[key] for key in KEPT if like.get(key) is not None and (
      key != 'access' or sources.is_tfds_name(data))}
  stored = sources.open_source(data, data_dir=common.get('dir'),
                               access=common.get('access')).stored
  return dict(data=dict(common, name=data), evals={
      split if len(stored) > 1 else 'all': dict(
          network.card['preprocessing'], split=split) for split in stored})


def _imagenet_validation(data: Mapping[str, Any],
                         evals: Mapping[str, Any]) -> list[str]:
  """Returns the names of the evaluations on ImageNet's validation set.

  If none names ImageNet itself, those on a folder or a manifest count: it may
  hold ImageNet's files.
  """
  source = lambda section: re.split(
      '[:/]', section.get('name') or data['name'])[0]
  names = [name for name, section in evals.items()
           if section.get('split') == 'validation']
  return [name for name in names if source(evals[name]) == _IMAGENET] or [
      name for name in names if source(evals[name]) in ('folder', 'manifest')]


def _fewshot(section: Mapping[str, Any], train: str) -> dict[str, Any]:
  """Returns the few-shot evaluation beside an evaluation."""
  crop = 'resize' if section.get('crop') == 'resize' else 'resize_crop'
  return dict(train=train, test=section['split'], crop=crop,
              **{k: section.get(k) for k in ('name', 'dir', 'interpolation',
                                             'on_device')})


def evaluate(
    network: 'Network', config: Mapping[str, Any], *, batch_size: int,
    worst: int = 10, most: int | None = None,
    kept: outcomes.Outcomes | None = None
    ) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
  """Evaluates a network.

  Args:
    network: the network to evaluate.
    config: as `requested` returns it.
    batch_size: images in a batch; rounded up to a multiple of the devices.
    worst: how many classes and pairs to list.
    most: number of examples of each split, see `pipeline.open_data`.
    kept: a dict, into which the outcome of each evaluation is put.

  Returns:
    (results, predictions), both fit for JSON. Results have 'checkpoint',
    'model', 'image_size', 'provenance' of the network or None, 'evals': {name:
    scores, worst classes, confused pairs}, and 'fewshot': {name: {shots:
    accuracy}}. Predictions are one dict for each image: 'eval', 'image',
    'labels', and 'classes' with their 'probabilities', best first, or 'error'.

  Raises:
    UserError: if there is nothing to evaluate, or the classes of a split are
      not the network's.
  """
  watch = watchdog.Watch(watchdog.SECONDS, 'batch', key='')
  whole = sharding.plan()
  plan = _Watched(whole.mesh, whole.strategy, watch, itertools.count())
  batch_size = -(-batch_size // plan.parts) * plan.parts
  evals, fewshots = suite.open_evaluations(config, network.image_size, most)
  training_images.warn(network, evals, fewshots)
  if not evals and not fewshots:
    raise errors.UserError('--config: has no evaluations; add one to its '
                           'section `evals`')
  classes = _classes(network, evals, refuse=not fewshots)
  compute = suite.make(plan, network.model, evals, fewshots,
                       batch_size=batch_size, loss=network.card['loss'],
                       loss_of=losses.of_labels(network.card['loss']),
                       classes=classes)
  details: dict[str, dict[str, np.ndarray]] = {}
  with watch:
    scores = compute(plan.place(network.params), details)
  of: outcomes.Outcomes = {} if kept is None else kept
  for name, found in details.items():
    base = name if name in evals else name.removesuffix('_subset')
    of[name] = outcomes.Outcome(evals[base], outcomes.class_names(
        network, evals[base], by_network=name == base and base in classes),
                       found)
  results = dict(
      checkpoint=network.name, model=network.title,
      image_size=list(network.image_size),
      provenance=network.card.get('provenance'),
      evals={name: dict(
          _scores_of(scores, name), split=each.split.split.spec,
          data=each.split.source.name, preprocessing=each.split.cut,
          classes=len(each.names), **outcomes.tables(each, worst))
             for name, each in of.items()},
      fewshot={name: {str(shot): scores[f'eval/{name}/accuracy_{shot}shot']
                      for shot in few.settings['shots']}
               for name, few in fewshots.items()})
  return results, outcomes.predictions(of)


@dataclasses.dataclass(frozen=True)
class _Watched(sharding.Plan):
  """A plan that tells a watchdog of every batch."""
  watch: watchdog.Watch
  numbers: Iterator[int]

  def put_batch(self, batch: Any) -> dict[str, Any]:
    """Makes a global batch of every process's rows."""
    self.watch.phase(watchdog.EVALUATING, next(self.numbers))
    return super().put_batch(batch)


def _classes(network: 'Network', evals: dict[str, 'pipeline.Data'],
             refuse: bool) -> dict[str, np.ndarray]:
  """Returns `class_names.numbers` of the evaluations that have any.

  An evaluation with classes that the network lacks is refused, or removed from
  `evals`.
  """
  classes = {}
  for name, split in list(evals.items()):
    try:
      numbers = class_names.numbers(
          split.source, network.model.num_classes, network.card['class_names'],
          exactly=not workdir.run_of(network.name))
      if numbers is not None:
        classes[name] = numbers
    except errors.UserError as e:
      if refuse:
        raise errors.UserError(
            f'evals.{name}: {e}; fine-tune the network on these classes, or '
            'evaluate it with --fewshot') from e
      log.info('evals.%s is left out: %s', name, e)
      del evals[name]
  return classes


def _scores_of(scores: Mapping[str, float], name: str) -> dict[str, float]:
  """Returns an evaluation's metrics by short name, without few-shot ones."""
  prefix = f'eval/{name}/'
  return {k.removeprefix(prefix): v for k, v in scores.items()
          if k.startswith(prefix) and not k.endswith('shot')}
