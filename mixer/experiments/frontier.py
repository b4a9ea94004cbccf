"""Experiment: accuracy against training cost and against throughput.

Figure 2 (left) and figure 3 of the paper: its own results in grey, and runs of
the user beside them. It trains nothing.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from mixer.analysis import figures
from mixer.core import tables
from mixer.experiments import run_records
from mixer.models import published

_FAMILIES = {'Mixer': 'o', 'ViT': 's', 'BiT': '^'}
_OTHER = 'x'   # the marker of networks that this code does not have
# Where labels stand, so that few lie on each other: (to the right, up).
_PLACES = {'Mixer': (-1, 1), 'ViT': (1, 1), 'BiT': (1, -1)}


def run(config: Any, path: str, *, runs: Sequence[str] = (),
        metric: str | None = None) -> dict[str, Any]:
  """Reads what runs reached, and finds those that no other run beats.

  Args:
    config: None.
    path: not used.
    runs: workdirs of the user's runs; none is fine.
    metric: as for `run_records.read`.

  Returns:
    'runs', as `run_records.read` returns them, with 'best_for_cost' and
    'best_for_speed', whether the run is on the Pareto front; 'published', the
    paper's results on ImageNet that its figures show.

  Raises:
    UserError: if there is a config, or a run is not there or lacks the metric.
  """
  del path
  rows = run_records.read_all(config, runs, metric)
  for key, field, sign in (('best_for_cost', 'device_days', 1),
                           ('best_for_speed', 'speed', -1)):
    known = [row for row in rows if row[field] is not None]
    best = pareto([(sign * row[field], row['value']) for row in known])
    for row in rows:
      row[key] = False
    for number in best:
      known[number][key] = True
  # Figure 3 has the networks of table 3 that saw JFT, at 224 pixels.
  shown = [*published.TABLE_2, *(
      row for row in published.TABLE_3 if (row.data, row.size) == (
          published.JFT, 224))]
  return dict(runs=rows, published=[dataclasses.asdict(row) for row in shown])


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
  """Returns which points no other point beats, from low to high cost.

  A point beats another if it is at least as good in both, and better in one.
  Equal points do not beat each other.

  Args:
    points: (cost, value) of each; less cost and more value are better.
  """
  beaten = lambda point: any(
      other[0] <= point[0] and other[1] >= point[1] and other != point
      for other in points)
  return sorted((i for i, point in enumerate(points) if not beaten(point)),
                key=lambda i: points[i])


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  rows = found['runs']
  if not rows:
    print('No runs were given (--runs=DIR,DIR,...): the figure has the '
          'published results only')
    return
  cell = lambda value, form: '-' if value is None else format(value, form)
  tables.show(tables.make(
      [(row['label'], row['name'], row['data'], row['devices'] or '-',
        f'{row["value"]:.2%}', cell(row['device_days'], '.2g'),
        'best' * row['best_for_cost'], cell(row['speed'], ',.0f'),
        'best' * row['best_for_speed'])
       for row in sorted(rows, key=lambda row: -row['value'])],
      ('run', 'network', 'data', 'devices', 'score', 'device-days', '',
       'images/s', ''), left=4, title=f'{rows[0]["metric"]} of each run',
      caption='best: no other run is as accurate for less. images/s: in '
      'training, for each device'))


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns a figure of what `run` returned: by cost, and by throughput."""
  figure, axes = figures.grid(1, 2, width=figures.PAGE, height=3.4, sharey=True)
  for axis, theirs, ours, sign, label in (
      (axes[0, 0], 'core_days', 'device_days', 1,
       'cost of training (device-days)'),
      (axes[0, 1], 'speed', 'speed', -1, 'images per second and device')):
    _published(axis, found['published'], theirs, sign, bool(found['runs']))
    _own(axis, found['runs'], ours, sign)
    axis.set(xscale='log', xlabel=label)
    axis.grid(True)
    axis.set_axisbelow(True)
    axis.margins(x=.13, y=.08)
  figures.percent(axes[0, 0])
  axes[0, 0].set_ylabel('accuracy (published: ImageNet top-1)')
  for name, marker in (*_FAMILIES.items(), ('other', _OTHER)):
    axes[0, 1].plot([], [], marker, color=figures.GREY, label=name)
  figure.legend(loc='outside upper center', ncols=4, title=(
      'grey: published; cost of pre-training and speed of prediction on TPUv3 '
      'cores' + '\ncolour: your runs; cost and speed of training' * bool(
          found['runs'])), title_fontsize=7)
  return figure


def _published(axis: figures.Axes, rows: Sequence[Mapping[str, Any]], key: str,
               sign: int, few: bool) -> None:
  """Draws the paper's results against one column, and their front.

  Args:
    axis: where to draw.
    rows: the results.
    key: the column.
    sign: 1 if less is better, -1 if more is better.
    few: whether only results on the front have labels.
  """
  rows = [row for row in rows if row[key] is not None]
  best = pareto([(sign * row[key], row['top1']) for row in rows])
  for number, row in enumerate(rows):
    family, _, size = row['name'].partition('-')
    right, up = _PLACES.get(family, (0, 1.5))
    right *= sign
    near = sum(abs(row[key] / other[key] - 1) < .1 and other['name'].startswith(
        family) and abs(row['top1'] - other['top1']) < 1
               for other in rows[:number])
    axis.plot(row[key], row['top1'] / 100, _FAMILIES.get(family, _OTHER),
              color=figures.GREY, markersize=3)
    if number in best or not few:
      axis.annotate(
          size if family in _FAMILIES else family,
          (row[key], row['top1'] / 100), (3 * right, up * (1.5 + 5 * near)),
          textcoords='offset points', fontsize=5.5, color='#666666',
          ha=('right', 'center', 'left')[int(right) + 1],
          va='bottom' if up > 0 else 'top')
  axis.plot([rows[i][key] for i in best], [rows[i]['top1'] / 100 for i in best],
            '--', color=figures.GREY, linewidth=.8, zorder=1)


def _own(axis: figures.Axes, rows: Sequence[Mapping[str, Any]], key: str,
         sign: int) -> None:
  """Draws the user's runs against one column, and their front."""
  rows = [row for row in rows if row[key] is not None]
  for row in rows:
    axis.plot(row[key], row['value'],
              _FAMILIES.get(row['name'].partition('-')[0], _OTHER),
              color=figures.PALETTE[0])
    axis.annotate(row['label'], (row[key], row['value']), (3, 3),
                  textcoords='offset points', fontsize=6)
  best = pareto([(sign * row[key], row['value']) for row in rows])
  axis.plot([rows[i][key] for i in best], [rows[i]['value'] for i in best],
            color=figures.PALETTE[1], zorder=1)
