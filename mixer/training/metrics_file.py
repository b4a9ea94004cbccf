"""Writes metrics to metrics.jsonl, and to TensorBoard if that is installed.

Only process 0 writes.
"""
from collections.abc import Mapping
import io
import json
import math
import os
import socket
import time
from typing import Any

import jax

from mixer.core import files
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
    self._board = Board.open(path)

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
      self._board.write(step, row)

  def _upload(self) -> None:
    """Writes the whole file again, since a bucket cannot append."""
    files.write(self._path, ''.join(self._lines))
    if self._board:
      self._board.flush()
    self._uploaded = time.monotonic()


class Board:
  """Writes metrics to a new event file for TensorBoard, without TensorFlow.

  Importing TensorFlow would take seconds of every start.

  Args:
    path: the workdir.
  """

  def __init__(self, path: str):
    from tensorboard.compat.proto import event_pb2
    from tensorboard.summary.writer import record_writer
    self._event = event_pb2.Event
    self._path = os.path.join(
        path, f'events.out.tfevents.{time.time_ns()}.{socket.gethostname()}')
    self._kept = io.BytesIO() if files.is_remote(path) else None
    self._file = self._kept or open(self._path, 'wb')
    self._records = record_writer.RecordWriter(self._file)
    self._add(file_version='brain.Event:2')

  @classmethod
  def open(cls, path: str) -> 'Board | None':
    """Returns a writer; None, with a line in the log, without TensorBoard."""
    try:
      return cls(path)
    except ModuleNotFoundError as e:
      log.info('no TensorBoard files are written: %s is not installed (pip '
               'install tensorboard)', e.name)
    except Exception as e:   # a library that does not fit, of any type
      log.warning('no TensorBoard files are written: %s: %s',
                  type(e).__name__, ' '.join(str(e).split())[:200])
    return None

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Adds the metrics of a step."""
    self._add(step=step, summary=dict(value=[
        dict(tag=name, simple_value=float(value))
        for name, value in metrics.items()]))
    self._file.flush()   # TensorBoard reads along

  def flush(self) -> None:
    """Returns when everything is stored."""
    if self._kept:   # a bucket cannot append
      files.write(self._path, self._kept.getvalue())

  def close(self) -> None:
    """Stores everything and closes the file."""
    self.flush()
    self._file.close()

  def _add(self, **content: Any) -> None:
    event = self._event(wall_time=time.time(), **content)
    self._records.write(event.SerializeToString())


def read(path: str) -> list[dict[str, Any]]:
  """Returns all whole lines of a workdir's metrics.jsonl."""
  return files.json_lines(files.read(os.path.join(path, workdir.METRICS)))


def plain(value: Any) -> int | float | str:
  """Returns a value that JSON has; NaN and infinities become strings."""
  if isinstance(value, int):
    return value
  value = float(value)
  return value if math.isfinite(value) else str(value)
