"""TFRecord: the format, the index for reading at random, and reading in
sequence."""
import io
import logging
import os
import re
import shutil

from batches import evaluate
from batches import reopened
from batches import train
import numpy as np
import pytest
import tfds_sets

from mixer.core import errors
from mixer.data import tfrecord
from mixer.data import tfrecord_sequence

COUNT = tfds_sets.COUNT


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
  """The settings of `open_data` for a TFRecord set."""
  data_dir = str(tmp_path_factory.mktemp('tfrecord'))
  return dict(tfds_sets.prepare_crops(data_dir, 'tfrecord',
                                      tfds_sets.draw_crops()),
              split='train', image_size=12, crop='bit')


def records_in(path):
  return list(tfrecord_sequence.read_all(str(path)))


def write_records(path, records):
  writer = tfrecord_sequence.Writer(str(path))
  for record in records:
    writer.write(record)
  writer.close()


def test_records_are_read_and_written_as_tensorflow_does(tmp_path):
  """One of the records has no data."""
  import tensorflow as tf
  records = [b'', b'a', bytes(range(256)) * 1000]
  ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
  write_records(ours, records)
  with tf.io.TFRecordWriter(str(theirs)) as writer:
    for record in records:
      writer.write(record)
  assert ours.read_bytes() == theirs.read_bytes()
  assert records_in(theirs) == records


@pytest.mark.parametrize('byte', (3, 9, 14, -3, None))
def test_a_damaged_record_ends_reading_with_an_error(tmp_path, byte):
  """A changed byte of any part of a record, or a file that is cut short."""
  path = tmp_path / 'records'
  write_records(path, [b'abcde'])
  content = bytearray(path.read_bytes())
  if byte is None:
    del content[-1]
  else:
    content[byte] ^= 1
  path.write_bytes(content)
  with pytest.raises(ValueError, match='damaged'):
    records_in(path)


@pytest.fixture
def scans(monkeypatch):
  """The numbers of the shards that were scanned, in order."""
  out, scan = [], tfrecord._scan

  def counted_scan(shards, shard):
    out.append(shard)
    return scan(shards, shard)

  monkeypatch.setattr(tfrecord, '_scan', counted_scan)
  return out


@pytest.fixture
def copied(stored, tmp_path, monkeypatch):
  """The settings of a copy of the set, with a new cache."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  shutil.copytree(stored['dir'], tmp_path / 'set')
  return dict(stored, dir=str(tmp_path / 'set'))


def all_records(settings):
  images, targets = reopened(settings).source.read(np.arange(COUNT))
  return images, targets['labels']


def index_of(tmp_path):
  """The path of the only index in the cache."""
  path, = (tmp_path / 'cache' / 'mlp-mixer').iterdir()
  return path


def test_the_index_is_made_once_and_kept(copied, scans, tmp_path):
  """The user's cache keeps it, and opening the set again scans no file."""
  first = all_records(copied)
  assert sorted(scans) == [0, 1, 2]
  kept = index_of(tmp_path)
  written = kept.stat()
  second = all_records(copied)
  assert len(scans) == 3 and index_of(tmp_path) == kept
  assert kept.stat().st_mtime_ns == written.st_mtime_ns
  assert first[0] == second[0]
  np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize('changed', ('size', 'time'))
def test_the_index_is_made_again_when_a_shard_changes(
    copied, scans, tmp_path, changed):
  """A shard with other records, of another size at the old time or of the old
  size at another time: the new records are read."""
  before, _ = all_records(copied)
  path = tfds_sets.shard_of(copied, 0)
  old, records = path.stat(), records_in(path)
  order_of = list(range(len(records)))[::-1]
  if changed == 'size':
    order_of[0] = order_of[1]
  expected = [before[i] for i in order_of] + before[len(records):]
  write_records(path, [records[i] for i in order_of])
  times = old.st_atime_ns, old.st_mtime_ns + (changed == 'time')
  os.utime(path, ns=times)
  assert (path.stat().st_size != old.st_size) == (changed == 'size')
  after, _ = all_records(copied)
  assert after == expected != before
  assert sorted(scans) == [0, 0, 1, 1, 2, 2]
  assert len(list((tmp_path / 'cache' / 'mlp-mixer').iterdir())) == 2


def test_without_a_cache_the_index_is_made_every_time(
    copied, scans, tmp_path, monkeypatch, caplog):
  """One line says that the cache cannot be written; nothing else changes."""
  expected = all_records(copied)[0]
  (tmp_path / 'file').write_text('where a directory should be')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  with caplog.at_level(logging.INFO, 'mixer'):
    for times in (2, 3):
      assert all_records(copied)[0] == expected
      assert sorted(scans) == sorted([0, 1, 2] * times)
  assert len(re.findall('cannot be written', caplog.text)) == 2


@pytest.mark.parametrize('kept', (0, 1, 6, 60, 127, 128, 200, -8, -1))
def test_an_index_that_is_cut_short_is_made_again(
    copied, scans, tmp_path, kept):
  """Cut at any length, as a full disk or a crash leaves it."""
  expected = all_records(copied)[0]
  path = index_of(tmp_path)
  content = path.read_bytes()
  path.write_bytes(content[:kept])
  assert all_records(copied)[0] == expected
  assert len(scans) == 6 and index_of(tmp_path).read_bytes() == content


def test_an_index_that_does_not_fit_is_made_again(copied, scans, tmp_path):
  expected = all_records(copied)[0]
  path = index_of(tmp_path)
  whole = path.read_bytes()
  offsets = np.load(path)
  wrong = [bytes(len(whole)), bytes(range(256)) * 3,
           whole[:300] + bytes(len(whole) - 300)]
  for array in (offsets[:-1], offsets[::-1], np.roll(offsets, 1), 9 * offsets,
                offsets.astype(float)):
    file = io.BytesIO()
    np.save(file, array)
    wrong.append(file.getvalue())
  for content in wrong:
    path.write_bytes(content)
    assert all_records(copied)[0] == expected
  assert len(scans) == 3 * (1 + len(wrong))


def test_a_file_that_is_cut_short_stops_reading_in_sequence(stored, tmp_path):
  """The error names the file and the record where it ends."""
  copy = dict(stored, dir=str(tmp_path / 'cut'), access='sequential')
  shutil.copytree(stored['dir'], copy['dir'])
  path = tfds_sets.shard_of(copy, 1)
  path.write_bytes(path.read_bytes()[:-100])
  for read in (lambda data: train(data, 8, 0, 9),
               lambda data: evaluate(data, 8)):
    with pytest.raises(errors.RunError, match='damaged.* record 20 on') as e:
      read(reopened(copy))
    assert str(path) in str(e.value)
