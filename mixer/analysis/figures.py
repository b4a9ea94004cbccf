"""Figures in one style, and their files: the only place that uses matplotlib.

Figures are as wide as a column of a paper (3.4 inches) or a page (7 inches), in
the colours of Okabe and Ito, which people with colour blindness can tell apart.
"""
from collections.abc import Sequence
import contextlib
import io
import os
from typing import Any

import numpy as np

from mixer.core import errors
from mixer.core import files

try:
  from matplotlib import rc_context
  from matplotlib.axes import Axes
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
except ModuleNotFoundError as e:
  if e.name != 'matplotlib':
    raise
  raise errors.UserError('figures need matplotlib, which is not installed: '
                         'pip install matplotlib') from None

COLUMN, PAGE = 3.4, 7.0   # widths in inches
# Okabe and Ito (https://jfly.uni-koeln.de/color), the darker ones first.
PALETTE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9',
           '#000000', '#8C8C8C')
GREY = '#8C8C8C'
MARKERS = 'osD^vPX*'
_STYLE = {
    'font.size': 8, 'axes.titlesize': 8, 'axes.labelsize': 8,
    'xtick.labelsize': 7, 'ytick.labelsize': 7, 'legend.fontsize': 7,
    'legend.frameon': False, 'lines.linewidth': 1.2, 'lines.markersize': 4,
    'axes.linewidth': .6, 'axes.spines.top': False, 'axes.spines.right': False,
    'xtick.major.width': .6, 'ytick.major.width': .6, 'grid.linewidth': .4,
    'grid.color': '#d9d9d9', 'savefig.transparent': False,
    # Equal figures are equal files, whose text can be searched.
    'svg.hashsalt': 'mixer', 'svg.fonttype': 'none'}


def style() -> contextlib.AbstractContextManager[None]:
  """Returns a context in which whatever is drawn has the style, legends too."""
  return rc_context(_STYLE)   # type: ignore[arg-type]


def grid(rows: int = 1, columns: int = 1, *, width: float = COLUMN,
         height: float = 2.4, **settings: Any) -> tuple[Figure, np.ndarray]:
  """Returns a new figure, and its axes [rows, columns].

  Args:
    rows: rows of axes.
    columns: columns of axes.
    width: of the figure in inches, `COLUMN` or `PAGE`.
    height: of the figure in inches.
    **settings: of matplotlib's `Figure.subplots`, such as sharey=True.
  """
  with style():
    figure = Figure(figsize=(width, height), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, **settings)
  return figure, axes


def band(axes: Axes, x: Sequence[float], runs: np.ndarray, *, number: int,
         label: str | None = None, **settings: Any) -> None:
  """Draws the mean of several curves, and the range from least to greatest.

  Args:
    axes: where to draw.
    x: positions [N] of the points.
    runs: values [runs, N], a row for each seed.
    number: of the colour in `PALETTE`.
    label: in the legend.
    **settings: of matplotlib's `Axes.plot`.
  """
  colour = PALETTE[number % len(PALETTE)]
  runs = np.asarray(runs, float)
  axes.plot(x, runs.mean(0), color=colour, label=label, **settings)
  if len(runs) > 1:
    axes.fill_between(x, runs.min(0), runs.max(0), color=colour, alpha=.2,
                      linewidth=0)


def percent(axes: Axes, name: str = 'y') -> None:
  """Shows fractions as percentages on the axis 'x' or 'y'."""
  axis = getattr(axes, f'{name}axis')
  axis.set_major_formatter(lambda value, _: f'{100 * value:g}%')


def save(figure: Figure, path: str, name: str) -> tuple[str, str]:
  """Writes PATH/NAME.png and PATH/NAME.svg, and returns their paths."""
  out = []
  for kind in ('png', 'svg'):
    file = os.path.join(path, f'{name}.{kind}')
    files.write(file, _encoded(figure, kind))
    out.append(file)
  return out[0], out[1]


def to_svg(figure: Figure) -> str:
  """Returns a figure as an <svg> element for a page.

  Black becomes the text colour of the page, and the ground is transparent, so
  that the figure fits a light page and a dark one.
  """
  text = _encoded(figure, 'svg', transparent=True).decode()
  text = text[text.index('<svg'):]
  return text.replace('#000000', 'currentColor')


def _encoded(figure: Figure, kind: str, **settings: Any) -> bytes:
  buffer = io.BytesIO()
  with style():
    if kind == 'png':
      FigureCanvasAgg(figure)
    figure.savefig(buffer, format=kind, dpi=200, metadata=(
        {'Date': None} if kind == 'svg' else None), **settings)
  return buffer.getvalue()
