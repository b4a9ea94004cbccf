"""What pre-training is worth: on classes it left out, and at other sizes.

Both experiments train small networks here, so that what transfer does can be
seen, and checked, without the weights of others. Runs that are done are not
trained again.
"""
import os

import jax
import numpy as np
from rich import table as tables

from mixer.core import errors
from mixer.data import pipeline
from mixer.evaluation import fewshot
from mixer.evaluation import suite
from mixer.pretrained import network as networks
from mixer.pretrained.resize import METHODS
from mixer.pretrained.resize import resize as resized
from mixer.training import run
from mixer.training import settings as settings_lib
from mixer.training import sharding

SHOTS, SEEDS = (1, 5, 10, 25), 3


def left_out(config, workdir, *, classes=4, examples=250, tuning_steps=150,
             rates=(0.03, 0.1, 0.3)):
  """Trains on some classes, then on the others: from there, and from scratch.

  The last `classes` of the data are left out of the pre-training. Of each of
  them `examples` images are for training, a fifth of those to choose the
  learning rate by, and all test images for testing. Few-shot accuracies are of
  the pre-trained and of an untrained network.

  Args:
    config: of the pre-training, on a set that fits in memory.
    workdir: of the experiment.
    classes: how many are left out.
    examples: of each that is left out.
    tuning_steps: of fine-tuning, and of training from scratch.
    rates: learning rates that both try.

  Returns:
    {'classes', 'pretrained': accuracy, 'fewshot': {'pretrained', 'untrained':
    {shots: accuracy}}, 'tuned', 'scratch': {'rate', 'dev', 'test'}}.

  Raises:
    UserError: if the set is not in memory, or has too few classes.
  """
  _check(config)
  base, others, names = _split_classes(config, workdir, classes, examples)
  pretrained = os.path.join(workdir, 'pretrained')
  scores = run.train(_on(config, base, dict(test='test')), pretrained)
  few = {}
  network = networks.open_network(pretrained)
  untrained = network.model.init(
      jax.random.key(config.run.seed),
      np.zeros((1, *network.image_size, network.model.in_channels)))['params']
  for name, params in (('pretrained', network.params),
                       ('untrained', untrained)):
    few[name] = _few_shot(network.model, params, _on(
        config, others, {}), network.image_size)
  found = dict(classes=names, pretrained=scores['eval/test/accuracy'],
               fewshot=few)
  for name, weights in (('tuned', pretrained), ('scratch', None)):
    found[name] = _best(_on(config, others, dict(dev='dev', test='test')),
                        os.path.join(workdir, name), weights, rates,
                        tuning_steps)
  return found


def sizes(config, workdir, *, image_sizes, methods=(None,), tuning_steps=200,
          rate=0.1):
  """A network at other image sizes: as it is, fine-tuned, and from scratch.

  Args:
    config: of the training at the config's own size.
    workdir: of the experiment.
    image_sizes: the others, in pixels.
    methods: of `pretrained.resize` to compare; None for its own choice.
    tuning_steps: of fine-tuning, which starts from the resized network.
    rate: learning rate of fine-tuning.

  Returns:
    {'size', 'accuracy', 'rows': [{'size', 'method', 'before', 'tuned',
    'scratch': after as many steps as fine-tuning, 'full': after as many as the
    first training}]}.
  """
  _check(config)
  for method in methods:
    if method not in (None, *METHODS):
      raise errors.unknown('--methods', method, METHODS)
  first = os.path.join(workdir, 'first')
  scores = run.train(config, first)
  name = next(iter(config.evals))
  metric, rows = f'eval/{name}/accuracy', []
  network = networks.open_network(first)
  for size in image_sizes:
    at = _with(config, run=dict(image_size=size, image_width=None))
    short = _short(at, tuning_steps)
    scratch = run.train(short, os.path.join(workdir, f'scratch-{size}'))
    full = run.train(at, os.path.join(workdir, f'full-{size}'))
    for method in methods:
      model, params = resized(
          network.model, network.params, image_size=size,
          from_size=network.image_size, method=method)
      plan = sharding.plan()
      _, evals, _ = suite.open_splits(at, size, training=False)
      before = suite.make(plan, model, evals, {},
                                batch_size=at.run.batch_size)(params)
      tuned = run.train(
          _with(short, start=dict(weights=first, method=method),
                schedule=dict(learning_rate=rate)),
          os.path.join(workdir, f'tuned-{size}-{method or "default"}'))
      rows.append(dict(
          size=size, method=method or _default(network, size),
          before=before[metric], tuned=tuned[metric], scratch=scratch[metric],
          full=full[metric]))
  return dict(size='x'.join(map(str, network.image_size)),
              accuracy=scores[metric],
              steps=config.run.total_steps, tuning_steps=tuning_steps,
              rows=rows)


def left_out_table(found):
  """As rich tables."""
  share = '{:.2%}'.format
  few = tables.Table(
      title=f'new classes: {", ".join(found["classes"])}', title_justify='left')
  few.add_column('few-shot, linear')
  for shot in SHOTS:
    few.add_column(f'{shot}-shot', justify='right')
  for name, row in found['fewshot'].items():
    few.add_row(name, *(share(row[shot]) for shot in SHOTS))
  full = tables.Table()
  for column in ('trained', 'learning rate', 'dev', 'test'):
    full.add_column(column, justify='left' if column == 'trained' else 'right')
  for name, title in (('tuned', 'from the pre-trained network'),
                      ('scratch', 'from scratch')):
    row = found[name]
    full.add_row(title, str(row['rate']), share(row['dev']),
                 share(row['test']))
  return few, full


def sizes_table(found):
  """As a rich table."""
  share = '{:.2%}'.format
  out = tables.Table(
      title=f'trained at {found["size"]}: {share(found["accuracy"])} after '
      f'{found["steps"]} steps', title_justify='left')
  short, whole = found['tuning_steps'], found['steps']
  for column in ('size', 'method', 'resized', f'+ {short} steps',
                 f'scratch, {short} steps', f'scratch, {whole} steps'):
    out.add_column(column, justify='left' if column == 'method' else 'right')
  for r in found['rows']:
    out.add_row(str(r['size']), r['method'], *(
        share(r[k]) for k in ('before', 'tuned', 'scratch', 'full')))
  return out


def _check(config):
  if not config.evals:
    raise errors.UserError('evals: the config evaluates nothing; add one')


def _split_classes(config, workdir, classes, examples):
  """(npz of the classes that stay, npz of the others, names of the others)."""
  size = settings_lib.Settings(**config.run).image_size
  splits = {}
  for part, split in (('train', config.data.split),
                      ('test', next(iter(config.evals.values())).split)):
    section = {k: config.data[k] for k in ('name', 'dir', 'interpolation',
                                           'max_pixels')}
    splits[part] = pipeline.open_data(
        **section, split=split, crop='resize', on_device=True, image_size=size,
        wanted=(config.data.split, split))
  source = splits['train'].source
  stay = source.num_classes - classes
  if classes < 2 or stay < 2:
    raise errors.UserError(f'--classes: {classes} of {source.num_classes} '
                           'cannot be left out: two at least must, and stay')
  names = source.class_names or tuple(map(str, range(source.num_classes)))
  base, others = {}, {}
  for part, split in splits.items():
    labels = split.resident['labels'][:, 0]
    images = split.resident['image']
    old, new = np.flatnonzero(labels < stay), np.flatnonzero(labels >= stay)
    if part == 'train':
      new = fewshot.pick(labels, shots=examples, seed=config.run.seed,
                         num_classes=source.num_classes)
      new = new[labels[new] >= stay]
      dev = fewshot.pick(labels[new], shots=max(1, examples // 5),
                         seed=config.run.seed, num_classes=source.num_classes)
      dev, new = new[dev], np.delete(new, dev)
      others['dev_images'], others['dev_labels'] = (
          images[dev], labels[dev] - stay)
    base[f'{part}_images'], base[f'{part}_labels'] = images[old], labels[old]
    others[f'{part}_images'], others[f'{part}_labels'] = (
        images[new], labels[new] - stay)
  os.makedirs(workdir, exist_ok=True)
  paths = [os.path.join(workdir, f'{name}.npz') for name in ('base', 'others')]
  np.savez(paths[0], class_names=names[:stay], **base)
  np.savez(paths[1], class_names=names[stay:], **others)
  return *paths, list(names[stay:])


def _on(config, npz, evals):
  """The config with arrays for data."""
  like = next(iter(config.evals.values()))
  config = _with(config, data=dict(name=f'arrays:{npz}', split='train'))
  with config.unlocked():
    config.evals = {name: dict(like, name=None, dir=None, split=split)
                    for name, split in evals.items()}
  return config


def _few_shot(model, params, config, size):
  """{shots: accuracy} on the splits train and test."""
  with config.unlocked():
    config.fewshot = dict(few=dict(train='train', test='test', crop='resize',
                                   shots=SHOTS, seeds=SEEDS))
  _, _, few = suite.open_splits(config, size, training=False)
  scores = suite.make(sharding.plan(), model, {}, few,
                            batch_size=256)(params)
  return {shot: scores[f'eval/few/accuracy_{shot}shot'] for shot in SHOTS}


def _best(config, workdir, weights, rates, tuning_steps):
  """The run of the learning rate that is best on 'dev'."""
  found = []
  for rate in rates:
    scores = run.train(
        _with(_short(config, tuning_steps),
              start=dict(weights=weights, dont_load='head/.*'),
              schedule=dict(learning_rate=rate)),
        os.path.join(workdir, f'{rate}'))
    found.append(dict(rate=rate, dev=scores['eval/dev/accuracy'],
                      test=scores['eval/test/accuracy']))
  return max(found, key=lambda row: row['dev'])


def _short(config, total_steps):
  warmup = min(config.schedule.warmup_steps, total_steps // 5)
  return _with(config, schedule=dict(warmup_steps=warmup), run=dict(
      total_steps=total_steps, total_epochs=None, eval_every=0))


def _with(config, **sections):
  """A copy with some settings changed."""
  out = config.copy_and_resolve_references()
  for section, settings in sections.items():
    for key, value in settings.items():
      out[section][key] = value
  return out


def _default(network, size):
  """The method that `resize` takes by itself."""
  fits = all(size % side == 0 for side in network.image_size)
  return 'block' if fits else 'resample'
