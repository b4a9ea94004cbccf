"""A network ready to use, from whatever holds its weights.

Its card (`core.cards`) beside the weights says how to use it; without a card,
that is inferred from the shapes of the weights.
"""
import dataclasses
import json
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import models
from mixer.core import cards
from mixer.core import checkpoint
from mixer.core import errors
from mixer.core import files
from mixer.core import trees
from mixer.core.log import log
from mixer.images import eval_crops
from mixer.models import catalog
from mixer.pretrained import fetch
from mixer.pretrained import formats
from mixer.pretrained import registry

# Of weights whose file does not say.
_USUAL = dict(crop='resmall', interpolation='bilinear')


@dataclasses.dataclass(frozen=True)
class Network:
  """A model, its parameters, and its card.

  Attributes:
    model: `models.MlpMixer`.
    params: nested dict of NumPy arrays with the published names.
    card: dict, see `core.cards`.
    name: where it is from.
  """
  model: Any
  params: Any
  card: dict
  name: str

  @property
  def image_size(self):
    """(height, width) in pixels."""
    return tuple(self.card['image_size'])

  @property
  def title(self):
    """The model's name, and what differs from it."""
    return catalog.title(self.card['model'])


def open_network(weights, *, best=False, from_size=None):
  """The network that `weights` names.

  Args:
    weights: a workdir, whose latest checkpoint is taken; one of its
      checkpoints, `WORKDIR/checkpoints/STEP`; a file in one of
      `formats.SUFFIXES`; an https://, gs:// or hf:// address of one; or the
      name of a release, as in `registry.names()`.
    best: of a workdir, the best checkpoint instead of the latest.
    from_size: int or (height, width) of its images, where a file without a card
      is for images that are not square.

  Raises:
    UserError: if there is none, it is damaged, or not what its card says.
  """
  weights = str(weights)
  release = registry.find(weights)
  if release is None and not _is_file(weights):
    return _of_a_run(weights, best)
  if best:
    raise errors.UserError(f'--best is for a workdir; {weights!r} is one set '
                           'of weights')
  if release is not None:
    return _released(release, weights)
  path = _local(weights)
  params, layout = formats.read(path)
  text = files.read(path + '.json')
  card = None if text is None else _parse(text, path + '.json')
  return _checked(params, card, weights, from_size, tanh=layout != 'timm')


def load(weights, *, best=False):
  """The parameters that `weights` names, see `open_network`: a nested dict of
  NumPy arrays with the names of the released checkpoints."""
  return open_network(weights, best=best).params


def infer(params, source, from_size=None):
  """(model, (height, width)) that parameters are for, by their shapes.

  Raises:
    UserError: if they are no Mixer's, naming every tensor that does not fit.
  """
  shape = lambda name: np.shape(flat.get(name, np.zeros(0)))
  flat = trees.flatten(params)
  blocks = [int(m[1]) for name in flat
            if (m := re.match(r'MixerBlock_(\d+)/', name))]
  first = 'MixerBlock_0/token_mixing/Dense_0/kernel'
  wide = 'MixerBlock_0/channel_mixing/Dense_0/kernel'
  for name, rank in (('stem/kernel', 4), (first, 2), (wide, 2)):
    if len(shape(name)) != rank or 0 in shape(name):
      raise errors.UserError(
          f'{source!r} holds no Mixer: {name!r} is '
          f'{list(shape(name)) if name in flat else "missing"}, expected a '
          f'tensor of {rank} axes, none empty')
  height, width, channels, hidden = shape('stem/kernel')
  tokens, tokens_dim = shape(first)
  if from_size is None:
    side = round(tokens ** 0.5)
    if side * side != tokens:
      raise errors.UserError(
          f'{source!r} is for {tokens} tokens, which is no square: its images '
          'are told by a card beside it, FILE.json, as mixer.export writes')
    size = side * height, side * width
  else:
    size = (from_size,) * 2 if isinstance(from_size, int) else tuple(from_size)
  model = catalog.MlpMixer(
      patch_size=height if height == width else (height, width),
      in_channels=channels, hidden_dim=hidden, num_blocks=max(blocks) + 1,
      tokens_mlp_dim=tokens_dim, channels_mlp_dim=shape(wide)[1],
      num_classes=(shape('head/kernel') or (0, None))[-1])
  return model, size


def misfits(params, wanted):
  """Every name or shape of `params` that is not the `wanted` tree's, in words;
  blocks that differ alike share a line."""
  have = {k: tuple(v.shape) for k, v in trees.flatten(params).items()}
  want = {k: tuple(v.shape) for k, v in trees.flatten(wanted).items()}
  blocks = {}
  for name in have.keys() | want.keys():
    ours, theirs = have.get(name, 'missing'), want.get(name, 'none')
    if name not in have or name not in want or ours != theirs:
      _, number, rest = re.fullmatch(r'(MixerBlock_(\d+)/)?(.*)', name).groups()
      line = f'{rest}: {ours}, the model has {theirs}'
      blocks.setdefault(line, []).append(int(number or -1))
  return [(f'MixerBlock_{_ranges(numbers)}/' if numbers != [-1] else '') + line
          for line, numbers in sorted(blocks.items())]


def _ranges(numbers):
  """'0-3,7' of [0, 1, 2, 3, 7]."""
  runs = []
  for n in sorted(numbers):
    if runs and n == runs[-1][1] + 1:
      runs[-1][1] = n
    else:
      runs.append([n, n])
  return ','.join(str(a) if a == b else f'{a}-{b}' for a, b in runs)


def _local(weights):
  """The path of a file of weights."""
  return fetch.local(weights) if fetch.is_url(weights) else (
      os.path.expanduser(weights))


def _is_file(weights):
  return weights.endswith(formats.SUFFIXES) or weights.startswith(
      ('hf://', 'http://', 'https://'))


def _of_a_run(path, best):
  if not files.is_remote(path) and not os.path.exists(
      os.path.expanduser(path)):
    steps = os.path.dirname(os.path.expanduser(path))
    if os.path.basename(steps) == 'checkpoints' and os.path.isdir(steps):
      there = sorted(filter(str.isdigit, os.listdir(steps)), key=int)
      raise errors.UserError(f'{path!r}: no such checkpoint; there are those '
                             f'of the steps {", ".join(there) or "none"}')
    raise errors.UserError(
        f'{path!r}: no such workdir or file, and no release of that name '
        f'(known: {", ".join(registry.names())})')
  if os.path.isfile(os.path.expanduser(path)):
    raise errors.UserError(
        f'{path!r}: expected a workdir, or a file of weights that ends in '
        f'{", ".join(formats.SUFFIXES)}')
  where = checkpoint.find(path, best)
  file = os.path.join(os.path.dirname(os.path.dirname(where)), 'model.json')
  text = files.read(file)
  card = None if text is None else _parse(text, file)
  return _checked(checkpoint.load_params(where), card, where)


def _released(release, weights):
  log.info('%s: %s%s', release.name, release.data,
           f'; {release.note}' if release.note else '')
  source = release.url if weights == release.name else weights
  if not fetch.is_url(source):
    fetch.check_name(_local(source))
  params = formats.load(_local(source))
  model, size = infer(params, release.name)
  model = model.clone(approximate_gelu=release.approximate_gelu)
  like = release.preprocessing
  if like['scale'] == '(0, 1)':
    params = _for_signed_pixels(params)
  loss = 'softmax' if release.loss == registry.UNVERIFIED else release.loss
  card = cards.make(catalog.describe(model, release.model), image_size=size,
                    class_names=registry.class_names(release),
                    data=release.data, loss=loss, crop=like['crop'],
                    interpolation=like['interpolation'])
  return _checked(params, card, release.name)


def _for_signed_pixels(params):
  """For pixels v in [-1, 1] what `params` are for x = (v + 1) / 2: the patch
  projection is linear, so this is exact but for rounding."""
  kernel_PPcC, bias_C = params['stem']['kernel'], params['stem']['bias']
  return dict(params, stem=dict(
      kernel=kernel_PPcC / 2,
      bias=bias_C + kernel_PPcC.sum(axis=(0, 1, 2)) / 2))


def _checked(params, card, source, from_size=None, tanh=True):
  inferred = card is None
  if inferred:
    model, size = infer(params, source, from_size)
    model = model.clone(approximate_gelu=tanh)   # timm computes the exact form
    card = cards.make(catalog.describe(model), image_size=size, **_USUAL)
  else:
    try:
      model = models.create(**card['model'])
    except (errors.UserError, TypeError) as e:
      raise errors.UserError(f'{source!r}: its card: {e}') from e
  images = jnp.zeros((1, *card['image_size'], model.in_channels))
  wanted = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  wrong = misfits(params, wanted)
  if wrong:
    raise errors.UserError(
        f'{source!r} is not the {card["model"]["name"]} that '
        f'{"its shapes suggest" if inferred else "its card says"}: '
        f'{"; ".join(wrong)}')
  if inferred:
    log.info('%s has no card: it is taken to be for images of %s pixels, '
             'crop %s, %s', source, 'x'.join(map(str, card['image_size'])),
             *card['preprocessing'].values())
  return Network(model, params, card, source)


def _parse(text, file):
  try:
    card = json.loads(text)
    missing = [key for key in cards.KEYS if key not in card]
  except (ValueError, TypeError) as e:
    raise errors.UserError(f'{file!r} is no card of a network: {e}') from e
  if missing:
    raise errors.UserError(f'{file!r} lacks {", ".join(missing)}; a card is '
                           'written by training and by mixer.export')
  size, like = card['image_size'], card['preprocessing']
  names, model = card['class_names'], card['model']
  classes = model.get('num_classes', 1000) if isinstance(model, dict) else None
  for key, right in (
      ('model', isinstance(model, dict) and 'name' in model
       and isinstance(classes, int | None)),
      ('class_names', names is None or isinstance(names, list)
       and isinstance(classes, int) and len(names) <= classes
       and all(isinstance(name, str) for name in names)),
      ('image_size', isinstance(size, list) and len(size) == 2
       and all(isinstance(side, int) and side > 0 for side in size)),
      ('loss', card['loss'] in ('softmax', 'sigmoid')),
      ('preprocessing', isinstance(like, dict)
       and like.keys() == {'crop', 'interpolation'}
       and like['crop'] in eval_crops.CROPS
       and like['interpolation'] in eval_crops.INTERPOLATIONS)):
    if not right:
      value = repr(card[key])
      value = value if len(value) < 200 else f'{value[:200]}...'
      raise errors.UserError(f'{file!r}: {key} is {value}, which is not what '
                             'training and mixer.export write')
  return card
