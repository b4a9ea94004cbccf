"""Metrics to files: metrics.jsonl always, TensorBoard where TensorFlow is.

Only process 0 writes.
"""
import importlib.util
import json
import math
import os

import jax

from mixer.core.log import log


class Writer:
  """Writes `{'step': 10, 'train/loss': 2.3, ...}`, one line a step.

  Values of one step that arrive apart are one line; `flush` completes it. What
  stands in the file beyond the step where a run resumes is dropped first, so
  every step is there once.
  """

  def __init__(self, workdir, *, resumed_at):
    self._row = {}
    self._file = self._board = None
    if jax.process_index():
      return
    path = os.path.join(workdir, 'metrics.jsonl')
    _keep_up_to(path, resumed_at)
    self._file = open(path, 'a')
    missing = [m for m in ('tensorflow', 'tensorboard')
               if importlib.util.find_spec(m) is None]
    if missing:
      log.info('no TensorBoard files: %s is not installed', missing[0])
    else:
      from clu import metric_writers
      self._board = metric_writers.AsyncWriter(
          metric_writers.SummaryWriter(workdir))

  def write(self, step, metrics):
    """Notes float metrics of a step, which must not go backwards."""
    if self._row and self._row['step'] != step:
      self.flush()
    self._row.update(metrics, step=step)

  def flush(self):
    """Completes the line of the last step; it is on disk on return."""
    if not self._row or self._file is None:
      self._row = {}
      return
    row = {'step': self._row.pop('step'), **self._row}
    self._row = {}
    json.dump({k: _plain(v) for k, v in row.items()}, self._file)
    self._file.write('\n')
    self._file.flush()
    if self._board:
      self._board.write_scalars(row.pop('step'), row)

  def close(self):
    self.flush()
    if self._file:
      self._file.close()
    if self._board:
      self._board.close()


def read(workdir):
  """All lines of a run's metrics.jsonl, as dicts."""
  with open(os.path.join(workdir, 'metrics.jsonl')) as f:
    return [json.loads(line) for line in f]


def _keep_up_to(path, step):
  if not os.path.exists(path):
    return
  with open(path) as f:
    lines = [line for line in f if _step(line) is not None]
  partial = path + '.partial'
  with open(partial, 'w') as f:
    f.writelines(line for line in lines if _step(line) <= step)
  os.replace(partial, path)


def _step(line):
  """The step of a line; None if a kill cut it short."""
  try:
    return json.loads(line)['step']
  except ValueError:
    return None


def _plain(value):
  """JSON has no NaN or infinity: they are written as strings."""
  if isinstance(value, int):
    return value
  value = float(value)
  return value if math.isfinite(value) else str(value)
