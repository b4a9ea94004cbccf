"""A network ready to use, from whatever holds its weights.

Its card says what it takes to use it, see `models.catalog`. Weights without a
card are taken for the network that their shapes fit.
"""
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import os
import re
import types
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer import models
from mixer.core import errors
from mixer.core import files
from mixer.core import trees
from mixer.core import workdir
from mixer.core.log import log
from mixer.models import catalog
from mixer.models import grid
from mixer.models import recognition
from mixer.pretrained import fetch
from mixer.pretrained import formats
from mixer.pretrained import headers
from mixer.pretrained import origin
from mixer.pretrained import registry
from mixer.pretrained import timm_config

if typing.TYPE_CHECKING:
  from mixer.models import interface

# Of weights without a card.
_USUAL = dict(crop='resmall', interpolation='bilinear')
_OF_A_BLOCK = 4   # tensors at least: those of LayerNorm and of a layer


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A model, its parameters, and its card.

  Attributes:
    model: as `models.create` makes it.
    params: nested dict of NumPy arrays with the published names.
    card: see `models.catalog`.
    name: where it is from.
  """
  model: 'interface.Model'
  params: Mapping[str, Any]
  card: dict[str, Any]
  name: str

  @property
  def image_size(self) -> tuple[int, int]:
    """(height, width) in pixels."""
    return grid.pair(self.card['image_size'])

  @property
  def title(self) -> str:
    """The model's name, and its settings that differ from that name's."""
    return catalog.title(self.card['model'])

  def predict(self, paths: Iterable[str | os.PathLike[str]],
              top: int = 5) -> list[list[tuple[str, float]]]:
    """Returns, for each image file, the likeliest classes: (name, probability),
    best first. See `prediction.best`."""
    # Imported here, because most uses decode no images.
    from mixer.pretrained import prediction
    return prediction.best(self, paths, top)


def open_network(weights: str | os.PathLike[str], *, best: bool = False,
                 average: bool = False,
                 from_size: grid.Size | None = None) -> Network:
  """Returns the network whose weights are named.

  Args:
    weights: a workdir, which stands for its latest checkpoint; one of its
      checkpoints, `WORKDIR/checkpoints/STEP`; a file that ends in one of
      `formats.SUFFIXES`; an https://, gs:// or hf:// address of such a file; or
      the name of a release, one of `registry.names()`.
    best: whether to take a workdir's best checkpoint instead of the latest.
    average: whether to take the averaged parameters of a run with
      `run.average`.
    from_size: image size, an int or (height, width), that a file without a card
      is for, if that is not square.

  Raises:
    UserError: if there are no such weights, or they are damaged, or differ from
      what their card says.
  """
  weights = str(weights)
  release = registry.find(weights)
  if release is None and not _is_file(weights):
    return _of_a_run(weights, best, average)
  if best or average:
    raise errors.UserError(
        f'--{"best" if best else "average"}: only a workdir has '
        f'{"a best checkpoint" if best else "averaged parameters"}, and '
        f'{weights!r} is not a workdir')
  if release is not None:
    return _released(release, weights)
  path = _local(weights)
  params, layout = formats.read(path)
  text = files.read(path + '.json')
  card = None if text is None else headers.card(text, path + '.json')
  timm = timm_config.beside(weights, path) if (
      card is None and layout == 'timm') else {}
  return _checked(params, card, weights, from_size,
                  approximate_gelu=layout != 'timm', timm=timm)


def load(weights: str | os.PathLike[str], *,
         best: bool = False) -> Mapping[str, Any]:
  """Returns the parameters of `open_network(weights, best=best)`: a nested dict
  of NumPy arrays with the names of the released checkpoints."""
  return open_network(weights, best=best).params


def infer(params: Mapping[str, Any], source: str,
          from_size: grid.Size | None = None) -> tuple[
              'interface.Model', tuple[int, int]]:
  """Returns the model that parameters are for by their shapes, and its image
  size.

  Args:
    params: nested dict of arrays.
    source: where they are from, for errors.
    from_size: the image size, if it is not square.

  Raises:
    UserError: if no network has such parameters.
  """
  try:
    return recognition.infer(params, from_size)
  except errors.UserError as e:
    raise errors.UserError(f'{source!r}: {e}') from e


def _local(weights: str) -> str:
  """Returns the path of a file of weights, fetched if it is elsewhere."""
  return fetch.local(weights) if fetch.is_url(weights) else (
      os.path.expanduser(weights))


def _is_file(weights: str) -> bool:
  return weights.endswith(formats.SUFFIXES) or weights.startswith(
      ('hf://', 'http://', 'https://'))


def _of_a_run(path: str, best: bool, average: bool) -> Network:
  local = os.path.expanduser(path)
  if not files.is_remote(path) and not os.path.exists(local):
    steps = os.path.dirname(local)
    if os.path.basename(steps) == workdir.CHECKPOINTS and os.path.isdir(steps):
      there = sorted(filter(str.isdigit, os.listdir(steps)), key=int)
      raise errors.UserError(f'{path!r}: no such checkpoint; there are those '
                             f'of the steps {", ".join(there) or "none"}')
    raise errors.UserError(
        f'{path!r}: no such workdir or file, and no release of that name '
        f'(known: {", ".join(registry.names())})')
  if os.path.isfile(local):
    raise errors.UserError(
        f'{path!r}: expected a workdir, or a file of weights that ends in '
        f'{", ".join(formats.SUFFIXES)}')
  where, params = origin.read(path, best, average)
  run = workdir.run_of(where) or where
  file = os.path.join(run, workdir.CARD)
  text = files.read(file)
  card = None if text is None else headers.card(text, file)
  made = workdir.provenance(run)
  if card and made:
    card['provenance'] = made
  return _checked(params, card, where)


def _released(release: registry.Release, weights: str) -> Network:
  log.info('%s: %s%s', release.name, release.data,
           f'; {release.note}' if release.note else '')
  source = release.url if weights == release.name else weights
  if not fetch.is_url(source):
    fetch.check_name(_local(source))
  params: Mapping[str, Any] = formats.load(_local(source))
  model, size = infer(params, release.name)
  if 'approximate_gelu' in model.TAKEN_FROM_WEIGHTS:
    model = model.clone(approximate_gelu=release.approximate_gelu)
  like = release.preprocessing
  if like['scale'] == '(0, 1)':
    params = timm_config.for_signed_pixels(params)
  loss = 'softmax' if release.loss == registry.UNVERIFIED else release.loss
  card = catalog.card(catalog.describe(model, release.model), image_size=size,
                    class_names=registry.class_names(release),
                    data=release.data, loss=loss, crop=like['crop'],
                    interpolation=like['interpolation'])
  return _checked(params, card, release.name)


def _checked(params: Mapping[str, Any], card: dict[str, Any] | None,
             source: str, from_size: grid.Size | None = None,
             approximate_gelu: bool = True,
             timm: Mapping[str, Any] = types.MappingProxyType({})) -> Network:
  """Returns a network whose parameters fit its card, or raises a UserError."""
  # Shapes alone do not tell the form of GELU, so the layout of names does.
  inferred = card is None
  flat = trees.flatten(params)
  for name, value in flat.items():
    if not np.isfinite(value).all():
      raise errors.UserError(
          f'{source!r}: {name!r} has values that are NaN or infinite; expected '
          'finite weights, so take an earlier checkpoint or another file')
  # A model of that many blocks would keep `init` busy for minutes.
  if any(len(digits) > 6 or int(digits) >= len(flat) for name in flat
         for digits in re.findall(r'\d+', name.partition('/')[0])):
    raise errors.UserError(
        f'{source!r}: a name has a larger number than there are tensors '
        f'({len(flat)}); expected blocks numbered from 0 on')
  if card is None:
    model, size = infer(params, source,
                        from_size or timm_config.image_size(timm))
    if 'approximate_gelu' in model.TAKEN_FROM_WEIGHTS:
      model = model.clone(approximate_gelu=approximate_gelu)
    card = catalog.card(catalog.describe(model), image_size=size,
                      **timm_config.card(timm, model.num_classes, _USUAL))
  else:
    try:
      model = models.create(**card['model'])
    except (errors.UserError, TypeError) as e:
      raise errors.UserError(f'{source!r}: its card: {e}') from e
  blocks = getattr(model, 'num_blocks', 0)
  if _OF_A_BLOCK * blocks > len(flat):
    raise errors.UserError(
        f'{source!r}: {"its names" if inferred else "its card"}: '
        f'model.num_blocks is {blocks}, and the weights are {len(flat)} '
        f'tensors; every block has {_OF_A_BLOCK} or more of its own')
  images = jax.ShapeDtypeStruct(
      (1, *card['image_size'], model.in_channels), jnp.float32)
  wanted = jax.eval_shape(model.init, jax.random.key(0), images)['params']
  wrong = recognition.misfits(params, wanted)
  if wrong:
    suggest = f'its shapes{" and config.json" if timm else ""} suggest'
    raise errors.UserError(
        f'{source!r} is not the {card["model"]["name"]} that '
        f'{suggest if inferred else "its card says"}: '
        f'{recognition.shortened(wrong)}')
  if inferred:
    log.info('%s has no card: %s images of %s pixels, crop %s, interpolation '
             '%s%s', source, 'its config.json names' if timm else 'assuming',
             'x'.join(map(str, card['image_size'])),
             *card['preprocessing'].values(),
             ''.join(f', {key} {timm[key]}' for key in ('mean', 'std')
                     if key in timm))
    if 'mean' in timm:
      params = timm_config.for_signed_pixels(params, timm['mean'], timm['std'])
  return Network(model, params, card, source)
