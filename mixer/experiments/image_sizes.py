"""Experiment: what does a network lose and regain at another image size?

A network is trained at one size and resized to each other size. There it is
evaluated as it is, then fine-tuned, and compared with networks that train at
that size from scratch (the paper's appendix C fine-tunes at higher resolution).
"""
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import os
from typing import Any

import jax
import ml_collections
import numpy as np

from mixer.analysis import figures
from mixer.core import errors
from mixer.core import tables
from mixer.experiments import networks
from mixer.experiments import runs
from mixer.models import grid
from mixer.pretrained import network
from mixer.pretrained.resize import METHODS
from mixer.pretrained.resize import resize
from mixer.training import assembly
from mixer.training import metrics_file


def run(config: ml_collections.ConfigDict, path: str, *,
        sizes: Sequence[int | str], methods: Sequence[str | None] = (None,),
        tuning_steps: int = 200) -> dict[str, Any]:
  """Trains a network at its own size, and measures it at other sizes.

  Args:
    config: the config of the first training, at its own image size.
    path: directory of the experiment.
    sizes: the other image sizes, in pixels.
    methods: methods of `resize` to compare; None for its default.
    tuning_steps: steps of fine-tuning, which starts from the resized network,
      at a third of the config's learning rate.

  Returns:
    {'size', 'accuracy', 'steps', 'tuning_steps', 'rows'}. A row has 'size',
    'method', and accuracies: 'before' of the resized network, 'tuned' after
    fine-tuning, 'scratch' after as many steps from scratch, and 'full' after as
    many steps from scratch as the first training had. From scratch is without
    the config's start weights, which only the first training has.

  Raises:
    UserError: if a size or a method is wrong, before the first run.
  """
  metric = runs.accuracy_of(config)
  if not sizes or not all(str(size).isdigit() for size in sizes):
    raise errors.UserError(
        '--sizes: expected image sizes in pixels, such as --sizes=20,48, got '
        f'{",".join(map(str, sizes))!r}')
  for method in methods:
    if method not in (None, *METHODS):
      raise errors.unknown('--methods', method, METHODS)
  _check(config, sizes, methods)
  first = os.path.join(path, 'first')
  rate = float(f'{config.schedule.learning_rate / 3:.3g}')
  scores = runs.train(config, first)
  steps = config.run.total_steps or metrics_file.read(first)[-1]['step']
  rows = []
  trained = network.open_network(first)
  for size in dict.fromkeys(map(int, sizes)):
    at = runs.edited(config, run=dict(image_size=size, image_width=None),
                     start=dict(weights=None, best=False, dont_load=None,
                                method=None))
    short = runs.short(at, tuning_steps)
    scratch = runs.train(short, os.path.join(path, f'scratch-{size}'))
    full = runs.train(at, os.path.join(path, f'full-{size}'))
    for method in methods:
      model, params = resize(
          trained.model, trained.params, image_size=size,
          from_size=trained.image_size, method=method)
      before = runs.evaluate(at, model, params, size)
      tuned = runs.train(
          runs.edited(short, start=dict(weights=first, method=method),
                      schedule=dict(learning_rate=rate)),
          os.path.join(path, f'tuned-{size}-{method or "default"}'))
      rows.append(dict(
          size=size, method=method or _default(trained.image_size, size),
          before=before[metric], tuned=tuned[metric], scratch=scratch[metric],
          full=full[metric]))
  return dict(size='x'.join(map(str, trained.image_size)),
              accuracy=scores[metric], steps=steps,
              tuning_steps=tuning_steps, rows=rows)


def _check(config: ml_collections.ConfigDict, sizes: Sequence[int | str],
           methods: Sequence[str | None]) -> None:
  """Raises a UserError if a method cannot take the network to a size."""
  model, own = networks.model(config), assembly.check(config).image_size
  shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros(
      (1, *grid.pair(own), model.in_channels), np.float32))['params']
  params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  for size, method in itertools.product(sizes, methods):
    try:
      resize(model, params, image_size=int(size), from_size=own, method=method)
    except errors.UserError as e:
      raise errors.UserError(f'--sizes: {size}: {e}') from e


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  short, full = found['tuning_steps'], found['steps']
  tables.show(tables.make(
      [(row['size'], row['method'], *(
          f'{row[key]:.2%}' for key in ('before', 'tuned', 'scratch', 'full')))
       for row in found['rows']],
      ('size', 'method', 'resized', f'+ {short} steps',
       f'scratch, {short} steps', f'scratch, {full} steps'), left=2,
      title=f'trained at {found["size"]}: {found["accuracy"]:.2%} after '
      f'{full} steps'))


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns a figure of what `run` returned: accuracy at each image size."""
  figure, ((axis,),) = figures.grid(height=2.5)
  own = int(found['size'].split('x')[0]), found['accuracy']
  short, full = found['tuning_steps'], found['steps']
  methods = list(dict.fromkeys(row['method'] for row in found['rows']))
  lines = {method: [row for row in found['rows'] if row['method'] == method]
           for method in methods}
  for number, (key, label, start) in enumerate((
      ('before', 'resized', [own]), ('tuned', f'tuned, {short} steps', []),
      ('scratch', f'scratch, {short} steps', []),
      ('full', f'scratch, {full} steps', [own]))):
    resized = key in ('before', 'tuned')   # the others do not have a method
    for style, method in zip(('-', '--'), methods if resized else methods[:1]):
      rows = lines[method] if resized else found['rows']
      points = sorted({*start, *((row['size'], row[key]) for row in rows)})
      name = f', {method}' if resized and len(methods) > 1 else ''
      axis.plot(*zip(*points), style, marker=figures.MARKERS[number],
                color=figures.PALETTE[number], label=label + name)
  axis.plot(*own, 'o', color='k', markersize=7, fillstyle='none')
  axis.annotate(f'trained at {found["size"]}', own, (0, 6), ha='center',
                textcoords='offset points', fontsize=7)
  axis.set(xlabel='image size (pixels)', ylabel='accuracy')
  axis.set_xticks(sorted({own[0], *(row['size'] for row in found['rows'])}))
  axis.margins(y=.12)
  axis.grid(True)
  figures.percent(axis)
  figure.legend(loc='outside upper center', ncols=2)
  return figure


def _default(trained: Sequence[int], size: int) -> str:
  """Returns the method that `resize` chooses by itself."""
  return 'block' if all(size % side == 0 for side in trained) else 'resample'
