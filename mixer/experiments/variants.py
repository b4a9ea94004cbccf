"""Experiment: which way of mixing tokens is best under one recipe?

The paper tried four variants of its token-mixing MLP on JFT, and none helped
much (appendix A.1). Here, each row of `models.token_mixing.TABLE` trains from
several seeds with the config's recipe, which is not tuned for it.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import os
import statistics
from typing import Any

import ml_collections

from mixer import models
from mixer.analysis import figures
from mixer.core import errors
from mixer.core import tables
from mixer.core import workdir
from mixer.core.log import log
from mixer.experiments import runs
from mixer.models import token_mixing
from mixer.training import assembly

_TIED = 'tied'   # the paper's own way, which the others are compared with
_SPEED = 'train/images_per_second'
_PAPER = {
    'tied': 'its choice', 'untied': 'no gain', 'grouped': '< 1-2%',
    'views': '+3-4% top-5, S/32 only',
    'pyramid': 'faster, JFT only'}


def run(config: ml_collections.ConfigDict, path: str, *,
        variants: Sequence[str] | None = None, seeds: int = 2
        ) -> dict[str, Any]:
  """Trains each variant from each seed, in PATH/VARIANT-SEED.

  Args:
    config: the recipe of all runs; its network is a Mixer.
    path: directory of the experiment.
    variants: values of `model.token_mixing`, such as 'tied' or 'grouped:4'; by
      default every row of the table.
    seeds: runs of each variant, from seeds that count up from `run.seed`.

  Returns:
    {'metric', 'seeds', 'spread', 'rows'}. 'spread' is the standard deviation
    over seeds, pooled over the variants; None if there is one seed. A row has
    'variant'; 'scores' of the seeds, their mean 'accuracy' and the standard
    deviation 'spread', None if all runs diverged; 'failed', the messages of
    those that did; 'parameters' and 'flops' of a forward pass for one image;
    'images_per_second', the median during training. The best row is first.

  Raises:
    UserError: if a variant is refused, before anything is trained.
  """
  metric, trials = runs.accuracy_of(config), {}
  if config.start.weights is not None:
    raise errors.UserError(
        f'start.weights: {config.start.weights!r} fit one way of mixing tokens '
        'alone; give a config that starts from scratch, such as '
        '--config=configs/digits.py')
  for variant in dict.fromkeys(variants or token_mixing.TABLE):
    for seed in range(config.run.seed, config.run.seed + seeds):
      trial = runs.edited(config, model=dict(token_mixing=variant),
                          run=dict(seed=seed, patience=0))
      assembly.check(trial)
      trials[variant, seed] = trial
  rows: dict[str, dict[str, Any]] = {}
  for (variant, seed), trial in trials.items():
    row = rows.setdefault(variant, dict(variant=variant, scores=[], failed=[],
                                        speeds=[]))
    folder = os.path.join(path, f'{variant.replace(":", "-")}-{seed}')
    try:
      row['scores'].append(runs.train(trial, folder)[metric])
    except errors.Diverged as e:
      log.info('study    %s, seed %d: %s', variant, seed, e)
      row['failed'].append(str(e))
    row['speeds'] += runs.curve(folder, _SPEED)[1]
    row.update(_cost(folder))
  return dict(metric=metric, seeds=seeds, **summarised(list(rows.values())))


def summarised(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Returns 'rows' with their means, the best first, and the pooled 'spread'.

  Args:
    rows: with 'scores' of the seeds and 'speeds' of their steps.
  """
  out = []
  for row in rows:
    scores, speeds = row['scores'], row['speeds']
    mean, spread = runs.spread(scores) if scores else (None, None)
    out.append(dict(
        {key: value for key, value in row.items() if key != 'speeds'},
        accuracy=mean, spread=spread,
        images_per_second=statistics.median(speeds) if speeds else None))
  variances = [statistics.variance(row['scores']) for row in rows
               if len(row['scores']) > 1]
  out.sort(key=lambda row: -1 if row['accuracy'] is None else row['accuracy'],
           reverse=True)
  return dict(spread=statistics.fmean(variances)**0.5 if variances else None,
              rows=out)


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  tables.show(tables.make(
      [_cells(row, found) for row in found['rows']],
      ('mixing', 'parameters', 'MFLOPs', 'images/s', 'accuracy', '±',
       'to tied', 'spreads', 'the paper'),
      title=f'{found["metric"]}; {runs.of_seeds(found["seeds"])}',
      caption=_caption(found)))


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns the figure of what `run` returned: accuracy of each variant with
  its seeds, and the FLOPs of a forward pass for one image."""
  rows = [row for row in found['rows'] if row['scores']][::-1]
  figure, ((left, right),) = figures.grid(
      1, 2, height=0.7 + 0.19 * len(rows), sharey=True, width_ratios=(3, 1.3))
  tied, spread = _tied(found), found['spread']
  if tied is not None:
    left.axvline(tied['accuracy'], color=figures.GREY, linewidth=0.8)
    if spread:
      left.axvspan(tied['accuracy'] - spread, tied['accuracy'] + spread,
                   color=figures.GREY, alpha=0.2, linewidth=0)
  for i, row in enumerate(rows):
    left.plot(row['scores'], [i] * len(row['scores']), 'o', markersize=3,
              markerfacecolor='none', color=figures.PALETTE[0])
    left.plot(row['accuracy'], i, '|', markersize=9, markeredgewidth=1.6,
              color=figures.PALETTE[1])
  right.barh(range(len(rows)), [row['flops'] / 1e6 for row in rows],
             height=0.6, color=figures.PALETTE[0])
  left.set_yticks(range(len(rows)), [row['variant'] for row in rows])
  left.grid(axis='x')
  figures.percent(left, 'x')
  left.set_xlabel('accuracy: seeds, and mean')
  right.set_xlabel('MFLOPs')
  right.tick_params(left=False)
  return figure


def _cost(folder: str) -> dict[str, int]:
  """Returns the number of parameters and the FLOPs of a run's network."""
  card = workdir.card_of(folder) or {}
  model = models.create(**card['model'])
  return dict(parameters=model.parameters(card['image_size']),
              flops=model.forward_flops(card['image_size']))


def _tied(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
  return next((row for row in found['rows']
               if row['variant'] == _TIED and row['scores']), None)


def _cells(row: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
  """Returns the cells of one row of the table."""
  tied, spread, speed = _tied(found), found['spread'], row['images_per_second']
  paper = _PAPER.get(row['variant'].partition(':')[0], '')
  notes = [f'{len(row["failed"])} diverged'] * bool(row['failed']) + [paper]
  scores = ['-'] * 4
  if row['scores']:
    scores[0] = f'{row["accuracy"]:.2%}'
  if len(row['scores']) > 1:
    scores[1] = f'{100 * row["spread"]:.2f}'
  if row['scores'] and tied is not None and row is not tied:
    gain = row['accuracy'] - tied['accuracy']
    scores[2] = f'{100 * gain:+.2f}'
    scores[3] = f'{gain / spread:+.1f}' if spread else '-'
  return [row['variant'], f'{row["parameters"]:,}',
          f'{row["flops"] / 1e6:,.1f}',
          '-' if speed is None else f'{speed:,.0f}', *scores,
          '; '.join(filter(None, notes))]


def _caption(found: Mapping[str, Any]) -> str:
  if found['spread'] is None:
    return 'one seed cannot show whether a difference is chance; try --seeds=3'
  return (f'spread: {100 * found["spread"]:.2f} points, the standard deviation '
          'over seeds, pooled over all variants. By chance, a difference '
          f'between two means of {found["seeds"]} seeds is about '
          f'{(2 / found["seeds"])**0.5:.1f} spreads. Images/s: in training, '
          'beside whatever else ran on the machine')
