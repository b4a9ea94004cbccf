"""Chooses settings on held-out training images, then trains on all of them.

As the paper chooses the learning rate of each fine-tuning (appendix C): one run
a value on a part of the training images, judged by the rest; the best value
then trains on all, and only that run sees the test images.
"""
import itertools
import json
import math
import os

from rich import table as tables

from mixer import models
from mixer.core import errors
from mixer.core import files
from mixer.core import workdir as workdirs
from mixer.core.log import log
from mixer.training import assembly
from mixer.training import run
from mixer.training import settings

RATE = 'schedule.learning_rate'
_METRICS = ('eval/dev/accuracy', 'eval/dev/accuracy_top5')
_FIXED = ('sweep', 'evals', 'fewshot', 'checkpoint')
_BOOLEANS = {'true': True, 'false': False}


def sweep(config, workdir, *, learning_rates, train, dev,
          metric='eval/dev/accuracy', grid=None):
  """Trains once a value, chooses, and trains for good; goes on where it was.

  The runs lie in WORKDIR/KEY=VALUE and WORKDIR/final, and what they gave in
  WORKDIR/sweep.json, so that none that has ended is run again. A run that
  diverges has lost.

  Args:
    config: ml_collections.ConfigDict of a run, with a `sweep` section, which is
      the arguments from `learning_rates` to `metric`.
    workdir: of the sweep.
    learning_rates: to try, if there is no `grid`.
    train, dev: splits of the config's data, to train on and to choose by. They
      are shown as by the config's first evaluation.
    metric: to choose by, 'eval/dev/accuracy' or 'eval/dev/accuracy_top5'; of
      equals the smaller learning rate is taken, then the earlier value.
    grid: {key of the config: values}; of several keys all combinations.

  Returns:
    What sweep.json holds: 'metric', 'train', 'dev'; 'tested', the splits of the
    final evaluation; 'runs', {name: {'values', 'learning_rate', and 'scores' or
    'failed'}}; 'choice', the name of the best; 'tied', those as good; 'final',
    the scores of the run on all.

  Raises:
    UserError: if a value is refused, or WORKDIR holds another sweep.
    RunError: if every run has diverged.
  """
  if metric not in _METRICS:
    raise errors.unknown('sweep.metric', metric, _METRICS)
  if not config.evals:
    raise errors.UserError('evals: the config evaluates nothing, and a sweep '
                           'ends with an evaluation; add one')
  grid = grid or {RATE: [float(rate) for rate in learning_rates]}
  trials = _trials(config, grid)
  with workdirs.claimed(workdir):
    path = os.path.join(workdir, 'sweep.json')
    text = files.read(path)
    found = json.loads(text or '{}') or dict(
        metric=metric, train=train, dev=dev,
        tested=[e.split for e in config.evals.values()], runs={}, choice=None,
        tied=[], final=None)

    # Only what has ended claims the directory: a config that is refused at
    # once leaves it to the corrected one.
    agree = lambda: workdirs.agree(workdir, dict(config.to_dict(), grid=grid))
    def note(**news):
      agree()
      found.update(news)
      workdirs.write_json(path, found)

    if text is not None:
      agree()
    for number, (name, values) in enumerate(trials.items(), 1):
      if name not in found['runs']:
        log.info('\nsweep    run %d of %d: %s', number, len(trials), name)
        trial = _trial(_with(config, values), train, dev)
        note(runs=dict(found['runs'], **{name: dict(
            values=values, learning_rate=trial.schedule.learning_rate,
            **_outcome(trial, os.path.join(workdir, name)))}))
    note(**choose(found['runs'], metric))
    if found['final'] is None:
      log.info('\nsweep    the final run: %s', found['choice'])
      final = _with(config, trials[found['choice']])
      note(final=_plain(run.train(final, os.path.join(workdir, 'final'))))
  return found


def parse_grid(texts, config):
  """{key: values} of ['KEY=V1,V2,...', ...], each value of its key's type.

  Raises:
    UserError: if a key is none of the config's or cannot be swept, or a value
      is not of its type.
  """
  grid = {}
  for text in texts:
    key, _, values = text.partition('=')
    *path, leaf = key.split('.')
    if not path or not values or key in grid:
      raise errors.UserError(
          f'--grid: {text!r}: expected KEY=V1,V2,... with a key of the config, '
          f'given once, such as {RATE}=0.01,0.03')
    section = config
    for i, part in enumerate(path):
      section = _at(section, path[:i], part)
    _at(section, path, leaf)
    if path[0] in _FIXED or key == 'data.split':
      raise errors.UserError(f'--grid: {key} does not tell runs apart: a sweep '
                             'sets splits, evaluations and checkpoints itself')
    grid[key] = list(dict.fromkeys(
        _value(key, value, section.get_type(leaf))
        for value in values.split(',')))
  return grid


def _at(section, path, key):
  """section[key], of the section of a config that lies at `path`."""
  if not hasattr(section, 'keys'):
    raise errors.UserError(f'--grid: {".".join(path)} is a setting, and has no '
                           f'{key!r} below it')
  if key not in section:
    raise errors.unknown(': '.join(['--grid', *path]), key, list(section))
  return section[key]


def choose(runs, metric):
  """{'choice': name of the best run, 'tied': those as good}.

  Raises:
    RunError: if all have failed.
  """
  scores = {name: r['scores'][metric] for name, r in runs.items()
            if 'scores' in r}
  if not scores:
    raise errors.RunError(
        f'all {len(runs)} runs of the sweep have diverged; try lower learning '
        f'rates in another --workdir, as in --grid={RATE}=0.0003,0.001')
  best = max(scores.values())
  tied = sorted((name for name in scores if scores[name] == best),
                key=lambda name: runs[name]['learning_rate'])
  return dict(choice=tied[0], tied=tied[1:])


def table(found):
  """What a sweep gave, as a rich table."""
  metric = found['metric']
  final = ', '.join(f'{name.removeprefix("eval/")} {value:.2%}'
                    for name, value in found['final'].items()
                    if name.endswith('/accuracy'))
  seen = found['dev'] in found['tested']
  caption = f'final run with {found["choice"]}: {final}' + (
      ', on the images that it was chosen by, so a little too good'
      if seen else '')
  out = tables.Table(
      title=f'trained on {found["train"]}, judged by {metric} on '
      f'{found["dev"]}', caption=caption)
  rows = found['runs']
  for key in next(iter(rows.values()))['values']:
    out.add_column(key, justify='right', overflow='fold')
  out.add_column('score', justify='right')
  out.add_column('')
  for name, row in rows.items():
    said = ('chosen' if name == found['choice'] else
            'diverged' if 'failed' in row else
            'as good' if name in found['tied'] else '')
    if said == 'chosen' and found['tied']:
      said = 'chosen: of equals the smaller learning rate, then the earlier'
    score = f'{row["scores"][metric]:.2%}' if 'scores' in row else '-'
    out.add_row(*map(str, row['values'].values()), score, said)
  return out


def _trials(config, grid):
  """{name: {key: value}} of all combinations, each checked as far as it can be
  without the data: the last should not be refused after days."""
  out = {}
  for combination in itertools.product(*grid.values()):
    values = dict(zip(grid, combination))
    c = _with(config, values)
    model = dict(c.model, num_classes=c.model.num_classes or 1)
    assembly.make_step(c, settings.Settings(**c.run), models.create(**model),
                  c.run.total_steps or 10**9)
    name = ','.join(f'{key}={value}' for key, value in values.items())
    out[name.replace('/', '-')] = values
  if len(out) != math.prod(map(len, grid.values())) or not out:
    raise errors.UserError(f'sweep: expected values with names of their own, '
                           f'got {grid}')
  return out


def _with(config, values):
  """A copy of a config with some values set."""
  out = config.copy_and_resolve_references()
  for key, value in values.items():
    *path, leaf = key.split('.')
    section = out
    for part in path:
      section = section[part]
    section[leaf] = value
  return out


def _trial(config, train, dev):
  """The config of a run to choose by, changed in place."""
  like = next(iter(config.evals.values()))
  with config.unlocked():
    config.data.split = train
    config.evals = dict(dev=dict(like, split=dev, name=None, dir=None))
    config.fewshot = {}
    config.checkpoint.update(best=None, keep=1)
  return config


def _outcome(config, workdir):
  try:
    return dict(scores=_plain(run.train(config, workdir)))
  except errors.Diverged as e:
    log.info('sweep    %s', e)
    return dict(failed=str(e))


def _plain(scores):
  return {name: float(value) for name, value in scores.items()}


def _value(key, text, kind):
  """A text as a value of the type `kind`."""
  try:
    if kind is bool:
      return _BOOLEANS[text.lower()]
    if kind in (int, float, str) and text:
      return kind(text)
  except (KeyError, ValueError):
    pass
  raise errors.UserError(f'--grid: {key}={text}: expected {kind.__name__}')
