"""Writes metrics to metrics.jsonl, and to TensorBoard if that is installed.

Only process 0 writes.
"""
from collections.abc import Mapping
import importlib.util
import json
import math
import os
import time
from typing import Any

import jax

from mixer.core import files
from mixer.core import processes
from mixer.core import workdir
from mixer.core.log import log

_UPLOAD_SECONDS = 60   # between uploads to a bucket, which cannot append


class Writer:
  """Writes one line for each step: `{"step": 10, "train/loss": 2.3, ...}`.

  Metrics of one step may come in several calls; they become one line, which is
  complete after the next step's `write` or a `flush`. Lines that the file has
  beyond the step at which a run resumes are removed first, so that the file
  holds every step once.

  Args:
    path: the workdir.
    resumed_at: the step at which the run starts or resumes.

  Attributes:
    spent: device-seconds that the run has taken before this start.
  """

  def __init__(self, path: str, *, resumed_at: int):
    self._row: dict[str, Any] = {}
    self._lines: list[str] = []
    self._uploaded = time.monotonic()
    self.spent = 0.0
    self._path = os.path.join(path, workdir.METRICS)
    self._file = self._board = None
    self._writes = jax.process_index() == 0
    if not self._writes:
      return
    rows = read(path)
    self.spent = max(x.get('train/device_seconds', 0.0) for x in [{}, *rows])
    self._lines = [json.dumps(row) + '\n' for row in rows
                   if row['step'] <= resumed_at]
    files.write(self._path, ''.join(self._lines))
    if not files.is_remote(path):
      self._file = open(self._path, 'a')
    self._board = board(path)

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds metrics of a step, which must not be lower than the last one's."""
    if self._row and self._row['step'] != step:
      self._complete()
    self._row.update(metrics, step=step)

  def flush(self) -> None:
    """Completes the line of the last step; on return it is stored."""
    self._complete()
    if self._writes and not self._file:
      self._upload()

  def close(self) -> None:
    """Completes the last line and closes all files."""
    self.flush()
    if self._file:
      self._file.close()
    if self._board:
      self._board.close()

  def _complete(self) -> None:
    row, self._row = self._row, {}
    if not row or not self._writes:
      return
    step = row.pop('step')
    line = json.dumps({'step': step, **{
        key: plain(value) for key, value in row.items()}}) + '\n'
    if self._file:
      self._file.write(line)
      self._file.flush()
    else:
      self._lines.append(line)
      if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
        self._upload()
    if self._board:
      self._board.write_scalars(step, row)

  def _upload(self) -> None:
    """Writes the whole file again, since a bucket cannot append."""
    files.write(self._path, ''.join(self._lines))
    self._uploaded = time.monotonic()


def since_best(path: str, metric: str | None, last: int) -> int:
  """Returns how many evaluations came after the one with the highest value.

  All processes must call it, after the `Writer` is made; process 0 reads.

  Args:
    path: the workdir.
    metric: its key in the lines; None gives 0.
    last: the last step that counts.
  """
  if metric is None:
    return 0
  rows = read(path) if jax.process_index() == 0 else ()
  values = [value if math.isfinite(value := float(row[metric])) else -math.inf
            for row in rows if metric in row and row['step'] <= last]
  best = values.index(max(values)) + 1 if values else 0
  return processes.of_first(len(values) - best)


def read(path: str) -> list[dict[str, Any]]:
  """Returns all whole lines of a workdir's metrics.jsonl."""
  text = files.read(os.path.join(path, workdir.METRICS)) or ''
  return [row for line in text.splitlines() if (row := _row(line)) is not None]


def board(path: str) -> Any:
  """Returns a TensorBoard writer, or None if a library is missing or
  broken."""
  missing = [name for name in ('tensorflow', 'tensorboard')
             if importlib.util.find_spec(name) is None]
  if missing:
    log.info('no TensorBoard files are written: %s is not installed (pip '
             'install %s)', missing[0], missing[0])
    return None
  from mixer.images import tf_setup
  problem = tf_setup.hide_accelerators()   # or it takes the GPUs' memory
  if problem:
    log.warning('no TensorBoard files are written: TensorFlow is not usable: '
                '%s', problem)
    return None
  from clu import metric_writers
  return metric_writers.AsyncWriter(metric_writers.SummaryWriter(path))


def _row(line: str) -> dict[str, Any] | None:
  """Returns a line as a dict, or None if a kill cut the line short."""
  try:
    return json.loads(line)
  except ValueError:
    return None


def plain(value: Any) -> int | float | str:
  """Returns a value that JSON has; NaN and infinities become strings."""
  if isinstance(value, int):
    return value
  value = float(value)
  return value if math.isfinite(value) else str(value)
