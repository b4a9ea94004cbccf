"""Parameters to start from, made for the run's images and classes."""
import re

from mixer.core import errors
from mixer.core import trees
from mixer.core.log import log
from mixer.models import catalog
from mixer.pretrained import network as networks
from mixer.pretrained.resize import resize


def start(model, *, image_size, widen=True, weights=None, best=False,
          dont_load=None, method=None):
  """The run's model and what it starts from; a config's `start` section.

  Weights for other images, patches or channels are resized.

  Args:
    model: `models.MlpMixer` of the run.
    image_size: (height, width) of the run's images.
    widen: whether the model's D_S is that of the resized weights, which the
      paper's block-diagonal form multiplies. If it is False the model's stands,
      unless it is that of the weights before they were resized.
    weights: as `network.open_network` takes them, or None for none; '' where
      some are needed and the user has to say which.
    best: of a workdir, the best checkpoint instead of the latest.
    dont_load: regular expression for the whole names of parameters that start
      afresh, such as 'head/.*'; None for none.
    method: 'block' or 'resample', see `resize.resize`.

  Returns:
    (model, params): params a nested dict without what `dont_load` matches, or
    None.

  Raises:
    UserError: if they cannot be had, or cannot be resized, or `dont_load`
      matches nothing.
  """
  if weights is None:
    return model, None
  if not weights:
    raise errors.UserError(
        'start.weights: not given, and no ImageNet-21k weights of '
        f'{catalog.describe(model)["name"]} are released; give your own, a '
        'workdir or a file, as in --config.start.weights=runs/mixer_s32')
  fresh = _compiled(dont_load)
  try:
    network = networks.open_network(weights, best=best)
  except errors.UserError as e:
    raise errors.UserError(f'start.weights: {e}') from e
  try:
    resized, params = resize(
        network.model, network.params, image_size=image_size,
        from_size=network.image_size, method=method,
        patch_size=model.patch_size, in_channels=model.in_channels)
  except errors.UserError as e:
    raise errors.UserError(f'start: {e}') from e
  if model.approximate_gelu != network.model.approximate_gelu:
    log.info('start    the model takes over the %s form of GELU of the weights',
             'tanh' if network.model.approximate_gelu else 'exact')
    model = model.clone(approximate_gelu=network.model.approximate_gelu)
  for key in model.TIED_TO_SIZE:
    if widen or getattr(model, key) == getattr(network.model, key):
      model = model.clone(**{key: getattr(resized, key)})
  flat = trees.flatten(params)
  kept = {name: value for name, value in flat.items()
          if not fresh.fullmatch(name)}
  # Weights without a head start one afresh.
  if dont_load and len(kept) == len(flat) and not fresh.fullmatch(
      'head/kernel'):
    raise errors.UserError(
        f'start.dont_load: {dont_load!r} matches no name of a parameter as a '
        "whole; they are such as 'stem/kernel' (parameters.txt of a workdir "
        'has them all)')
  log.info('start    %s: %s, at %s%s; afresh: %s', network.name, network.title,
           _size(network.image_size), _change(network, resized, image_size),
           ', '.join(sorted(flat.keys() - kept)) or 'nothing')
  return model, trees.unflatten(kept)


def merge(given, initial, source, dont_load=None):
  """`given`, and from `initial` what `dont_load` matches.

  Args:
    given: as `start` returns it.
    initial: nested dict of arrays, or of their shapes.
    source, dont_load: of `start`.

  Raises:
    UserError: at any other difference of names or shapes; all are listed.
  """
  flat = trees.flatten(initial)
  fresh = {name: value for name, value in flat.items()
           if dont_load and re.fullmatch(dont_load, name)}
  merged = trees.unflatten(dict(fresh, **trees.flatten(given)))
  wrong = networks.misfits(merged, initial)
  if wrong:
    raise errors.UserError(
        f'start.weights: {source!r} does not fit the model: '
        f'{"; ".join(wrong)}{_remedy(wrong, merged, initial)}')
  return merged


def _compiled(dont_load):
  try:
    return re.compile(dont_load or r'(?!)')
  except re.error as e:
    raise errors.UserError(f'start.dont_load: {dont_load!r} is no regular '
                           f'expression: {e}') from e


def _change(network, resized, image_size):
  """What was made of the weights, in words; nothing if they stay."""
  made = [f'{key} {getattr(resized, key)}'
          for key in ('patch_size', 'in_channels', *resized.TIED_TO_SIZE)
          if getattr(resized, key) != getattr(network.model, key)]
  if not made and tuple(image_size) == network.image_size:
    return ''
  return ', made for ' + ', '.join([_size(image_size), *made])


def _size(sides):
  return 'x'.join(map(str, sides))


def _remedy(wrong, given, wanted):
  """The flags that make the model one for which weights do fit."""
  if all(w.startswith('head/') for w in wrong):
    return "; to give it a new head, --config.start.dont_load='head/.*'"
  have, want = catalog.widths(given), catalog.widths(wanted)
  flags = [f'--config.model.{key}={value}' for key, value in have.items()
           if value != want.get(key)]
  return f'; for a model of their widths, {" ".join(flags)}' if flags else ''
