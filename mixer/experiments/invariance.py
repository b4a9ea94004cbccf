"""Experiment: which network keeps its accuracy when pixels change places?

It answers two questions that are often confused. Does a network learn as well
from images whose pixels are in another order? And does a trained network still
recognise images when only its input is permuted?
"""
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import ml_collections

from mixer.analysis import figures
from mixer.core import tables
from mixer.experiments import networks as families
from mixer.experiments import permutation
from mixer.experiments import runs
from mixer.pretrained import network

_ORDERS = ('original', 'within', 'patches', 'all')
# Whether a network is invariant to each order but the first, in a published
# table that does not say which question it answers. The paper says that a Mixer
# which is trained so is invariant to the first two.
_MARKS = {'BiT': ('yes', 'no', 'no'), 'ViT': ('yes', 'yes', 'no'),
          'Mixer': ('yes', 'no', 'no')}
_PAPER = {('Mixer', 'within'): 'yes', ('Mixer', 'patches'): 'yes',
          ('Mixer', 'all'): 'no', ('BiT', 'all'): 'no'}


def run(config: ml_collections.ConfigDict, path: str, *,
        networks: Sequence[str] = families.FAMILIES, seeds: int = 2,
        patch: int | None = None) -> dict[str, Any]:
  """Trains networks on images in each order, and permutes the input of those
  that were trained on the original images.

  Args:
    config, path, networks, seeds, patch: see `permutation.run`.

  Returns:
    What `permutation.trained` returns. A row also has 'fixed', the accuracies
    [seeds] of the networks that were trained on the original images when their
    input is permuted, and 'fixed_keeps', see `permutation.keeps`.

  Raises:
    UserError: if a flag or the config is wrong.
  """
  found = permutation.trained(config, path, networks, _ORDERS, seeds, patch)
  for name, error in found['error'].items():
    rows = [row for row in found['rows'] if row['network'] == name]
    like = families.alike(config, name)
    for row in rows:
      row['fixed'] = [] if row['order'] != 'original' else row['accuracy']
    for seed in range(config.run.seed, config.run.seed + seeds):
      net = network.open_network(
          permutation.folder(path, name, 'original', seed))
      for row in rows[1:]:
        order = permutation.value(row['order'], found['patch'], seed)
        row['fixed'].append(runs.evaluate(
            like, net.model.clone(pixel_order=order), net.params,
            net.image_size)[found['metric']])
    for row in rows:
      row['fixed_keeps'] = permutation.keeps(
          row['fixed'], rows[0]['accuracy'], error)
  return found


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  rows = []
  for row in found['rows']:
    name, order = row['network'], row['order']
    mark = dict(zip(_ORDERS[1:], _MARKS[name])).get(order, '')
    kept = lambda key: (
        '' if order == 'original' else permutation.WORDS[row[key]])
    rows.append((
        name, permutation.ORDERS[order], runs.shown(row['accuracy']),
        kept('keeps'), _PAPER.get((name, order), ''),
        runs.shown(row['fixed']), kept('fixed_keeps'), mark))
  tables.show(tables.make(
      rows, ('network', 'order', '(1) trained so', 'kept', 'paper',
             '(2) fixed network', 'kept', 'marks'), left=2,
      title='(1) Does it learn as well from permuted images?\n(2) Does it, '
      'trained on original images, recognise permuted ones?',
      caption=f'Patches of {found["patch"]} pixels; '
      f'{runs.of_seeds(found["seeds"])}. {permutation.RULE} "marks": a '
      'published table, which does not say which question it answers.'))


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns accuracies as grouped bars, a panel for each network."""
  names = list(found['networks'])
  figure, axes = figures.grid(
      1, len(names), sharey=True, height=2.2,
      width=figures.PAGE if len(names) > 2 else figures.COLUMN)
  labels = ('trained in this order', 'fixed network, permuted input')
  for axis, name in zip(axes[0], names):
    rows = [row for row in found['rows'] if row['network'] == name]
    for i, (key, label) in enumerate(zip(('accuracy', 'fixed'), labels)):
      means, spreads = zip(*(runs.spread(row[key]) for row in rows))
      axis.bar([place + .38 * (i - .5) for place in range(len(rows))], means,
               width=.36, yerr=spreads, label=label, color=figures.PALETTE[i],
               error_kw=dict(linewidth=.8))
    axis.set_title(name)
    axis.set_xticks(range(len(rows)), [row['order'] for row in rows])
    axis.set_axisbelow(True)
    axis.grid(axis='y')
    figures.percent(axis)
  axes[0, 0].set_ylabel('accuracy')
  figure.supxlabel('what is permuted', fontsize=8)
  figure.legend(*axes[0, 0].get_legend_handles_labels(),
                loc='outside upper center', ncols=2)
  return figure
