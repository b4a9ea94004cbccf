"""metrics.jsonl holds each step once, however often a run is resumed."""
import json
import sys

import pytest
from tensorboard.compat.proto import event_pb2

from mixer.data import tfrecord_sequence
from mixer.training import metrics_file


def test_after_a_resume_each_step_is_there_once(tmp_path):
  first = metrics_file.Writer(str(tmp_path), resumed_at=0)
  for step in (10, 20, 30):
    first.write(step, {'train/loss': 1.0 / step,
                       'train/device_seconds': 2.0 * step})
  first.write(30, {'eval/test/accuracy': 0.5})
  first.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as f:
    f.write('{"step": 40, "train/lo')   # killed while writing a line
  second = metrics_file.Writer(str(tmp_path), resumed_at=20)
  assert second.spent == 60.0   # counts the time of the lost steps too
  second.write(30, {'train/loss': float('nan')})
  second.close()
  rows = metrics_file.read(tmp_path)
  assert [r['step'] for r in rows] == [10, 20, 30]
  assert rows[-1] == {'step': 30, 'train/loss': 'nan'}
  json.dumps(rows, allow_nan=False)


def test_in_a_bucket_whole_files_are_written(tmp_path, monkeypatch):
  """A bucket cannot append to a file; in the end it holds the same lines."""
  monkeypatch.setattr(metrics_file.files, 'is_remote', lambda path: True)
  writer = metrics_file.Writer(str(tmp_path), resumed_at=0)
  writer.write(1, {'train/loss': 1.0})
  writer.write(2, {'train/loss': 0.5})
  assert metrics_file.read(tmp_path) == []
  writer.flush()
  assert [r['step'] for r in metrics_file.read(tmp_path)] == [1, 2]
  writer.close()
  metrics_file.Writer(str(tmp_path), resumed_at=1).close()
  assert [r['step'] for r in metrics_file.read(tmp_path)] == [1]


@pytest.mark.parametrize('remote', (False, True))
def test_tensorboard_reads_the_same_metrics(tmp_path, monkeypatch, remote):
  """Event files are TFRecord files; the reader checks their checksums."""
  monkeypatch.setattr(metrics_file.files, 'is_remote', lambda path: remote)
  writer = metrics_file.Writer(str(tmp_path), resumed_at=0)
  writer.write(1, {'train/loss': 1.0, 'train/bad': 0})
  writer.write(2, {'eval/test/loss': float('nan')})
  writer.close()
  file, = map(str, tmp_path.glob('events.out.tfevents.*'))
  version, *events = map(event_pb2.Event.FromString, tfrecord_sequence.read_all(file))
  assert version.file_version == 'brain.Event:2'
  assert all(event.wall_time > 1e9 for event in events)
  assert [(event.step, value.tag, str(value.simple_value)) for event in events
          for value in event.summary.value] == [
              (1, 'train/loss', '1.0'), (1, 'train/bad', '0.0'),
              (2, 'eval/test/loss', 'nan')]


def test_a_tensorboard_that_cannot_be_imported_ends_no_run(
    tmp_path, monkeypatch, caplog):
  monkeypatch.setitem(sys.modules, 'tensorboard.compat.proto', None)
  with caplog.at_level('INFO', logger='mixer'):
    metrics_file.Writer(str(tmp_path), resumed_at=0).close()
  assert 'no TensorBoard files are written' in caplog.text
  assert sorted(file.name for file in tmp_path.iterdir()) == ['metrics.jsonl']
