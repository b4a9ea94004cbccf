"""Sets that TFDS prepared: their records, labels, fingerprints and errors."""
import json
import os
import re
import shutil
import time

import numpy as np
import pytest
import tfds_sets

from mixer.core import errors
from mixer.data import sources
from mixer.data import splits
from mixer.data.sources import MAX_LABELS
from mixer.data.tfds_sets import Parsing

SMALL = tfds_sets.SMALL


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """(data_dir, {split: {label: encoded image}}) of two sets.

  'photos' has one label for each image, 'many_labels' one or two.
  """
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  files = tfds_sets.prepare_photos(data_dir)
  tfds = tfds_sets.offline()
  features = tfds_sets.image_features(SMALL + 20)
  tfds_sets.prepare(
      data_dir, 'many_labels',
      dict(image=features['image'],
           labels=tfds.features.Sequence(features['label'])),
      {split: [(i, dict(image=file, labels=several(i)))
               for i, file in of_split.items()]
       for split, of_split in files.items()})
  return data_dir, files


def several(i):
  """One or two labels, the first of which tells the image."""
  return [i, (i + 1) % SMALL][:1 + i % 2]


def records(source, name):
  """The record numbers of a stored split."""
  split = splits.select(source.stored, name, 'data.split')
  return split.records(np.arange(len(split)))


def test_records_are_those_that_tfds_reads(photos):
  """They have the order of its files, their labels and their exact bytes."""
  import tensorflow_datasets as tfds
  data_dir, files = photos
  builder = tfds.builder_from_directory(f'{data_dir}/photos/1.0.0')
  assert len(builder.info.splits['train'].filepaths) == 3
  source = sources.open_source('photos', data_dir=data_dir)
  assert (source.num_classes, source.channels, source.decoded) == (
      SMALL + 20, 3, False)
  for name in files:
    theirs = builder.as_dataset(
        split=name, shuffle_files=False,
        decoders={'image': tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(interleave_cycle_length=1))
    theirs = [(e['image'], e['label']) for e in theirs.as_numpy_iterator()]
    images, targets = source.read(records(source, name))
    labels = targets['labels']
    assert labels.shape == (len(files[name]), 1)
    assert list(zip(images, labels[:, 0])) == theirs
    assert dict(zip(labels[:, 0].tolist(), images)) == files[name]


def test_records_can_be_read_in_any_order(photos):
  data_dir, _ = photos
  source = sources.open_source('photos', data_dir=data_dir)
  images, targets = source.read(np.arange(SMALL))
  shuffled = np.random.default_rng(1).permutation(SMALL)
  some_images, some_targets = source.read(shuffled)
  assert some_images == [images[i] for i in shuffled]
  np.testing.assert_array_equal(
      some_targets['labels'], targets['labels'][shuffled])


def test_no_tfrecord_file_stays_open(photos):
  """A set may have more shards than a process may have open files."""
  source = sources.open_source('photos', data_dir=photos[0])
  before = len(os.listdir('/dev/fd'))
  for record in range(SMALL):
    source.read(np.array([record]))
  assert len(os.listdir('/dev/fd')) <= before


def test_a_record_with_a_label_outside_the_classes_is_named(
    photos, monkeypatch):
  """It is found when it is read, because TFDS has no index of labels."""
  original = Parsing.__init__
  monkeypatch.setattr(Parsing, '__init__', lambda self, **k: original(
      self, **dict(k, num_classes=1)))
  source = sources.open_source('photos', data_dir=photos[0])
  with pytest.raises(errors.RunError,
                     match=r'photos-train.* record .* labels .*from 0 to 0'):
    source.read(np.arange(SMALL))


def test_an_example_may_have_several_labels(photos):
  """A record with fewer labels than the largest number is padded by -1."""
  data_dir, files = photos
  source = sources.open_source('many_labels', data_dir=data_dir)
  images, targets = source.read(np.arange(SMALL))
  assert targets['labels'].shape == (SMALL, MAX_LABELS)
  for image, row in zip(images, targets['labels']):
    expected = several(row[0])
    assert image == files['train'][row[0]]
    assert row[:len(expected)].tolist() == expected
    assert set(row[len(expected):]) == {-1}


def test_fingerprint_follows_the_set(photos):
  data_dir, _ = photos
  names = ('photos', 'photos', 'many_labels')
  a, b, c = (sources.open_source(n, data_dir=data_dir).fingerprint
             for n in names)
  assert a == b != c


def copy_of(photos, tmp_path):
  """(data_dir of a copy of 'photos', its second training shard)."""
  copy = tmp_path / 'tfds'
  shutil.copytree(f'{photos[0]}/photos', copy / 'photos')
  shard, = copy.glob('photos/*/photos-train.tfrecord-00001-of-00003')
  return str(copy), shard


def test_a_truncated_shard_is_named_when_the_set_is_opened(photos, tmp_path):
  data_dir, shard = copy_of(photos, tmp_path)
  shard.write_bytes(shard.read_bytes()[:-100])
  with pytest.raises(
      errors.UserError, match=f'{shard.name}.*is damaged') as error:
    sources.open_source('photos', data_dir=data_dir)
  whole, listed = re.search(
      r'has (\d+) whole records.* lists (\d+)', str(error.value)).groups()
  assert int(whole) == int(listed) - 1


def test_a_missing_shard_is_named_when_the_set_is_opened(photos, tmp_path):
  data_dir, shard = copy_of(photos, tmp_path)
  shard.unlink()
  with pytest.raises(errors.UserError, match=shard.name):
    sources.open_source('photos', data_dir=data_dir)


@pytest.mark.parametrize('name', (
    'imagenet2012', 'imagenet21k', 'jft', 'no_such_set'))
def test_the_error_for_a_missing_set_says_how_to_get_it(name, tmp_path):
  """The error is raised at once, without using the network."""
  began = time.monotonic()
  with pytest.raises(errors.UserError) as error:
    sources.open_source(name, data_dir=str(tmp_path))
  assert time.monotonic() - began < 10
  for part in ('data.name', repr(name), repr(str(tmp_path)),
               '--config.data.dir'):
    assert part in str(error.value)


@pytest.mark.parametrize('given', ('photos', 'photos/1.0.0', '..'))
def test_a_set_is_found_above_and_below_the_directory_that_was_given(
    photos, tmp_path, given):
  """The error then says which one to give, and nothing of downloads."""
  data_dir, _ = copy_of(photos, tmp_path)
  where = os.path.normpath(f'{data_dir}/{given}')
  with pytest.raises(errors.UserError) as error:
    sources.open_source('photos', data_dir=where)
  assert str(error.value).endswith(
      f'in {where!r}; set --config.data.dir={data_dir}, which has it')


@pytest.mark.parametrize('name,given,expected,absent', (
    ('photo', '', ('prepared there: photos:1.0.0',), 'download'),
    ('photo', 'photos/1.0.0', ('prepared there: photos:1.0.0',), 'download'),
    ('photos:2.0.0', '', ('prepared there: photos:1.0.0',), 'download'),
    ('cifar-10', '', ('TFDS knows cifar10',), 'photos'),
    ('cifar10', '', ('download_and_prepare',), 'photos')))
def test_a_misspelt_set_gets_the_names_that_are_near(
    photos, name, given, expected, absent):
  with pytest.raises(errors.UserError) as error:
    sources.open_source(name, data_dir=f'{photos[0]}/{given}')
  for part in expected:
    assert part in str(error.value)
  assert absent not in str(error.value).split('; ', 1)[1].replace(
      photos[0], '').replace('needs no download', '')


def test_a_set_without_images_is_refused(photos):
  """The message says which features it has."""
  data_dir, _ = photos
  tfds = tfds_sets.offline()
  tfds_sets.prepare(data_dir, 'words', dict(text=tfds.features.Text()),
                    dict(train=[(0, dict(text='a'))]), shards=1)
  with pytest.raises(errors.UserError, match=r"words.*\['text'\].*'image'"):
    sources.open_source('words', data_dir=data_dir)


@pytest.mark.parametrize('place', ('new', 'old', 'nested', 'info'))
def test_a_set_cannot_run_code_that_lies_beside_it(
    photos, tmp_path, monkeypatch, place):
  """TFDS would import the module that a set names as that of a feature."""
  data_dir, shard = copy_of(photos, tmp_path)
  ran = tmp_path / 'ran'
  (tmp_path / f'beside_{place}.py').write_text(f'open({str(ran)!r}, "w")')
  monkeypatch.syspath_prepend(str(tmp_path))
  named = f'beside_{place}.Feature'
  path = shard.parent / (
      'dataset_info.json' if place == 'info' else 'features.json')
  content = json.loads(path.read_text())
  if place == 'info':
    content['features'] = {'pythonClassName': named, 'text': {}}
  elif place == 'old':
    content = {'type': named, 'content': {}}
  else:
    inner = {'type': named, 'content': {}}
    content['featuresDict']['features']['label'] = (
        {'pythonClassName': named, 'text': {}} if place == 'new' else
        {'pythonClassName':
         'tensorflow_datasets.core.features.features_dict.FeaturesDict',
         'jsonFeature': {'json': json.dumps({'a': inner})}})
  path.write_text(json.dumps(content))
  with pytest.raises(errors.UserError) as error:
    sources.open_source('photos', data_dir=data_dir)
  assert not ran.exists()
  assert named in str(error.value) and path.name in str(error.value)
