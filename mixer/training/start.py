"""Loads the parameters that a run starts from, and fits them to its model."""
from collections.abc import Collection
from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mixer.core import errors
from mixer.core import trees
from mixer.core.log import log
from mixer.models import catalog
from mixer.models import interface
from mixer.models import recognition
from mixer.pretrained import network
from mixer.pretrained.resize import resize

_SYNSET = re.compile(r'n\d{8}( |$)')


def start(model: interface.Model, *, image_size: tuple[int, int], weights: str,
          own: Collection[str] = (), best: bool = False,
          dont_load: str | None = None, method: str | None = None,
          class_names: Sequence[str] | None = None, data: str | None = None
          ) -> tuple[interface.Model, dict[str, Any]]:
  """Loads weights for a run's model; a config's `start` section.

  Weights that were made for another image size, patch size or number of
  channels are resized. The outputs of a head that is loaded follow the names of
  the run's classes, if both sides name theirs.

  Args:
    model: of the run, as `models.create` makes it.
    image_size: (height, width) of the run's images.
    weights: anything that `network.open_network` takes; '' if weights are
      needed and the user has to choose some.
    own: settings of the model that the config itself sets; the weights decide
      the other widths. D_S is that of the resized weights, which the paper's
      block-diagonal form multiplies, unless the config sets another than the
      weights have before resizing.
    best: whether to take the best checkpoint of a workdir, not its latest.
    dont_load: regular expression for the whole names of parameters that are
      initialised afresh, such as 'head/.*'; None for none.
    method: 'block' or 'resample', as in `pretrained.resize`; None to choose by
      the sizes.
    class_names: of the run, in the order of the labels, or None.
    data: name of the run's training set, or None.

  Returns:
    (model, params): the model with the settings that the weights need, and a
    nested dict of arrays without those that `dont_load` matches. Masked arrays
    leave out the outputs of the head for classes that the weights lack.

  Raises:
    UserError: if the weights cannot be found or read, or cannot be resized, or
      are another network of the paper than the config names, or if `dont_load`
      matches no parameter.
  """
  if not weights:
    raise errors.UserError(
        'start.weights: not set, and no ImageNet-21k weights are released for '
        f'{catalog.describe(model)["name"]}; give a workdir or a file of '
        'your own, as in --config.start.weights=runs/mixer_s32')
  afresh = trees.compiled(   # the empty pattern matches nothing
      'start.dont_load', dont_load or r'(?!)')
  try:
    source = network.open_network(weights, best=best)
  except errors.UserError as e:
    raise errors.UserError(f'start.weights: {e}') from e
  model = _like(source.model, model, own)
  try:
    resized, params = resize(
        source.model, source.params, image_size=image_size,
        from_size=source.image_size, method=method,
        patch_size=model.patch_size, in_channels=model.in_channels)
  except errors.UserError as e:
    raise errors.UserError(f'start: {e}') from e
  for key in model.TIED_TO_SIZE:
    if key not in own or getattr(model, key) == getattr(source.model, key):
      model = model.clone(**{key: getattr(resized, key)})
  flat = trees.flatten(params)
  kept = {name: value for name, value in flat.items()
          if not afresh.fullmatch(name)}
  # Weights without a head have no 'head/kernel' for a pattern to match.
  if dont_load and len(kept) == len(flat) and not afresh.fullmatch(
      'head/kernel'):
    raise errors.UserError(
        f'start.dont_load: {dont_load!r} does not match the whole name of any '
        "parameter; names look like 'stem/kernel' (parameters.txt in a workdir "
        'lists them all)')
  log.info('start    %s: %s for images of %s%s; initialised afresh: %s',
           source.name, source.title, _size(source.image_size),
           _changes(source, resized, image_size),
           ', '.join(sorted(flat.keys() - kept)) or 'nothing')
  if 'head/kernel' in kept and 'head/bias' in kept and model.num_classes:
    _fit_head(kept, source.card, model.num_classes, class_names, data)
  return model, trees.unflatten(kept)


def merge(given: Mapping[str, Any], initial: Mapping[str, Any], source: str,
          dont_load: str | None = None) -> dict[str, Any]:
  """Returns loaded parameters, completed by the initial ones of a model.

  Args:
    given: parameters as `start` returns them.
    initial: nested dict of arrays, or of their shapes to check only.
    source: the `weights` that `start` was given, for messages.
    dont_load: as `start` was given it: these parameters are initial ones.

  Raises:
    UserError: if any other names or shapes differ; names the first ones.
  """
  flat = trees.flatten(initial)
  afresh = {name: value for name, value in flat.items()
            if dont_load and re.fullmatch(dont_load, name)}
  merged = trees.unflatten(dict(afresh, **{
      name: _filled(value, flat.get(name))
      for name, value in trees.flatten(given).items()}))
  wrong = recognition.misfits(merged, initial)
  if wrong:
    raise errors.UserError(
        f'start.weights: {source!r} does not fit the model'
        f'{_remedy(wrong, merged, initial)}. They differ in '
        f'{recognition.shortened(wrong)}')
  return merged


def _like(source: interface.Model, model: interface.Model,
          own: Collection[str]) -> interface.Model:
  """Returns a model with the settings that it takes from weights; says so.

  A config always names a network. That name stands for widths, but weights
  with widths of their own have none that would suit them.

  Args:
    source: of the weights.
    model: of the run, as its config describes it.
    own: as `start` takes it.

  Raises:
    UserError: if the two are different networks of the paper.
  """
  if type(source) is not type(model):
    theirs, ours = (catalog.describe(m)['name'] for m in (source, model))
    raise errors.UserError(
        f'model.name: the config describes {ours}, and start.weights are '
        f'{theirs}; set --config.model.name to such a network, or give other '
        'weights')
  differs = lambda key: getattr(source, key) != getattr(model, key)
  taken = [key for key in model.WIDTHS if key not in own and differs(key)]
  theirs, ours = (catalog.describe(m)['name'] for m in (source, model))
  named = source.settings(theirs)
  if any(key in named for key in taken):
    if all(getattr(source, key) == named.get(key, getattr(source, key))
           for key in model.WIDTHS):
      raise errors.UserError(
          f'model.name: the config describes {ours}, and start.weights are '
          f'{theirs}; add --config.model.name={theirs}, or give other weights')
    taken += [key for key in ('patch_size',)
              if key not in own and differs(key)]
  taken += filter(differs, model.TAKEN_FROM_WEIGHTS)
  if taken:
    log.info('start    using %s, as the weights do', ', '.join(
        f'{key}={getattr(source, key)}' for key in taken))
  return model.clone(**{key: getattr(source, key) for key in taken})


def _fit_head(kept: dict[str, Any], card: Mapping[str, Any], num_classes: int,
              class_names: Sequence[str] | None, data: str | None) -> None:
  """Reorders a loaded head by the names of classes, in place, and says so."""
  theirs, ours = card['class_names'], class_names
  if not theirs or not ours:
    if card['data'] != data and kept['head/bias'].shape == (num_classes,):
      log.warning(
          'start    keeping the head of weights for %s, whose classes may not '
          'be those of %s; to train a new head, add '
          "--config.start.dont_load='head/.*'", card['data'] or 'unknown data',
          data or 'this run')
    return
  theirs, ours = _keys(theirs), _keys(ours)
  if theirs == ours and kept['head/bias'].shape == (num_classes,):
    log.info('start    keeping the head: the same %d classes', len(ours))
    return
  # A name that two classes share tells neither.
  number = {name: i for i, name in enumerate(theirs) if theirs.count(name) == 1}
  to = [i for i, name in enumerate(ours)
        if name in number and ours.count(name) == 1]
  origin = [number[ours[i]] for i in to]
  for name in ('head/kernel', 'head/bias'):
    value = np.asarray(kept[name])
    kept[name] = np.ma.masked_all(
        (*value.shape[:-1], num_classes), value.dtype)
    kept[name][..., to] = value[..., origin]
  log.info('start    %s the head: %d of %d classes have a name among the '
           'classes of the weights%s', 'mapping' if to else 'resetting',
           len(to), len(ours), '; the others are initialised afresh'
           if 0 < len(to) < num_classes else '')


def _keys(names: Sequence[str]) -> list[str]:
  """Returns names; of a synset and a word for it, the synset alone."""
  return [name.split()[0] if _SYNSET.match(name) else name for name in names]


def _filled(value: Any, initial: Any) -> Any:
  """Returns a loaded array, with initial values where it is masked."""
  if not isinstance(value, np.ma.MaskedArray):
    return value
  mask, value = np.ma.getmaskarray(value), value.filled(0)
  if not isinstance(initial, jax.Array) or initial.shape != value.shape:
    return value   # only its shape is checked
  return jnp.where(mask, initial, value)


def _changes(source: network.Network, resized: interface.Model,
             image_size: tuple[int, int]) -> str:
  """Returns how the weights were resized, in words; '' if they were not."""
  made = [f'{key} {getattr(resized, key)}'
          for key in ('patch_size', 'in_channels', *resized.TIED_TO_SIZE)
          if getattr(resized, key) != getattr(source.model, key)]
  if not made and tuple(image_size) == source.image_size:
    return ''
  return ', resized to ' + ', '.join([_size(image_size), *made])


def _size(sides: Sequence[int]) -> str:
  return 'x'.join(map(str, sides))


def _remedy(wrong: list[str], given: Mapping[str, Any],
            wanted: Mapping[str, Any]) -> str:
  """Returns the flags that change the model into one that the weights fit."""
  if all(line.startswith('head/') for line in wrong):
    return "; to train a new head, add --config.start.dont_load='head/.*'"
  have, want = recognition.widths(given), recognition.widths(wanted)
  flags = [f'--config.model.{key}={value}' for key, value in have.items()
           if value != want.get(key)]
  return f'; to match their widths, add {" ".join(flags)}' if flags else ''
