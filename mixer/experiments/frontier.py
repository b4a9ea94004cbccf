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


def run(config: None, path: str, *, runs: Sequence[str] = (),
        metric: str | None = None) -> dict[str, Any]:
  """Reads what runs reached, and finds those that no other run beats.

  Args:
    config, path: unused.
    runs: workdirs of the user's runs; none is fine.
    metric: as for `run_records.read`.

  Returns:
    'runs', as `run_records.read` returns them, with 'best_for_cost' and
    'best_for_speed', whether the run is on the Pareto front; 'published', the
    paper's results on ImageNet that its figures show.

  Raises:
    UserError: if a run is not there or lacks the metric.
  """
  del config, path
  rows = run_records.read_all(runs, metric)
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
       'images/s', ''), left=4, title=f'{run_records.title(rows)} of each run',
      caption='best: no other run is as accurate for less. images/s: in '
      'training, for each device'))


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns a figure of what `run` returned: by cost, and by throughput."""
  figure, (panels,) = figures.grid(
      1, 2, width=figures.PAGE, height=3.4, sharey=True)
  rows = found['runs']
  for axis, theirs, ours, sign, label in zip(
      panels, ('core_days', 'speed'), ('device_days', 'speed'), (1, -1),
      ('cost of training (device-days)', 'images per second and device')):
    _points(axis, [(row[theirs], row['top1'] / 100, row['name'], '')
                   for row in found['published']],
            sign, figures.GREY, '--', few=bool(rows))
    _points(axis, [(row[ours], row['value'], row['name'], row['label'])
                   for row in rows], sign, figures.PALETTE[0], '-')
    axis.set(xscale='log', xlabel=label)
    axis.grid(True)
    axis.set_axisbelow(True)
    axis.margins(x=.13, y=.08)
  figures.percent(panels[0])
  panels[0].set_ylabel('accuracy (published: ImageNet top-1)')
  for name, marker in (*_FAMILIES.items(), ('other', _OTHER)):
    panels[1].plot([], [], marker, color=figures.GREY, label=name)
  figure.legend(loc='outside upper center', ncols=4, title=(
      'grey: published; cost of pre-training and speed of prediction on TPUv3 '
      'cores' + '\ncolour: your runs; cost and speed of training' * bool(rows)),
                title_fontsize=7)
  return figure


def _points(axis: figures.Axes, points: Sequence[tuple[Any, float, str, str]],
            sign: int, colour: str, line: str, few: bool = False) -> None:
  """Draws results, and the line of those that no other one beats.

  Args:
    axis: where to draw.
    points: (x or None, accuracy, name of the network, label; '' for its size).
    sign: 1 if less of x is better, -1 if more is better.
    colour: of the points and the line.
    line: its style.
    few: whether only points on the line have labels.
  """
  points = [point for point in points if point[0] is not None]
  best = pareto([(sign * x, y) for x, y, *_ in points])
  for number, (x, y, name, label) in enumerate(points):
    family, _, size = name.partition('-')
    right, up = (sign, 1) if label else _PLACES.get(family, (0, 1))
    axis.plot(x, y, _FAMILIES.get(family, _OTHER), color=colour,
              markersize=3 if not label else 5)
    # Labels of a family that would lie on each other have their own heights.
    near = sum(abs(x / x2 - 1) < .1 and abs(y - y2) < .01
               and name2.startswith(family)
               for x2, y2, name2, _ in points[:number])
    if number in best or not few:
      axis.annotate(
          label or (size if family in _FAMILIES else family), (x, y),
          (3 * right * sign, up * (2 + 5 * near)), textcoords='offset points',
          fontsize=6 if label else 5.5, color='k' if label else '#666666',
          ha=('right', 'center', 'left')[right * sign + 1],
          va='bottom' if up > 0 else 'top')
  front = [points[i][:2] for i in best]
  axis.plot([x for x, _ in front], [y for _, y in front], line, color=colour,
            linewidth=.8, zorder=1)
