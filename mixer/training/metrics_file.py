"""Metrics to files: metrics.jsonl always, TensorBoard where TensorFlow is.

Only process 0 writes.
"""
import importlib.util
import json
import math
import os
import time

import jax

from mixer.core import files
from mixer.core.log import log

_UPLOAD_SECONDS = 60  # between writes of a file that cannot be appended to


class Writer:
  """Writes `{'step': 10, 'train/loss': 2.3, ...}`, one line a step.

  Values of one step that arrive apart are one line; `flush` completes it. What
  stands in the file beyond the step where a run resumes is dropped first, so
  every step is there once.
  """

  def __init__(self, workdir, *, resumed_at):
    self._row, self._lines, self._uploaded = {}, [], time.monotonic()
    self.spent = 0.0
    self._path = os.path.join(workdir, 'metrics.jsonl')
    self._file = self._board = None
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    text = files.read(self._path)
    if text is not None:
      rows = [(line, row) for line in text.splitlines()
              if (row := _row(line)) is not None]
      self.spent = max((row.get('train/device_seconds', 0.0)
                        for _, row in rows), default=0.0)
      self._lines = [line + '\n' for line, row in rows
                     if row['step'] <= resumed_at]
      files.write(self._path, ''.join(self._lines))
    if not files.is_remote(workdir):
      self._file = open(self._path, 'a')
    missing = [m for m in ('tensorflow', 'tensorboard')
               if importlib.util.find_spec(m) is None]
    if missing:
      log.info('no TensorBoard files: %s is not installed (pip install %s)',
               missing[0], missing[0])
    else:
      from clu import metric_writers
      self._board = metric_writers.AsyncWriter(
          metric_writers.SummaryWriter(workdir))

  def write(self, step, metrics):
    """Notes float metrics of a step, which must not go backwards."""
    if self._row and self._row['step'] != step:
      self._complete()
    self._row.update(metrics, step=step)

  def flush(self):
    """Completes the line of the last step; it is stored on return."""
    self._complete()
    if self._writes and not self._file:
      self._upload()

  def close(self):
    self.flush()
    if self._file:
      self._file.close()
    if self._board:
      self._board.close()

  def _complete(self):
    row, self._row = self._row, {}
    if not row or not self._writes:
      return
    row = {'step': row.pop('step'), **row}
    line = json.dumps({k: _plain(v) for k, v in row.items()}) + '\n'
    if self._file:
      self._file.write(line)
      self._file.flush()
    else:
      self._lines.append(line)
      if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
        self._upload()
    if self._board:
      self._board.write_scalars(row.pop('step'), row)

  def _upload(self):
    """A bucket cannot append: the whole file is written again."""
    files.write(self._path, ''.join(self._lines))
    self._uploaded = time.monotonic()


def read(workdir):
  """All lines of a run's metrics.jsonl, as dicts."""
  text = files.read(os.path.join(workdir, 'metrics.jsonl')) or ''
  return [json.loads(line) for line in text.splitlines()]


def _row(line):
  """A line as a dict; None if a kill cut it short."""
  try:
    return json.loads(line)
  except ValueError:
    return None


def _plain(value):
  """JSON has no NaN or infinity: they are written as strings."""
  if isinstance(value, int):
    return value
  value = float(value)
  return value if math.isfinite(value) else str(value)
