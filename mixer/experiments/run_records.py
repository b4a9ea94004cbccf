"""Reads what finished runs reached from the files in their workdirs."""
from collections.abc import Mapping
from collections.abc import Sequence
import os
import statistics
from typing import Any

from mixer import models
from mixer.core import errors
from mixer.core import workdir
from mixer.core.log import log
from mixer.models import catalog
from mixer.training import metrics_file

DAY = 86_400   # seconds


def read(path: str, metric: str | None = None) -> dict[str, Any]:
  """Returns what a run reached, fit for JSON.

  Args:
    path: a workdir.
    metric: a key of metrics.jsonl of which more is better; by default the
      accuracy of the config's first evaluation.

  Returns:
    'run', the path; 'name', 'data' and 'size' [height, width] as the card of
    the run has them; 'start', the weights that it started from, or None;
    'parameters' and 'multiply_adds' of one image; 'step' of the last line, and
    'steps' of the whole run; 'metric', and its last 'value'; 'device_days';
    'speed', the median of its images per second and device in training; and
    'devices', their kind. Values that the files lack are None.

  Raises:
    UserError: if there is no such run, or it has no such metric.
  """
  path = os.path.expanduser(path)
  config = workdir.config_of(path)
  card = workdir.card_of(path)
  lines = metrics_file.read(path)
  if config is None or card is None or not lines:
    raise errors.UserError(
        f'--runs: {path!r} holds no run: expected a folder with '
        f'{workdir.CONFIG}, {workdir.CARD} and {workdir.METRICS}')
  first = next(iter(config['evals']), None)
  metric = metric or f'eval/{first}/accuracy'
  values = [line[metric] for line in lines
            if metric in line and _is_score(metric)]
  if not values:
    known = sorted({key for line in lines for key in line
                    if key.startswith('eval/') and _is_score(key)})
    raise errors.unknown(f'--metric: {path}', metric, known) if known else (
        errors.UserError(f'--runs: {path!r} holds a run that has not been '
                         'evaluated; continue it, or leave it out'))
  made = workdir.provenance(path) or {}
  devices = made.get('devices', {})
  seconds = [line.get('train/device_seconds', 0.0) for line in lines]
  speeds = [line['train/images_per_second'] for line in lines
            if 'train/images_per_second' in line]
  model = models.create(**card['model'])
  return dict(
      run=path, name=catalog.title(card['model']), data=card['data'],
      size=card['image_size'], start=config['start']['weights'],
      parameters=model.parameters(card['image_size']),
      multiply_adds=model.multiply_adds(card['image_size']),
      step=lines[-1]['step'], steps=_steps(config['run'], made),
      metric=metric, value=float(values[-1]),
      device_days=max(seconds) / DAY or None,
      speed=statistics.median(speeds) / devices['count'] if (
          speeds and devices) else None,
      devices=devices.get('kind'))


def read_all(paths: Sequence[str], metric: str | None = None
             ) -> list[dict[str, Any]]:
  """Returns `read` of each path, with the 'label' of a figure or table.

  One line each says what cannot be compared.

  Args:
    paths: workdirs.
    metric: as for `read`.

  Raises:
    UserError: as `read` raises it.
  """
  found = [read(path, metric) for path in paths]
  names = [os.path.basename(path.rstrip('/')) for path in paths]
  for row, name in zip(found, names):
    row['label'] = row['run'] if names.count(name) > 1 else name
  for row in found:
    if row['steps'] and row['step'] < row['steps']:
      log.warning('%s has not finished: it is at step %s of %s', row['run'],
                  f'{row["step"]:,}', f'{row["steps"]:,}')
    if row['start']:
      log.warning('%s started from %s: its cost is without the training of '
                  'these weights', row['run'], row['start'])
  for key, what in (('data', 'data sets: their accuracies'),
                    ('metric', 'evaluations: their scores'),
                    ('devices', 'devices: their costs and images/s')):
    kinds = {str(row[key]) for row in found}
    if len(kinds) > 1:
      log.warning('the runs have different %s cannot be compared (%s)', what,
                  ', '.join(sorted(kinds)))
  return found


def title(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns the metric of all rows, or 'several metrics'."""
  metrics = {row['metric'] for row in rows}
  return metrics.pop() if len(metrics) == 1 else 'several metrics'


def _is_score(metric: str) -> bool:
  """Returns whether more of an evaluation's metric is better."""
  return metric.rpartition('/')[2] not in (
      'loss', 'examples', 'bad', 'unlabelled')


def _steps(run: Mapping[str, Any], made: Mapping[str, Any]) -> int | None:
  """Returns the length of a run in steps, or None if its files lack it."""
  examples = made.get('data', {}).get('examples')
  if run['total_steps'] or not examples:
    return run['total_steps']
  return max(1, int(run['total_epochs'] * examples / run['batch_size']))
