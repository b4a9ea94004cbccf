"""Converting a TFDS set from TFRecord to ArrayRecord."""
import json
import os
import pathlib
import shutil

import numpy as np
import photos
import pytest

from mixer.core import errors
from mixer.data import sources
from mixer.preparation import convert
from mixer.preparation import shard_files


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp('tfds')
  photos.write_tfds_set(path)
  return str(path)


@pytest.fixture(scope='module')
def converted(data_dir, tmp_path_factory):
  """(the TFDS directory of the new set, what `convert` returned)."""
  out = tmp_path_factory.mktemp('converted')
  return out, convert.convert(
      'pictures', data_dir=data_dir, out=str(out), workers=2)


def test_convert_keeps_every_record_in_its_place(data_dir, converted):
  """Records, order and splits stay; other files are copied."""
  out, (path, splits) = converted
  assert path == f'{out}/pictures/2.3.4' and os.listdir(out) == ['pictures']
  assert {split: sum(count for count, _ in shards)
          for split, shards in splits.items()} == {
      'train': photos.NUM_TRAIN, 'test': photos.NUM_TEST}
  old_files = sorted(pathlib.Path(f'{data_dir}/pictures/2.3.4').iterdir())
  assert len(os.listdir(path)) == len(old_files)
  for old in old_files:
    new = pathlib.Path(path) / old.name.replace('tfrecord', 'array_record')
    if old.name == 'dataset_info.json':
      assert json.loads(new.read_text()) == dict(
          json.loads(old.read_text()), fileFormat='array_record')
    elif new.name == old.name:
      assert new.read_bytes() == old.read_bytes()
    else:
      assert list(shard_files.read(str(new), 'array_record')) == list(
          shard_files.read(str(old), 'tfrecord'))


def test_a_converted_set_reads_like_the_old_one(data_dir, converted):
  """TFDS reads it; training sees the same records under the same numbers."""
  import tensorflow_datasets as tfds
  out, (path, _) = converted
  examples = tfds.builder_from_directory(path).as_data_source('train')
  assert sorted(e['label'] for e in examples) == list(range(photos.NUM_TRAIN))
  old = sources.open_source('pictures', data_dir=data_dir)
  new = sources.open_source('pictures', data_dir=str(out))
  assert old.fingerprint == new.fingerprint
  everything = np.arange(photos.NUM_TRAIN + photos.NUM_TEST)
  old_images, old_targets = old.read(everything)
  new_images, new_targets = new.read(everything)
  assert old_images == new_images
  np.testing.assert_array_equal(old_targets['labels'],
                                new_targets['labels'])


def test_a_set_is_neither_overwritten_nor_converted_twice(
    data_dir, converted, tmp_path):
  out, _ = converted
  with pytest.raises(errors.UserError, match='2.3.4.* exists already'):
    convert.convert('pictures', data_dir=data_dir, out=str(out), workers=1)
  with pytest.raises(errors.UserError, match='stored as array_record already'):
    convert.convert('pictures', data_dir=str(out), out=str(tmp_path), workers=1)
  assert os.listdir(out) == ['pictures'] and os.listdir(tmp_path) == []


@pytest.mark.parametrize('fault', ('flipped bit', 'missing record', 'no file'))
def test_a_conversion_that_fails_leaves_nothing(data_dir, tmp_path, fault):
  shutil.copytree(data_dir, tmp_path / 'in')
  file = photos.train_shard(tmp_path / 'in', 1)
  if fault == 'flipped bit':
    data = bytearray(file.read_bytes())
    data[60] ^= 4
    file.write_bytes(data)
  elif fault == 'missing record':
    records = list(shard_files.read(str(file), 'tfrecord'))
    shard_files.write(str(file), 'tfrecord', records[1:])
  else:
    file.unlink()
  with pytest.raises(errors.RunError, match='tfrecord-00001-of-00003'):
    convert.convert('pictures', data_dir=f'{tmp_path}/in',
                    out=f'{tmp_path}/out', workers=2)
  assert not list((tmp_path / 'out').rglob('*'))
