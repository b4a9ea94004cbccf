"""What a config asks of a network: splits opened once, put to any parameters.

The `evals` section holds classifications, the `fewshot` section linear models
fitted to a few examples a class.
"""
import dataclasses

import jax
import numpy as np

from mixer.core import errors
from mixer.core.log import log
from mixer.data import pipeline
from mixer.data import resident as resident_data
from mixer.evaluation import classification
from mixer.evaluation import fewshot
from mixer.images import augment

# What a section has from data, unless it is given.
_INHERITED = ('name', 'dir', 'access', 'window', 'interpolation', 'max_pixels',
              'on_device')


@dataclasses.dataclass(frozen=True)
class FewShot:
  """A few-shot evaluation: two splits, and the keywords of
  `fewshot.accuracies`."""
  train: pipeline.Data
  test: pipeline.Data
  settings: dict


def sections(config):
  """Returns the settings of every split that a config names.

  Args:
    config: a mapping with the sections 'data' and 'evals', and perhaps
      'fewshot'.

  Returns:
    ({'data': {...}, 'evals.NAME': {...}, 'fewshot.NAME.train': {...}, ...},
    each with what it inherits from `data`; {NAME: keywords of
    `fewshot.accuracies`} of the `fewshot` section).
  """
  inherit = lambda section: dict(
      {k: config['data'][k] for k in _INHERITED if k in config['data']},
      **{k: v for k, v in section.items() if v is not None})
  out, settings = {'data': dict(config['data'])}, {}
  out.update({f'evals.{name}': inherit(section)
              for name, section in config['evals'].items()})
  for name, section in config.get('fewshot', {}).items():
    common, parts, settings[name] = fewshot_splits(**section)
    for part, split in parts.items():
      out[f'fewshot.{name}.{part}'] = inherit(dict(common, split=split))
  return out, settings


def open_splits(config, image_size, report=None, training=True):
  """All splits that a config names.

  Args:
    config: as `sections` takes it.
    image_size: of all of them, an int or (height, width).
    report: called with a dict for every image that cannot be decoded.
    training: whether the training split is wanted too.

  Returns:
    (training split or None, {name: evaluation split}, {name: FewShot}).
  """
  asked, settings = sections(config)
  opened = {}
  for key, section in asked.items():
    if key == 'data' and not training:   # but a split may be carved from it
      continue
    wanted = tuple(s['split'] for s in asked.values()
                   if s['name'] == section['name'] and s.get('split'))
    opened[key] = pipeline.open_data(
        **section, image_size=image_size, wanted=wanted, key=key, report=report)
  few = {name: FewShot(opened[f'fewshot.{name}.train'],
                       opened[f'fewshot.{name}.test'], more)
         for name, more in settings.items()}
  for name, parts in few.items():
    _tell_shared(name, parts)
  return (opened.get('data'),
          {name: opened[f'evals.{name}'] for name in config['evals']}, few)


def other_classes(source, num_classes, names, exactly=False):
  """Why a network cannot be asked for the classes of a source, or None.

  Args:
    source: `sources.Source`.
    num_classes: of the network, None or 0 without a head.
    names: of its classes, or None.
    exactly: whether it may have no more classes than the source.
  """
  have = num_classes or 0
  if have < source.num_classes or (exactly and have > source.num_classes):
    return (f'{source.name} has {source.num_classes} classes, the network '
            f'{have or "no head"}')
  for i, (ours, theirs) in enumerate(zip(names or (),
                                         source.class_names or ())):
    # A release's are synsets with a word: 'n01440764 tench'.
    if ours != theirs and not ours.startswith(f'{theirs} '):
      return (f'class {i} of {source.name} is {theirs!r}, of the network '
              f'{ours!r}: they were made for different classes')
  return None


def fewshot_splits(*, train='train', test='test', name=None, dir=None,
                   crop='resize_crop', interpolation=None, on_device=None,
                   shots=(1, 5, 10, 25), seeds=3, l2=2.0**10):
  """What a config's `fewshot.NAME` section asks; what is None is `data`'s.

  Args:
    train, test: splits; examples are picked from the first.
    name, dir, crop, interpolation, on_device: as `pipeline.open_data` takes
      them.
    shots: examples a class, each count an evaluation of its own.
    seeds: repeats with other examples; the mean is reported.
    l2: of the ridge regression (big_vision: 2^10).

  Returns:
    (settings of both splits, {'train': split, 'test': split}, keywords of
    `fewshot.accuracies`).
  """
  for key, values in (('shots', shots), ('seeds', [seeds]), ('l2', [l2])):
    if not len(values) or not all(v > 0 for v in values):
      raise errors.UserError(f'fewshot.{key}: expected above 0, got {values}')
  common = dict(name=name, dir=dir, crop=crop, interpolation=interpolation,
                on_device=on_device)
  return (common, dict(train=train, test=test),
          dict(shots=tuple(shots), seeds=tuple(range(seeds)), l2=l2))


def metrics(evals, fewshots):
  """The names of all metrics of which more is better."""
  return [f'eval/{name}/{kind}' for name in evals
          for kind in ('accuracy', 'accuracy_top5')] + [
              _fewshot_name(name, shot) for name, few in fewshots.items()
              for shot in few.settings['shots']]


def make(plan, model, evals, fewshots, *, batch_size, loss='softmax'):
  """ask(params, details=None) -> {metric: number} of all evaluations.

  Args:
    plan: `sharding.Plan`; batches are spread over its devices.
    model: whose predictions are evaluated.
    evals, fewshots: as `open_splits` gives them.
    batch_size: images at a time, over all devices.
    loss: of the training, 'softmax' or 'sigmoid', for probabilities.

  Returns:
    A function; into `details`, a dict, it puts {name: arrays} of each example
    of `evals`, as `classification.collect` returns them.
  """
  labels_of = lambda batch, resident: resident_data.fetch(batch, resident)[1]
  replicated = lambda f: jax.jit(f, out_shardings=plan.replicated)
  outcome = replicated(classification.make_outcome(
      make_predict(model), labels_of, model.num_classes, loss))
  features = make_features(model)
  featured = replicated(lambda params, batch, resident: dict(
      features=features(params, batch, resident), mask=batch['mask'],
      labels=labels_of(batch, resident)[:, 0], bad=batch['bad'],
      position=batch['position']))
  splits = [*evals.values(), *(s for few in fewshots.values()
                               for s in (few.train, few.test))]
  residents = {id(s): None if s.resident is None else plan.place(
      s.resident) for s in splits}

  def found(key, function, params, split):
    batches = split.eval_batches(batch_size=batch_size,
                                 slots=plan.slots(batch_size))
    return classification.collect(
        key, function, params, map(plan.put_batch, batches),
        residents[id(split)], len(split))

  def ask(params, details=None):
    scores = {}
    for name, split in evals.items():
      outcomes = found(f'evals.{name}', outcome, params, split)
      scores.update(classification.score(name, outcomes))
      if details is not None:
        details[name] = outcomes
    for name, few in fewshots.items():
      train, test = (found(f'fewshot.{name}.{part}', featured, params, split)
                     for part, split in (('train', few.train),
                                         ('test', few.test)))
      classes = max(few.train.source.num_classes, few.test.source.num_classes)
      results = fewshot.accuracies(
          train['features'], _labels(train), test['features'], _labels(test),
          num_classes=classes, **few.settings)
      scores.update({_fewshot_name(name, shot): value
                     for shot, value in fewshot.means(results).items()})
    return scores

  return ask


def make_predict(model):
  """predict(params, batch, resident) -> logits [B, K], as in evaluation."""
  def predict(params, batch, resident=None):
    images, *_ = resident_data.fetch(batch, resident)
    return model.apply({'params': params}, augment.normalise(images))[0]
  return predict


def make_features(model):
  """features(params, batch, resident) -> pre_logits [B, C], as in evaluation.
  """
  def features(params, batch, resident=None):
    images, *_ = resident_data.fetch(batch, resident)
    _, out = model.apply({'params': params}, augment.normalise(images))
    return out['pre_logits']
  return features


def _tell_shared(name, few):
  """Says so if a linear model is tested on what it is fitted to."""
  if few.train.source.fingerprint == few.test.source.fingerprint:
    train, test = (s.split.records(np.arange(len(s)))
                   for s in (few.train, few.test))
    shared = np.intersect1d(train, test).size
    if shared:
      log.warning('fewshot.%s: %d of the %d test examples are among those that '
                  'it learns from', name, shared, len(test))


def _labels(found):
  """The first label of each example, -1 for one that cannot be decoded."""
  return np.where(found['mask'], found['labels'], -1)


def _fewshot_name(name, shot):
  return f'eval/{name}/accuracy_{shot}shot'
