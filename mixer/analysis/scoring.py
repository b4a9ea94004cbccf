"""A network put to the evaluations of a config, and what it gets wrong."""
import json
import os
import re

import ml_collections
import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.evaluation import confusion
from mixer.evaluation import suite
from mixer.training import sharding

_IMAGENET, _V2 = 'imagenet2012', 'imagenet_v2/matched-frequency'


def config_of(network):
  """The config of the run that a network is from.

  Raises:
    UserError: if it is from none.
  """
  run = _workdir(network)
  text = run and files.read(os.path.join(run, 'config.json'))
  if not text:
    raise errors.UserError(
        f'--config is required: {network.name!r} is not from a run, so its '
        'evaluations are unknown; give a config with `evals`, such as '
        '--config=configs/mixer_b16.py')
  return ml_collections.ConfigDict(json.loads(text))


def asked(config, network, *, real=None, v2=False, fewshot=None):
  """The config's evaluations, and those of the flags.

  Args:
    config: with `data`, `evals` and perhaps `fewshot`.
    network: `pretrained.Network`.
    real: path of ReaL's labels, for ImageNet's validation set.
    v2: whether ImageNet-V2 is asked too, with the crop of the others.
    fewshot: split whose examples fit a linear model, for each evaluation.

  Returns:
    A config with 'data', 'evals' and 'fewshot'.

  Raises:
    UserError: if ReaL's labels are wanted and there is no such split.
  """
  plain = config.to_dict()
  if not plain.get('data') or 'evals' not in plain:
    raise errors.UserError('--config: expected the sections data and evals; '
                           'start from recipe.base()')
  data, evals = plain['data'], dict(plain['evals'])
  few = dict(plain.get('fewshot') or {})
  # Of ImageNet itself, or else of its files.
  source = lambda section: re.split(
      '[:/]', section.get('name') or data['name'])[0]
  validation = [name for name, section in evals.items()
                if section.get('split') == 'validation']
  on_imagenet = [name for name in validation
                 if source(evals[name]) == _IMAGENET] or [
      name for name in validation
      if source(evals[name]) in ('folder', 'manifest')]
  if real and not on_imagenet:
    raise errors.UserError(
        '--real: ReaL labels are for the split validation of '
        f'{_IMAGENET}, or of a folder or manifest of its files; the config has '
        + (', '.join(f'{name}: {section.get("name") or data["name"]} '
                     f'{section.get("split")}'
                     for name, section in evals.items()) or 'no evaluations'))
  for name, section in evals.items() if fewshot else ():
    few[name] = dict(
        train=fewshot, test=section['split'],
        crop='resize' if section.get('crop') == 'resize' else 'resize_crop',
        **{k: section.get(k) for k in ('name', 'dir', 'interpolation',
                                       'on_device')})
  for name in on_imagenet if real else ():
    evals[f'{name}_real'] = dict(evals[name], labels=real)
  if v2:
    beside = evals[on_imagenet[0]] if on_imagenet else next(
        iter(evals.values()), {})
    evals['v2'] = dict(name=_V2, split='test', on_device=False,
                       crop=beside.get('crop') or 'resmall',
                       interpolation=beside.get('interpolation'))
  if not _workdir(network):   # its own preprocessing, not the config's
    like = network.card['preprocessing']
    log.info('images are shown as the network was made for: %s, %s',
             like['crop'], like['interpolation'])
    for section in evals.values():
      section.update(like)
  return ml_collections.ConfigDict(dict(data=data, evals=evals, fewshot=few))


def evaluate(network, config, *, batch_size, worst=10):
  """(results, rows of predictions), both fit for JSON.

  Args:
    network: `pretrained.Network`.
    config: as `asked` returns it.
    batch_size: images at a time; made a multiple of the devices.
    worst: classes and pairs to list.

  Returns:
    ({'checkpoint', 'model', 'image_size', 'evals': {name: scores, worst
    classes, confused pairs}, 'fewshot': {name: {shots: accuracy}}}, an
    iterator of {'eval', 'image', 'labels', 'classes', 'probabilities'}).

  Raises:
    UserError: if the classes of a split are not the network's.
  """
  plan = sharding.plan()
  batch_size = -(-batch_size // plan.parts) * plan.parts
  _, evals, fewshots = suite.open_splits(
      config, network.image_size, training=False)
  if not evals and not fewshots:
    raise errors.UserError('--config: it has no evaluations')
  for name, split in list(evals.items()):
    wrong = suite.other_classes(
        split.source, network.model.num_classes, network.card['class_names'],
        exactly=not _workdir(network))
    if wrong and not fewshots:
      raise errors.UserError(f'evals.{name}: {wrong}; fine-tune it on them, or '
                             'ask with --fewshot')
    if wrong:
      log.info('evals.%s is left out: %s', name, wrong)
      del evals[name]
  ask = suite.make(plan, network.model, evals, fewshots,
                         batch_size=batch_size, loss=network.card['loss'])
  details = {}
  scores = ask(sharding.place(network.params, plan.replicated), details)
  result = dict(checkpoint=network.name, model=network.title,
                image_size=list(network.image_size), evals={}, fewshot={})
  for name, split in evals.items():
    result['evals'][name] = dict(
        _of(scores, name), split=split.split.spec, data=split.source.name,
        preprocessing=split.cut,
        **_mistakes(details[name], _names(network, split), worst))
  for name, few in fewshots.items():
    result['fewshot'][name] = {
        str(shot): scores[f'eval/{name}/accuracy_{shot}shot']
        for shot in few.settings['shots']}
  return result, _predictions(network, evals, details)


def _of(scores, name):
  """The metrics of one evaluation, without the prefix and the few shots."""
  prefix = f'eval/{name}/'
  return {k.removeprefix(prefix): v for k, v in scores.items()
          if k.startswith(prefix) and not k.endswith('shot')}


def _names(network, split):
  """One a class of the network, which may have more than the source."""
  names = list(split.source.class_names or network.card['class_names'] or ())
  return names + [str(i) for i in range(len(names), network.model.num_classes)]


def _mistakes(found, names, worst):
  best = np.where(found['mask'], found['best'][:, 0], -1)
  return dict(
      worst_classes=confusion.worst_classes(
          found['labels'], best, names=names, most=worst),
      confused_pairs=confusion.confused_pairs(
          found['labels'], best, names=names, most=worst))


def _predictions(network, evals, details):
  for name, split in evals.items():
    found, source = details[name], split.source
    names = _names(network, split)
    named = lambda classes: [names[i] for i in classes.tolist()]
    records = split.split.records(np.arange(len(split)))
    for row, record in enumerate(records.tolist()):
      labels = found['labels'][row]
      more = dict(error='it cannot be decoded') if found['bad'][row] else dict(
          classes=named(found['best'][row]),
          probabilities=found['probabilities'][row].tolist())
      yield dict(eval=name, image=source.name_of(record),
                 labels=named(labels[labels >= 0]), **more)


def _workdir(network):
  """Of the run that a network is from, or None."""
  parts = network.name.rstrip('/').split('/')
  if len(parts) > 2 and parts[-2] == 'checkpoints' and parts[-1].isdigit():
    return '/'.join(parts[:-2])
  return None
