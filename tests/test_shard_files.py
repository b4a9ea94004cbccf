"""Shards as files: TFRecord as TensorFlow writes it, and damage."""
import photos
import pytest

from mixer.core import errors
from mixer.preparation import shard_files


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('tfds')
  photos.write_tfds_set(path)
  return path


def test_tfrecord_files_are_written_as_tensorflow_writes_them(
    data_dir, tmp_path):
  file = photos.train_shard(data_dir)
  count, size = shard_files.write(
      str(tmp_path / 'x'), 'tfrecord', shard_files.read(str(file), 'tfrecord'))
  assert (tmp_path / 'x').read_bytes() == file.read_bytes()
  assert count == photos.NUM_TRAIN // photos.NUM_SHARDS
  assert size == file.stat().st_size - 16 * count
  assert list(tmp_path.iterdir()) == [tmp_path / 'x']


@pytest.mark.parametrize('file_format', shard_files.FORMATS)
def test_records_are_read_as_they_were_written(tmp_path, file_format):
  records = [b'', b'a', b'b' * 100_000]
  path = str(tmp_path / 'x')
  assert shard_files.write(path, file_format, records) == (3, 100_001)
  assert list(shard_files.read(path, file_format)) == records


@pytest.mark.parametrize('position', (3, 9, 40, -2, None), ids=(
    'length', "length's checksum", 'data', "data's checksum", 'cut'))
def test_a_damaged_record_is_an_error_with_the_file_name(
    data_dir, tmp_path, position):
  data = bytearray(photos.train_shard(data_dir).read_bytes())
  if position is None:
    del data[-5:]
  else:
    data[position] ^= 1
  (tmp_path / 'x').write_bytes(data)
  with pytest.raises(errors.RunError, match=f'{tmp_path}/x.*damaged'):
    list(shard_files.read(str(tmp_path / 'x'), 'tfrecord'))


def test_an_error_of_the_records_leaves_no_shard(tmp_path):
  def records():
    yield b'a'
    raise errors.RunError('the reader failed')

  with pytest.raises(errors.RunError, match='^the reader failed$'):
    shard_files.write(str(tmp_path / 'x'), 'tfrecord', records())
  assert not (tmp_path / 'x').exists()
