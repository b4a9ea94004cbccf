"""The page about one run: what it was, how it went, and what it gets wrong."""
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import os
import statistics
from typing import Any

from etils import epath
import numpy as np

from mixer import pretrained
from mixer.analysis import figures
from mixer.analysis import mistakes
from mixer.analysis import mosaic
from mixer.analysis import outcomes
from mixer.analysis import scoring
from mixer.core import errors
from mixer.core import files
from mixer.core import page
from mixer.core import processes
from mixer.core import provenance
from mixer.core import workdir
from mixer.core.log import log
from mixer.models import catalog
from mixer.pretrained.network import Network
from mixer.training import metrics_file

Row = Mapping[str, Any]   # of metrics.jsonl

COMMAND = 'python -m mixer.main --report --workdir='
_EXAMPLES = 10_000   # of the evaluation whose mistakes are shown
_BATCH = 128
_POINTS = 400   # of a curve
_BAD = 100   # images that cannot be decoded
_LINES = ('-', '--', ':')   # of curves in the same six colours
_LETTERS = 54   # of a row of a legend
_STYLE = mistakes.STYLE + mosaic.STYLE
# The curves: title of the axis, keys of training, and kinds of evaluations.
_CURVES = (
    ('loss', 'train/loss', ('loss',)),
    ('accuracy', 'train/accuracy', ('accuracy', 'mAP')),
    ('learning rate', 'train/learning_rate', ()),
    ('gradient norm before clipping', 'train/gradient_norm', ()),
    ('images/s', 'train/images_per_second', ()),
    ('utilisation, share of peak FLOP/s', 'train/utilisation', ()))


def write(path: files.Path) -> str:
  """Writes the report of a run into its workdir.

  The newest checkpoint is evaluated on the config's first evaluation, on 10,000
  of its images at most. If several processes run, or if the checkpoint or the
  data cannot be read, the page says what it lacks.

  Args:
    path: the workdir.

  Returns:
    The path of the page.

  Raises:
    UserError: if the folder holds no run.
  """
  path = files.absolute(path)
  config, card = workdir.config_of(path), workdir.card_of(path)
  if config is None or card is None:
    raise errors.UserError(
        f'--workdir: {path!r} lacks {workdir.CONFIG} or {workdir.CARD}; '
        'expected the workdir of a run')
  rows = metrics_file.read(path)
  parts = [*_curves(rows), *_final(rows), *_of_network(path, config),
           *_config(config), *_bad_images(path), *_provenance(path)]
  out = os.path.join(path, workdir.REPORT)
  files.write(out, page.make(
      f'{card["model"]["name"]} on {config["data"]["name"]}',
      f'{catalog.title(card["model"])}. The run in {path}.',
      _facts(rows, path), parts, _STYLE))
  return out


def _facts(rows: Sequence[Row], path: str) -> Iterator[str]:
  """Yields cards of the most important numbers."""
  for name, scores in _evaluations(_last_evaluation(rows)).items():
    for kind in ('accuracy', 'mAP'):
      if kind in scores:
        yield page.fact(f'{float(scores[kind]):.2%}', f'{kind} on {name}')
  if rows:
    yield page.fact(f'{rows[-1]["step"]:,}', 'steps')
  counted = (files.read(os.path.join(path, workdir.PARAMETERS)) or ''
             ).rpartition('Total: ')[2].partition(' ')[0].strip()
  if counted:
    yield page.fact(counted, 'parameters')
  speeds = [float(row['train/images_per_second']) for row in rows
            if 'train/images_per_second' in row]
  if speeds:
    yield page.fact(f'{statistics.median(speeds):,.0f}', 'images/s, median')
  spent = _latest(rows).get('train/device_seconds')
  if spent:
    yield page.fact(f'{float(spent) / 3600:,.3g}', 'device-hours')


def _latest(rows: Sequence[Row]) -> dict[str, Any]:
  """Returns the last value of each metric."""
  return {key: value for row in rows for key, value in row.items()}


def _last_evaluation(rows: Sequence[Row]) -> Row:
  """Returns the row of the last evaluation, which has all its metrics.

  Earlier rows may have evaluations that the config no longer has.
  """
  return next((row for row in reversed(rows) if _evaluations(row)), {})


def _evaluations(row: Row) -> dict[str, dict[str, Any]]:
  """Returns {evaluation: {metric: value}} of a row."""
  found: dict[str, dict[str, Any]] = {}
  for key, value in row.items():
    if key.startswith('eval/'):
      name, kind = key.removeprefix('eval/').rsplit('/', 1)
      found.setdefault(name, {})[kind] = value
  return found


def _curves(rows: Sequence[Row]) -> Iterator[str]:
  """Yields the section of curves; nothing if no step was logged."""
  shown = []
  for title, train, kinds in _CURVES:
    evals = {f'{name} mAP' if kind == 'mAP' else name:
             f'eval/{name}/{kind}'
             for name, scores in _evaluations(_latest(rows)).items()
             for kind in kinds if kind in scores}
    curves = {'training batches' if evals else '': train} | evals
    figure, axes = figures.grid(height=2.0)
    axis = axes[0, 0]
    for number, (label, key) in enumerate(curves.items()):
      # Of a skipped update they are not finite: one would spoil all means.
      points = [(row['step'], value) for row in rows if key in row
                and math.isfinite(value := float(row[key]))]
      if not points:
        continue
      x, y = (np.array([np.mean(part) for part in np.array_split(
          values, min(len(points), _POINTS))]) for values in zip(*points))
      colour, line = figures.PALETTE[number % 6], _LINES[number // 6 % 3]
      if key == train and kinds:   # they jump from batch to batch
        axis.plot(x, y, color=colour, alpha=.25)
        y = _smooth(y)
      axis.plot(x, y, line, label=label or None, color=colour,
                marker='o' if len(points) < 20 else None, markersize=2.5)
    if not axis.lines:
      continue
    axis.set_xlabel('step')
    axis.grid(color='black', alpha=.12)
    if title == 'accuracy' or title.startswith('utilisation'):
      figures.percent(axis)
    if evals:
      with figures.style():
        figure.legend(loc='outside upper center', ncols=max(
            1, _LETTERS // (2 + max(map(len, curves)))))
    shown.append(f'<figure><figcaption><b>{page.escape(title)}</b></figcaption>'
                 f'{figures.to_svg(figure)}</figure>')
  if shown:
    about = ('Augmentation, mixup and label smoothing change training batches '
             'only, so evaluations may have the lower loss. The loss and '
             'accuracy of training batches are means over a tenth of the run; '
             'the pale lines are single batches.')
    if len(rows) > _POINTS:
      about += (f' Curves of more than {_POINTS} points show means of '
                'neighbours.')
    yield page.section('Curves', page.grid(shown), about)


def _smooth(values: np.ndarray) -> np.ndarray:
  """Returns the mean of the tenth of all values that surrounds each of them."""
  near = np.ones(2 * (len(values) // 20) + 1)
  among = np.convolve(np.ones(len(values)), near, 'same')
  return np.convolve(values, near, 'same') / among


def _final(rows: Sequence[Row]) -> Iterator[str]:
  """Yields the table of the last evaluation's metrics."""
  if found := _evaluations(_last_evaluation(rows)):
    yield page.section('Final evaluation', mistakes.scores_table(found))


def _of_network(path: str, config: Mapping[str, Any]) -> Iterator[str]:
  """Yields the mistakes of the newest checkpoint, and its units."""
  if processes.several():   # reading a checkpoint would wait for all of them
    yield page.section('Mistakes', '', (
        'Several processes trained this run, and they write no mistakes. This '
        f'command adds them: {COMMAND}{path}'))
    return
  try:
    network = pretrained.open_network(path)
  except errors.UserError as e:
    yield page.section('Mistakes', '', f'The checkpoint cannot be read: {e}')
    return
  try:
    yield from _mistakes(network, config)
  except (errors.UserError, errors.RunError, OSError) as e:
    log.info('%s lacks the mistakes: %s', workdir.REPORT, e)
    yield page.section('Mistakes', '', f'The evaluation failed: {e}')
  yield from mosaic.section(network)


def _mistakes(network: Network, config: Mapping[str, Any]) -> Iterator[str]:
  """Yields the mistakes in the first evaluation of the config, if any."""
  for name in list(config['evals'])[:1]:
    kept: outcomes.Outcomes = {}
    results, _ = scoring.evaluate(
        network, scoring.alone(config, name), batch_size=_BATCH,
        most=_EXAMPLES, kept=kept)
    outcome = kept[name]
    examples = results['evals'][name]['examples']
    yield page.section('Mistakes', '', (
        f'The sections on {name} show what checkpoint '
        f'{os.path.basename(network.name)} predicts for {examples:,} images of '
        f'{outcome.split.source.name}, split {outcome.split.split.spec}.'))
    yield from mistakes.sections(name, outcome, results['evals'][name],
                                 network.card['loss'])


def _config(config: Mapping[str, Any]) -> Iterator[str]:
  """Yields the settings that differ from the defaults, then all of them."""
  shown = lambda value: 'unset' if value is None else json.dumps(value)
  ours, usual = workdir.flat(config), _defaults(config)
  everything = page.table([(k, shown(v)) for k, v in ours.items()], text=True)
  differ = [] if usual is None else [
      (key, shown(ours.get(key)), shown(usual.get(key)))
      for key in dict.fromkeys((*ours, *usual))
      if ours.get(key) != usual.get(key)]
  about = ('' if usual is None else
           'The settings that differ from the defaults of configs/recipe.py.')
  yield page.section('Configuration', (
      page.table(differ, ('setting', 'this run', 'default'), text=True)
      if differ else '') + page.details('All settings', everything), about)


def _defaults(config: Mapping[str, Any]) -> dict[str, Any] | None:
  """Returns the defaults of a config's settings; None without configs/."""
  try:
    from configs import recipe
  except ImportError:
    return None
  usual = recipe.base()
  usual.evals = {name: recipe.evaluation('') for name in config['evals']}
  usual.fewshot = {name: recipe.fewshot('', '')
                   for name in config.get('fewshot') or ()}
  return workdir.flat(json.loads(json.dumps(usual.to_dict())))


def _bad_images(path: str) -> Iterator[str]:
  """Yields the table of images that cannot be decoded, if there are any."""
  stem, suffix = os.path.splitext(workdir.BAD_IMAGES)   # one of each process
  rows: dict[tuple[str, str], dict[str, None]] = {}   # their sections
  for file in sorted(epath.Path(path).glob(f'{stem}*{suffix}')):
    for row in files.json_lines(file.read_text()):
      rows.setdefault((row['image'], row['reason']), {})[row['section']] = None
  if rows:
    yield page.section('Bad images', page.table(
        [(image, ', '.join(sections), reason)
         for (image, reason), sections in list(rows.items())[:_BAD]],
        ('image', 'split of', 'reason'), text=True), (
            f'{len(rows):,} image{"s" * (len(rows) != 1)} cannot be decoded. '
            f'{workdir.BAD_IMAGES} lists them; the page has the first '
            f'{min(len(rows), _BAD)}.'))


def _provenance(path: str) -> Iterator[str]:
  """Yields what the run was made with, if config.json says it."""
  made = workdir.provenance(path)
  if not made:
    return
  rest = {key: value for key, value in made.items()
          if key not in ('versions', 'commit', 'uncommitted')}
  yield page.section('Provenance', page.table(
      [('code', provenance.line(made)), *workdir.flat(rest).items()],
      text=True), 'As of the latest start that trained.')
