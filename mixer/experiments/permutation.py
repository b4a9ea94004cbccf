"""Experiment: which order of the pixels does a network need?

Section 3.4 and figure 4 of the paper: networks are trained on images whose
pixels are in one fixed other order, the same for all images. A Mixer learns as
well if patches, and pixels inside patches, change places, because its
parameters can change places with them; a convolutional network does not.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import math
import os
import statistics
from typing import Any

import jax
import ml_collections
import numpy as np

from mixer.analysis import figures
from mixer.core import errors
from mixer.core import tables
from mixer.experiments import networks as families
from mixer.experiments import runs
from mixer.models import grid
from mixer.models import interface
from mixer.models import pixel_order
from mixer.pretrained import network
from mixer.training import assembly

ORDERS = {'original': 'original', 'within': 'within patches',
          'patches': 'patches', 'both': 'patches and pixels within',
          'all': 'all pixels'}
_OF_FIGURE_4 = ('original', 'both', 'all')
# What the paper says of its Mixer-B/16 and ResNet50x1.
_PAPER = {('Mixer', 'both'): 'none', ('Mixer', 'all'): 'about 45%',
          ('BiT', 'both'): 'strong', ('BiT', 'all'): 'about 75%'}
_POINTS = 10   # of a curve
_IMAGES = 64   # that the exact statement is checked on
# Accuracy is kept if it falls by at most so many standard errors.
ERRORS = 3
RULE = (f'"kept": it falls by at most {ERRORS} standard errors of the '
        'difference, from the variance over seeds, pooled over the orders; "?" '
        'needs two seeds.')
WORDS = {True: 'yes', False: 'no', None: '?'}


def run(config: ml_collections.ConfigDict, path: str, *,
        networks: Sequence[str] = families.FAMILIES, seeds: int = 2,
        patch: int | None = None) -> dict[str, Any]:
  """Trains networks of about equal cost on images in each order.

  Args:
    config: of a run with a Mixer; the others are made from it.
    path: directory of the experiment.
    networks: names of `families.FAMILIES`.
    seeds: runs of each network and order. Seeds count from `run.seed`, and
      decide the permutation too.
    patch: side in pixels of the patches that are permuted; the Mixer's if None.

  Returns:
    'networks', {name: its multiply-adds}; 'rows', see `trained`; 'error',
    {name: see `error`}; 'exact', what `exact` returns, if there is a Mixer;
    'patch', 'seeds' and 'metric'.

  Raises:
    UserError: if a flag or the config is wrong.
  """
  found = trained(config, path, networks, _OF_FIGURE_4, seeds, patch)
  if 'Mixer' in found['networks'] and config.model.token_mixing in (
      None, 'tied'):
    first = network.open_network(
        folder(path, 'Mixer', 'original', config.run.seed))
    # In patches of its own: the statement is not about others.
    found['exact'] = exact(first.model, first.params, first.image_size, 'both')
  return found


def trained(config: ml_collections.ConfigDict, path: str, names: Sequence[str],
            orders: Sequence[str], seeds: int, patch: int | None
            ) -> dict[str, Any]:
  """Trains each network on images in each order, from each seed.

  Args:
    config, path, seeds, patch: see `run`.
    names: of the networks.
    orders: keys of `ORDERS`, with 'original' first.

  Returns:
    see `run`, without 'exact'. A row has 'network', 'order', 'steps' [N] of the
    curve, 'curves' [seeds, N] of accuracy, 'accuracy' [seeds] at the end,
    'mean', 'spread' (their standard deviation), 'drop', the part of the
    original order's mean accuracy that is lost, and 'keeps', see `keeps`.

  Raises:
    UserError: if a name or the patch is wrong.
  """
  metric = runs.accuracy_of(config)
  rows: list[dict[str, Any]] = []
  patch = patch or max(grid.pair(families.model(config).patch_size))
  size = grid.pair(assembly.check(config).image_size)
  if patch < 2 or any(side % patch for side in size):
    raise errors.UserError(
        f'--patch: expected 2 or more pixels, and patches that fill images of '
        f'{size[0]}x{size[1]}, got {patch}')
  each = {family: families.alike(_with_points(config), family)
          for family in families.families(names)}
  for family, like in each.items():
    for order in orders:
      scores: list[float] = []
      places: list[str] = []
      for seed in range(config.run.seed, config.run.seed + seeds):
        place = folder(path, family, order, seed)
        scores.append(runs.train(runs.edited(
            like, run=dict(seed=seed),
            model=dict(pixel_order=value(order, patch, seed))), place,
                                 curves=True)[metric])
        places.append(place)
      steps, curves = runs.curves(places, metric)
      mean, spread = runs.spread(scores)
      original = mean if order == 'original' else next(
          row['mean'] for row in rows
          if (row['network'], row['order']) == (family, 'original'))
      rows.append(dict(
          network=family, order=order, steps=steps, curves=curves,
          accuracy=scores, mean=mean, spread=spread,
          drop=1 - mean / original if original else 0.0))
  errors_of = {family: error([row['accuracy'] for row in rows
                              if row['network'] == family]) for family in each}
  for row in rows:
    row['keeps'] = keeps(row['accuracy'], next(
        other['accuracy'] for other in rows
        if other['network'] == row['network']), errors_of[row['network']])
  return dict(
      networks={family: families.multiply_adds(like)
                for family, like in each.items()},
      metric=metric, patch=patch, seeds=seeds, rows=rows, error=errors_of)


def folder(path: str, family: str, order: str, seed: int) -> str:
  """Returns the directory of the run of a network, an order and a seed."""
  return os.path.join(path, f'{family}-{order}-seed{seed}')


def value(order: str, patch: int, seed: int) -> str | None:
  """Returns `model.pixel_order` of a key of `ORDERS`."""
  return None if order == 'original' else f'{order}:{patch}:{seed}'


def error(groups: Sequence[Sequence[float]]) -> float | None:
  """Returns the standard error of the difference of two groups' means.

  The variance over seeds is taken to be that of all groups together, since one
  group has few seeds. None if there is one seed only.
  """
  if len(groups[0]) < 2:
    return None
  variance = statistics.fmean(map(statistics.variance, groups))
  return math.sqrt(2 * variance / len(groups[0]))


def keeps(accuracy: Sequence[float], original: Sequence[float],
          error: float | None) -> bool | None:
  """Returns whether accuracy falls by at most three standard errors.

  Args:
    accuracy: of each seed.
    original: the same, for images in their original order.
    error: see `error`; without one, the result is None.
  """
  if error is None:
    return None
  fall = runs.spread(original)[0] - runs.spread(accuracy)[0]
  return fall <= ERRORS * error


def exact(model: interface.Model, params: interface.Params,
          image_size: grid.Size, order: str) -> dict[str, float]:
  """Compares a Mixer with its counterpart for permuted images.

  The two compute one function: they differ only because float32 sums over
  pixels of a patch, and over tokens, are taken in another order.

  Args:
    model: a Mixer with the paper's token mixing.
    params: its parameters.
    image_size: of its images.
    order: as `model.pixel_order`, of the kinds that keep patches together.

  Returns:
    'difference', the largest of a logit for random images; 'units', the same
    in units of the last of the 24 bits of the largest logit; 'bits', how many
    of these bits agree.
  """
  height, width = grid.pair(image_size)
  images = np.random.default_rng(0).uniform(
      -1, 1, (_IMAGES, height, width, model.in_channels)).astype(np.float32)
  logits = lambda model, params: np.asarray(jax.jit(model.apply)(
      {'params': params}, images)[0])
  with jax.default_matmul_precision('float32'):
    before = logits(model, params)
    after = logits(model.clone(pixel_order=order), counterpart(
        params, *pixel_order.parts(order, height, width, model.patch_size)))
  difference = float(np.abs(after - before).max())
  units = difference / float(np.spacing(np.abs(before).max()))
  return dict(difference=difference, units=units,
              bits=24 - math.ceil(math.log2(max(units, 1))))


def counterpart(params: interface.Params, patches: np.ndarray,
                within: np.ndarray) -> dict[str, Any]:
  """Returns the parameters with which a Mixer computes the same function of
  permuted images.

  Rows of W1, columns of W2 and the second bias of token mixing change places
  like the patches, and the stem's inputs like the pixels within.

  Args:
    params: of a Mixer with the paper's token mixing.
    patches, within: see `pixel_order.parts`.
  """
  stem = params['stem']['kernel']
  out = dict(params, stem=dict(params['stem'], kernel=stem.reshape(
      len(within), *stem.shape[2:])[within].reshape(stem.shape)))
  for name, block in params.items():
    if name.startswith('MixerBlock_'):
      first, second = (block['token_mixing'][f'Dense_{i}'] for i in (0, 1))
      out[name] = dict(block, token_mixing=dict(
          Dense_0=dict(first, kernel=first['kernel'][patches]),
          Dense_1=dict(kernel=second['kernel'][:, patches],
                       bias=second['bias'][patches])))
  return out


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  tables.show(tables.make(
      [(row['network'], ORDERS[row['order']], runs.shown(row['accuracy']),
        *(('', '') if row['order'] == 'original' else
          (f'{row["drop"]:.1%}', WORDS[row['keeps']])),
        _PAPER.get((row['network'], row['order']), ''))
       for row in found['rows']],
      ('network', 'order of the pixels', 'accuracy', 'relative drop',
       'kept', "paper's drop"), left=2,
      title=f'trained on images in a fixed order, patches of {found["patch"]} '
      f'pixels; {runs.of_seeds(found["seeds"])}',
      caption=f'{RULE} The paper\'s drops: 5-shot linear ImageNet accuracy of '
      'Mixer-B/16 and ResNet50x1, pre-trained on JFT-300M.'))
  if exactly := found.get('exact'):
    print('Exact statement: with patches and pixels permuted, and the '
          "Mixer's parameters likewise, the logits\n  differ by at most "
          f'{exactly["units"]:.0f} units in the last place of the largest: '
          f'{exactly["bits"]} of 24 bits agree. Float32 sums are\n  taken in '
          'another order.')


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns accuracy against steps, a panel for each network (figure 4)."""
  names = list(found['networks'])
  figure, axes = figures.grid(
      1, len(names), sharey=True, height=2.3,
      width=figures.PAGE if len(names) > 2 else figures.COLUMN)
  for axis, name in zip(axes[0], names):
    axis.set_title(name)
    axis.set_xlabel('training steps')
    axis.grid(axis='y')
    figures.percent(axis)
    for i, row in enumerate(
        row for row in found['rows'] if row['network'] == name):
      figures.band(axis, row['steps'], np.array(row['curves']), number=i,
                   label=ORDERS[row['order']], marker=figures.MARKERS[i],
                   markersize=3)
  axes[0, 0].set_ylabel('accuracy')
  figure.legend(*axes[0, 0].get_legend_handles_labels(),
                loc='outside upper center', ncols=3)
  return figure


def _with_points(config: ml_collections.ConfigDict
                 ) -> ml_collections.ConfigDict:
  """Returns a copy that trains to its end, whatever the evaluations say, and is
  evaluated often enough for a curve."""
  steps, every = config.run.total_steps, config.run.eval_every
  if steps is not None and not 0 < every <= 2 * steps // _POINTS:
    every = max(steps // _POINTS, 1)
  return runs.edited(config, run=dict(eval_every=every, patience=0))
