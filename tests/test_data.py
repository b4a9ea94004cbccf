"""Splits, sources and the pipeline: which bytes and pixels come, and when."""
import io
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
from PIL import Image
import pytest
from sklearn import datasets

from mixer.core import errors
from mixer.data import listing
from mixer.data import pipeline
from mixer.data import shards
from mixer.data import sources
from mixer.data import splits

STORED = splits.whole({'train': 100, 'test': 30})
SMALL, SIDE = 40, 24   # photos of 'train', of sizes that differ; side of 'even'


def records(spec, stored=None):
  """The record numbers that a split means, in its order."""
  split = splits.select(stored or STORED, spec, 'data.split')
  return split.records(np.arange(len(split))).tolist()


# Splits.


@pytest.mark.parametrize('spec,expected', (
    ('train', range(100)),
    ('test', range(100, 130)),
    ('train[:10]', range(10)),
    ('train[90:]', range(90, 100)),
    ('train[5:8]', range(5, 8)),
    ('train[-3:]', range(97, 100)),
    ('train[:-98]', range(2)),
    ('train[:99%]', range(99)),
    ('train[99%:]', range(99, 100)),
    ('train[-10%:]', range(90, 100)),
    ('test[:50%]', range(100, 115)),
    ('train[:2]+test[:2]', (0, 1, 100, 101)),
    ('test[:1] + train[98:]', (100, 98, 99)),
    ('train[:1]+train[:2]', (0, 0, 1)),
    ('train[95:1000]', range(95, 100)),
))
def test_slices(spec, expected):
  """TFDS's syntax: counts, percents, negative bounds and unions."""
  assert records(spec) == list(expected)


def test_slices_agree_with_tfds():
  """Bounds in percent round as TFDS rounds them, at awkward sizes too."""
  import tensorflow_datasets as tfds
  for size in (101, 1797, 1_281_167):
    stored = splits.whole({'train': size})
    info = tfds.core.splits.SplitInfo(
        name='train', shard_lengths=[size], num_bytes=0,
        filename_template=tfds.core.naming.ShardedFileTemplate(
            data_dir='/', dataset_name='x', split='train',
            filetype_suffix='tfrecord'))
    theirs = tfds.core.splits.SplitDict([info])
    for spec in ('train[:99%]', 'train[99%:]', 'train[33%:67%]',
                 'train[-1%:]', 'train[-50%:-5%]', 'train[:-1]', 'train[1:]'):
      instructions = theirs[spec].file_instructions
      ours = splits.select(stored, spec, 'data.split')
      assert len(ours) == sum(i.examples_in_shard if i.take == -1 else i.take
                              for i in instructions), (size, spec)
      first, = ours.records(np.array([0]))
      assert first == instructions[0].skip, (size, spec)


@pytest.mark.parametrize('first,second', (
    ('train[:99%]', 'train[99%:]'), ('train[51:]', 'train[:51]'),
    ('train[:-7]', 'train[-7:]'), ('train[33%:]', 'train[:33%]')))
@pytest.mark.parametrize('count', (100, 101, 1797))
def test_complementary_splits_partition_the_records(first, second, count):
  stored = splits.whole({'other': 13, 'train': count})
  both = records(first, stored) + records(second, stored)
  assert sorted(both) == list(range(13, 13 + count))


@pytest.mark.parametrize('spec,expected', (
    ('trian', ('data.split', "'trian'", "did you mean 'train'", 'test')),
    ('train+nope', ('data.split', "'nope'", 'train, test')),
    ('train[50]', ('data.split', "'train[50]'", "'train[:99%]'")),
    ('train[1:2', ('data.split', "'train[1:2'")),
    ('train[1.5%:]', ('data.split', "'train[1.5%:]'")),
    ('', ('data.split', "''")),
    ('train[7:7]', ('data.split', "'train[7:7]'", 'train: 100', 'test: 30')),
    ('train[60:40]', ('data.split', "'train[60:40]'", 'no examples')),
))
def test_bad_splits_name_key_value_and_choices(spec, expected):
  with pytest.raises(errors.UserError) as error:
    records(spec)
  for part in expected:
    assert part in str(error.value)


@pytest.mark.parametrize('count', (9, 10, 11, 1797))
@pytest.mark.parametrize('every', (2, 5, 10))
def test_held_out_examples_are_every_nth(count, every):
  rest, held = splits.hold_out(splits.Piece(3, 0, count), every)
  stored = {'train': rest, 'test': held}
  assert records('test', stored) == list(range(3, 3 + count, every))
  assert records('train', stored) == [
      3 + i for i in range(count) if i % every]
  assert records('train[2:4]', stored) == records('train', stored)[2:4]
  assert records('test[-1:]', stored) == records('test', stored)[-1:]


def test_a_missing_split_is_carved_and_said(caplog):
  """Every tenth example, which the training split then leaves out."""
  stored = splits.whole({'train': 95})
  with caplog.at_level(logging.INFO, 'mixer'):
    out = splits.carve(
        stored, ['train[:90%]', 'validation', 'train[90%:]'], 'mine')
  assert records('validation', out) == list(range(0, 95, 10))
  assert sorted(records('train', out) + records('validation', out)) == list(
      range(95))
  assert "'validation' (10)" in caplog.text and 'mine' in caplog.text


@pytest.mark.parametrize('stored,wanted', (
    ({'train': 95}, ['train']),
    ({'train': 95}, ['train', 'a', 'b']),
    ({'train': 95, 'test': 5}, ['train', 'validation'])))
def test_nothing_is_carved_otherwise(stored, wanted):
  """Not if all is there, nor if it is unclear from what or for what."""
  stored = splits.whole(stored)
  assert splits.carve(stored, wanted, 'mine') == stored


# Sources that are arrays.


def test_digits():
  """1,437 to train on; every fifth image is held out; 17 grey levels."""
  raw = datasets.load_digits()
  source = sources.open_source('digits')
  assert (source.num_classes, source.channels, source.decoded) == (10, 1, True)
  sizes = {k: p.stop - p.start for k, p in source.stored.items()}
  assert sizes == {'train': 1437, 'test': 360, 'all': 1797}
  test = records('test', source.stored)
  assert test == list(range(0, 1797, 5))
  assert sorted(records('train', source.stored) + test) == list(range(1797))
  assert records('all', source.stored) == list(range(1797))
  images, labels, _ = source.read(np.arange(1797))
  assert images.dtype == np.uint8 and images.shape == (1797, 8, 8, 1)
  np.testing.assert_array_equal(
      images[..., 0], np.round(raw.images * 255 / 16))
  assert images.max() == 255
  np.testing.assert_array_equal(labels[:, 0], raw.target)


def save_npz(path, **arrays):
  np.savez(path, **arrays)
  return f'arrays:{path}'


def pixels(count, side=4, channels=3, seed=0):
  return np.random.default_rng(seed).integers(
      0, 256, (count, side, side, channels), np.uint8)


def test_npz_of_one_split(tmp_path):
  name = save_npz(tmp_path / 'a.npz', images=pixels(12),
                  labels=np.arange(12) % 3)
  source = sources.open_source(name)
  assert list(source.stored) == ['train'] and source.num_classes == 3
  images, labels, _ = source.read(np.array([7, 2]))
  np.testing.assert_array_equal(images, pixels(12)[[7, 2]])
  np.testing.assert_array_equal(labels, [[1], [2]])


def test_npz_of_several_splits(tmp_path):
  """Splits by name, class names, and labels of more than one a image."""
  name = save_npz(
      tmp_path / 'a.npz', train_images=pixels(6), test_images=pixels(4, seed=1),
      train_labels=np.tile([[0, 2], [1, -1]], (3, 1)),
      test_labels=np.full((4, 2), 1), class_names=np.array(['a', 'b', 'c']))
  source = sources.open_source(name)
  assert source.class_names == ('a', 'b', 'c') and source.num_classes == 3
  images, labels, _ = source.read(np.array(records('test[1:]', source.stored)))
  np.testing.assert_array_equal(images, pixels(4, seed=1)[1:])
  np.testing.assert_array_equal(labels, np.full((3, 2), 1))
  _, labels, _ = source.read(np.array(records('train[:2]', source.stored)))
  np.testing.assert_array_equal(labels, [[0, 2], [1, -1]])


def test_npz_without_the_wanted_split_gives_every_tenth(tmp_path):
  name = save_npz(tmp_path / 'a.npz', images=pixels(25),
                  labels=np.arange(25) % 3)
  source = sources.open_source(name, wanted=('train', 'test'))
  assert records('test', source.stored) == [0, 10, 20]
  assert len(records('train', source.stored)) == 22


def test_fingerprint_follows_the_data(tmp_path):
  """The same arrays in another file agree; one pixel or label does not."""
  def fingerprint(**arrays):
    return sources.open_source(
        save_npz(tmp_path / 'a.npz', **arrays)).fingerprint
  labels = np.arange(12) % 3
  other_pixel = pixels(12)
  other_pixel[5, 1, 1, 1] ^= 1
  first = fingerprint(images=pixels(12), labels=labels)
  assert first == fingerprint(images=pixels(12), labels=labels)
  assert first != fingerprint(images=other_pixel, labels=labels)
  assert first != fingerprint(images=pixels(12), labels=labels[::-1])


@pytest.mark.parametrize('arrays,expected', (
    (dict(images=pixels(4).astype(np.float32), labels=np.zeros(4, int)),
     ('uint8', 'float32')),
    (dict(images=pixels(4)[..., 0], labels=np.zeros(4, int)),
     ('[N, H, W, C]', '[4, 4, 4]')),
    (dict(images=pixels(4)), ('4 images', '0 labels')),
    (dict(images=pixels(4), labels=np.zeros(3, int)), ('4 images', '3 labels')),
    (dict(images=pixels(4), labels=np.array([0, 1, -1, 0])), ('-1', '0 to 1')),
    (dict(images=pixels(4), labels=np.array([0, 1, 2, 3]),
          class_names=np.array(['a', 'b', 'c'])), ('from 0 to 3', '0 to 2')),
    (dict(images=pixels(4), labels=np.array([0., .5, 1., 2.])), ('float64',)),
    (dict(images=pixels(0), labels=np.zeros(0, int)), ('no ', 'images')),
    (dict(train_images=pixels(4), train_labels=np.zeros(4, int),
          test_images=pixels(4, side=5), test_labels=np.zeros(4, int)),
     ('5, 5', '4, 4')),
    (dict(pictures=pixels(4)), ('pictures', "'images'")),
    (dict(images=pixels(4), labels=np.array([{}] * 4)), ('pickle',)),
), ids=('float images', 'rank', 'no labels', 'few labels', 'negative label',
        'label beyond the names', 'float labels', 'empty', 'sizes differ',
        'names', 'pickled'))
def test_bad_npz_is_one_line_with_the_file(tmp_path, arrays, expected):
  name = save_npz(tmp_path / 'a.npz', **arrays)
  with pytest.raises(errors.UserError) as error:
    sources.open_source(name)
  for part in (*expected, 'a.npz'):
    assert part in str(error.value)


@pytest.mark.parametrize('content', (
    None, b'', b'no zip at all', b'PK\x03\x04 cut short', 'npy'))
def test_what_is_no_npz_is_one_line_with_the_file(tmp_path, content):
  path = tmp_path / 'a.npz'
  if content == 'npy':
    with open(path, 'wb') as f:
      np.save(f, pixels(4))
  elif content is not None:
    path.write_bytes(content)
  with pytest.raises(errors.UserError, match='cannot read .*a.npz'):
    sources.open_source(f'arrays:{path}')


def test_unknown_kind_of_source():
  with pytest.raises(errors.UserError, match='data.name.*array:x.*arrays:PATH'):
    sources.open_source('array:x')


# Sources that TFDS wrote.


def encode(image, form):
  file = io.BytesIO()
  Image.fromarray(image).save(file, form)
  return file.getvalue()


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """(data_dir, {split: {label: encoded image}}) of real TFDS sets.

  Every image has a label of its own, which therefore tells it. 'train' holds
  photos of different sizes, one of them as PNG, 'even' smaller ones of one
  size, 'bad' three whole ones and one that is no image.
  """
  import tensorflow_datasets as tfds
  os.environ['NO_GCE_CHECK'] = 'true'
  tfds.display_progress_bar(enable=False)
  tfds.core.utils.gcs_utils._is_gcs_disabled = True
  pictures = datasets.load_sample_images().images
  rng = np.random.default_rng(0)
  files = {'train': {}, 'even': {}, 'bad': {}}

  def crop(i, height, width):
    y = rng.integers(0, 427 - height)
    x = rng.integers(0, 640 - width)
    return pictures[i % 2][y:y + height, x:x + width]

  for i in range(SMALL):
    image = crop(i, *rng.integers(40, 120, 2))
    files['train'][i] = encode(image, 'PNG' if i == 7 else 'JPEG')
  for i in range(SMALL, SMALL + 13):
    files['even'][i] = encode(crop(i, SIDE, SIDE), 'JPEG')
  for i in range(3):
    files['bad'][i] = encode(crop(i, 50, 50), 'JPEG')
  files['bad'][3] = b'\xff\xd8\xff\xe0' + bytes(range(200))

  data_dir = str(tmp_path_factory.mktemp('tfds'))
  download = tfds.download.DownloadConfig(num_shards=3, try_download_gcs=False)
  Photos(files, False, data_dir=data_dir).download_and_prepare(
      download_config=download)
  ManyLabels(files, True, data_dir=data_dir).download_and_prepare(
      download_config=download)
  return data_dir, files


def _builders():
  import tensorflow_datasets as tfds

  class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Photos made by the test."""
    VERSION = tfds.core.Version('1.0.0')

    def __init__(self, files, several, **kwargs):
      self._given, self._several = files, several
      super().__init__(**kwargs)

    def _info(self):
      label = tfds.features.ClassLabel(num_classes=SMALL + 20)
      target = (dict(labels=tfds.features.Sequence(label)) if self._several
                else dict(label=label))
      image = tfds.features.Image(shape=(None, None, 3))
      return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(dict(target, image=image)))

    def _split_generators(self, dl_manager):
      del dl_manager
      return {name: self._generate_examples(files)
              for name, files in self._given.items()}

    def _generate_examples(self, files):
      for i, file in files.items():
        target = (dict(labels=[i, (i + 1) % SMALL][:1 + i % 2])
                  if self._several else dict(label=i))
        yield i, dict(target, image=file)

  return (type('Photos', (_Builder,), dict(__module__=__name__)),
          type('ManyLabels', (_Builder,), dict(__module__=__name__)))


Photos, ManyLabels = _builders()


def test_tfds_records_are_those_that_tfds_reads(photos):
  """In the order of its files, with their labels and exact bytes."""
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
    images, labels, _ = source.read(np.array(records(name, source.stored)))
    assert labels.shape == (len(files[name]), 1)
    assert list(zip(images, labels[:, 0])) == theirs
    assert dict(zip(labels[:, 0].tolist(), images)) == files[name]


def test_tfds_records_come_in_any_order(photos):
  data_dir, _ = photos
  source = sources.open_source('photos', data_dir=data_dir)
  images, labels, _ = source.read(np.arange(SMALL))
  shuffled = np.random.default_rng(1).permutation(SMALL)
  some_images, some_labels, _ = source.read(shuffled)
  assert some_images == [images[i] for i in shuffled]
  np.testing.assert_array_equal(some_labels, labels[shuffled])


def test_no_file_of_tfrecord_stays_open(photos):
  """A set may have more shards than a process may have open files."""
  source = sources.open_source('photos', data_dir=photos[0])
  before = len(os.listdir('/dev/fd'))
  for record in range(0, SMALL):
    source.read(np.array([record]))
  assert len(os.listdir('/dev/fd')) <= before


def test_a_label_outside_the_classes_is_named(photos, monkeypatch):
  """At its batch: TFDS has no index of labels."""
  original = shards.Parser
  monkeypatch.setattr(shards, 'Parser', lambda **k: original(
      **dict(k, num_classes=1)))
  source = sources.open_source('photos', data_dir=photos[0])
  with pytest.raises(errors.RunError,
                     match=r'photos-train.* record .* labels .*from 0 to 0'):
    source.read(np.arange(SMALL))


def test_tfds_labels_may_be_several(photos):
  """A record of fewer than the most there may be is padded by -1."""
  data_dir, files = photos
  source = sources.open_source('many_labels', data_dir=data_dir)
  images, labels, _ = source.read(np.arange(SMALL))
  assert labels.shape == (SMALL, listing.MAX_LABELS)
  for image, row in zip(images, labels):
    i = row[0]
    expected = [i, (i + 1) % SMALL][:1 + i % 2]
    assert image == files['train'][i]
    assert row[:len(expected)].tolist() == expected
    assert set(row[len(expected):]) == {-1}


def test_tfds_fingerprint_follows_the_set(photos):
  data_dir, _ = photos
  names = ('photos', 'photos', 'many_labels')
  a, b, c = (sources.open_source(n, data_dir=data_dir).fingerprint
             for n in names)
  assert a == b != c


@pytest.fixture
def damaged(photos, tmp_path):
  """A copy of the set whose second training shard has lost its end."""
  copy = tmp_path / 'tfds'
  shutil.copytree(f'{photos[0]}/photos', copy / 'photos')
  shard, = copy.glob('photos/*/photos-train.tfrecord-00001-of-00003')
  shard.write_bytes(shard.read_bytes()[:-100])
  return str(copy), shard.name


def test_truncated_shard_is_named_when_opened(damaged):
  data_dir, name = damaged
  with pytest.raises(errors.UserError, match=f'{name}.*is damaged') as error:
    sources.open_source('photos', data_dir=data_dir)
  whole, listed = re.search(
      r'(\d+) whole records of the (\d+)', str(error.value)).groups()
  assert int(whole) == int(listed) - 1


def test_missing_shard_is_named_when_opened(photos, tmp_path):
  copy = tmp_path / 'tfds'
  shutil.copytree(f'{photos[0]}/photos', copy / 'photos')
  shard, = copy.glob('photos/*/photos-train.tfrecord-00001-of-00003')
  shard.unlink()
  with pytest.raises(errors.UserError, match=shard.name):
    sources.open_source('photos', data_dir=str(copy))


@pytest.mark.parametrize('name', (
    'imagenet2012', 'imagenet21k', 'jft', 'no_such_set'))
def test_missing_set_says_how_to_get_it(name, tmp_path):
  """At once, without asking the network."""
  began = time.monotonic()
  with pytest.raises(errors.UserError) as error:
    sources.open_source(name, data_dir=str(tmp_path))
  assert time.monotonic() - began < 10
  for part in ('data.name', repr(name), repr(str(tmp_path)),
               '--config.data.dir'):
    assert part in str(error.value)


def test_set_without_images_is_refused(photos):
  """A set of TFDS's that is not for classification says what it has."""
  import tensorflow_datasets as tfds
  data_dir, _ = photos

  class Words(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Text and nothing else."""
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self,
          features=tfds.features.FeaturesDict(dict(text=tfds.features.Text())))

    def _split_generators(self, dl_manager):
      return dict(train=self._generate_examples())

    def _generate_examples(self):
      yield 0, dict(text='a')

  Words(data_dir=data_dir).download_and_prepare(
      download_config=tfds.download.DownloadConfig(try_download_gcs=False))
  with pytest.raises(errors.UserError, match=r"words.*\['text'\].*'image'"):
    sources.open_source('words', data_dir=data_dir)


def test_a_set_on_the_device_needs_no_tensorflow(photos):
  """Opening, reading and decoding it: TensorFlow is never imported."""
  code = ('import sys; from mixer.data import pipeline; '
          f'd = pipeline.open_data(name="photos", split="even", '
          f'dir={photos[0]!r}, on_device=True, image_size={SIDE}); '
          'assert len(d.resident["image"]) == 13; '
          'b = list(d.train_batches(seed=0, batch_size=8, first=0, last=2, '
          'slots=(0, 8))); assert len(b) == 2; '
          'sys.exit("tensorflow" in sys.modules)')
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60,
                 cwd=os.path.dirname(os.path.dirname(__file__)))


# The pipeline.


@pytest.mark.slow
def test_resident_memory_stays_flat(photos):
  """After 1,000 batches for the buffers, 6,000 more (295 MB of pixels) add next
  to nothing, at random and in sequence: no cache of the set hides anywhere."""
  code = """
import sys
import psutil
from mixer.data import pipeline
data = pipeline.open_data(name='photos', split='train', dir=sys.argv[1],
                          access=sys.argv[2], window=8, image_size=64)
for i, _ in enumerate(data.train_batches(
    seed=0, batch_size=4, first=0, last=7001, slots=(0, 4))):
  if i and i % 1000 == 0:
    print(round(psutil.Process().memory_info().rss / 2**20))
"""
  for access in sources.ACCESS:
    out = subprocess.run(
        [sys.executable, '-c', code, photos[0], access], check=True,
        text=True, timeout=300, stdout=subprocess.PIPE,
        cwd=os.path.dirname(os.path.dirname(__file__)))
    first, *later = map(int, out.stdout.split())
    print(access, first, *later, 'MiB')
    assert len(later) == 6 and max(later) < first + 40


def open_photos(photos, split='train', **settings):
  settings = dict(dict(image_size=32, crop='inception'), **settings)
  return pipeline.open_data(
      name='photos', split=split, dir=photos[0], **settings)


def train(data, *, seed=0, size=8, first=0, last=6, slots=None):
  return list(data.train_batches(seed=seed, batch_size=size, first=first,
                                 last=last, slots=slots or (0, size)))


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for key in one:
    assert one[key].dtype == other[key].dtype
    np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_host_decoding_starts_at_any_step(photos):
  """Batches 3 to 5 are the same whether or not 0 to 2 were made before; at
  batch size 16, step 3 lies in the second epoch."""
  data = open_photos(photos)
  for size in (8, 16):
    all_of_them = train(data, size=size)
    later = train(data, size=size, first=3)
    assert len(all_of_them) == 6 and len(later) == 3
    for one, other in zip(all_of_them[3:], later):
      assert_equal(one, other)


@pytest.mark.parametrize('processes', (2, 4))
def test_host_decoding_is_the_same_for_any_number_of_processes(
    photos, processes):
  data = open_photos(photos)
  share = 8 // processes
  whole = train(data, last=3)
  parts = [train(data, last=3, slots=(p * share, (p + 1) * share))
           for p in range(processes)]
  for t in range(3):
    assert_equal(whole[t], {k: np.concatenate([part[t][k] for part in parts])
                            for k in whole[t]})


def test_host_decoding_delivers_what_the_order_names(photos):
  """Shapes and dtypes; labels belong to the records; an epoch is whole."""
  data = open_photos(photos)
  _, labels, _ = data.source.read(np.arange(SMALL))
  seen = []
  for batch in train(data, last=5):
    assert batch['image'].shape == (8, 32, 32, 3)
    assert batch['image'].dtype == np.uint8
    assert batch['epoch'].dtype == batch['record'].dtype == np.int32
    np.testing.assert_array_equal(batch['labels'], labels[batch['record']])
    assert set(batch['epoch']) == {0}
    seen.extend(batch['record'])
  assert sorted(seen) == list(range(SMALL))


def by_record(batches):
  return {(int(e), int(r)): image for b in batches
          for e, r, image in zip(b['epoch'], b['record'], b['image'])}


def test_inception_crop_depends_on_seed_epoch_and_record_only(photos):
  """Not on the batch, its size, the place in it, or the rest of the split."""
  crops = by_record(train(open_photos(photos), last=10))
  assert len(crops) == 2 * SMALL
  others = dict(
      size=by_record(train(open_photos(photos), size=5, last=16)),
      split=by_record(train(open_photos(photos, 'train[10:30]'), last=5)))
  assert set(others['size']) == set(crops)
  for other in others.values():
    for key, image in other.items():
      np.testing.assert_array_equal(image, crops[key])
  second = by_record(train(open_photos(photos), seed=1, last=5))
  same = lambda a, b: np.array_equal(a, b)
  assert not any(same(second[0, r], crops[0, r]) for r in range(SMALL))
  assert not any(same(crops[1, r], crops[0, r]) for r in range(SMALL))


def test_inception_crop_is_a_crop(photos):
  """An image whose pixels tell their place: the window has at least the area
  asked for and an aspect of 3/4 to 4/3, and windows differ."""
  from mixer.images import decode_tf
  side, size = 200, 16
  y, x = np.mgrid[:side, :side].astype(np.uint8)
  file = encode(np.stack([y, x, np.zeros_like(x)], -1), 'PNG')
  keys = np.arange(128, dtype=np.int32).reshape(64, 2)
  load = lambda number, lo, hi: ([file] * (hi - lo), keys[lo:hi], ())

  for min_area in (.05, .6):
    (images, _), = decode_tf.batches(
        load, (), first=0, last=1, batch_size=64,
        image_size=(size, size), channels=3, crop='inception',
        interpolation='bilinear', min_area=min_area)
    image = images.astype(float)
    # From the first to the last row lie 1 - 1/size of the window's height.
    height = (image[:, -1, 0, 0] - image[:, 0, 0, 0]) * size / (size - 1)
    width = (image[:, 0, -1, 1] - image[:, 0, 0, 1]) * size / (size - 1)
    area, aspect = height * width / side**2, width / height
    assert area.min() > min_area * .93 and area.max() <= 1.05
    assert aspect.min() > .70 and aspect.max() < 1.40
    assert area.min() < min_area + .15 and area.max() > .85
    assert np.unique(image[:, 0, 0, :2], axis=0).shape[0] > 40


def test_evaluation_crops(photos):
  """'resmall' is the middle 7/8 of the shorter side, 'resize' all of it."""
  from mixer.images import decode_tf
  y, x = np.mgrid[:160, :240].astype(np.uint8)
  file = encode(np.stack([y, x, np.zeros_like(x)], -1), 'PNG')
  load = lambda number, lo, hi: ([file], np.zeros((1, 2), np.int32), ())

  def cut(crop):
    (images, _), = decode_tf.batches(
        load, (), first=0, last=1, batch_size=1, image_size=(56, 56),
        channels=3, crop=crop, interpolation=decode_tf.CROPS[crop])
    return images[0].astype(float)

  small = cut('resmall')
  # 64 rows of 2.5 pixels; the middle 56 begin with row 4, column 20.
  assert abs(small[0, 0, 0] - (4 * 2.5 + .75)) < 1
  assert abs(small[-1, 0, 0] - (59 * 2.5 + .75)) < 1
  assert abs(small[0, 0, 1] - (20 * 2.5 + .75)) < 1
  assert abs(small[0, -1, 1] - (75 * 2.5 + .75)) < 1
  whole = cut('resize')
  assert whole[0, 0, 0] < 3 and whole[-1, 0, 0] > 156
  assert whole[0, 0, 1] < 4 and whole[0, -1, 1] > 235


@pytest.mark.parametrize('size', (1, 7, 8, SMALL, 64))
def test_evaluation_counts_each_example_once_when_decoding(photos, size):
  """The masks of all batches sum to N, and what they keep is the split."""
  data = open_photos(photos, crop='resmall')
  kept, padded = [], 0
  for batch in data.eval_batches(batch_size=size, slots=(0, size)):
    assert len(batch['image']) == len(batch['mask']) == size
    kept.extend(batch['labels'][batch['mask'], 0])
    padded += np.sum(~batch['mask'])
  assert len(kept) == SMALL and sorted(kept) == list(range(SMALL))
  assert padded == -SMALL % size


@pytest.mark.parametrize('size', (1, 7, 128, 359, 360, 361, 1000))
@pytest.mark.parametrize('processes', (1, 4))
def test_evaluation_counts_each_example_once_on_the_device(size, processes):
  data = pipeline.open_data(name='digits', split='test', image_size=8)
  size = size * processes
  share = size // processes
  kept = []
  for p in range(processes):
    for batch in data.eval_batches(
        batch_size=size, slots=(p * share, (p + 1) * share)):
      assert len(batch['position']) == len(batch['mask']) == share
      kept.extend(batch['position'][batch['mask']])
  assert len(kept) == 360 and sorted(kept) == list(range(360))


def test_processes_make_equally_many_evaluation_batches(photos):
  """One that has nothing left still takes part, all masked."""
  data = open_photos(photos, 'train[:3]', crop='resize')
  parts = [list(data.eval_batches(batch_size=8, slots=(2 * p, 2 * p + 2)))
           for p in range(4)]
  assert [len(part) for part in parts] == [1] * 4
  assert [int(part[0]['mask'].sum()) for part in parts] == [2, 1, 0, 0]


def test_on_the_device_or_decoded_the_images_are_the_same(photos):
  """At their own size, whichever of the two decoders it is."""
  settings = dict(image_size=SIDE, crop='resize')
  resident = open_photos(photos, 'even', on_device=True, **settings)
  hosted = open_photos(photos, 'even', **settings)
  batches = list(hosted.eval_batches(batch_size=13, slots=(0, 13)))
  assert len(batches) == 1 and hosted.resident is None
  images, labels = batches[0]['image'], batches[0]['labels']
  np.testing.assert_array_equal(labels, resident.resident['labels'])
  assert resident.resident['image'].shape == images.shape
  np.testing.assert_array_equal(images, resident.resident['image'])
  for one, other in zip(train(resident, size=5, last=3),
                        train(hosted, size=5, last=3)):
    np.testing.assert_array_equal(
        resident.resident['labels'][one['position']], other['labels'])
    np.testing.assert_array_equal(one['record'], other['record'])
    np.testing.assert_array_equal(one['epoch'], other['epoch'])


def test_images_on_the_device_are_resized_once(photos):
  """To the size asked for, from any size and kind of file; arrays as well."""
  data = open_photos(photos, on_device=True, image_size=(20, 28))
  assert data.resident['image'].shape == (SMALL, 20, 28, 3)
  digits = pipeline.open_data(name='digits', split='test', image_size=16)
  assert digits.resident['image'].shape == (360, 16, 16, 1)
  small = pipeline.open_data(name='digits', split='test', image_size=8)
  difference = (digits.resident['image'].mean((1, 2))
                - small.resident['image'].mean((1, 2)))
  assert np.abs(difference).max() < 8


def test_records_of_a_split_key_its_examples():
  """'record' is the number in the whole source, 'position' in the split."""
  data = pipeline.open_data(name='digits', split='test[10:]', image_size=8)
  for batch in train(data, size=32, last=3):
    np.testing.assert_array_equal(
        batch['record'], (batch['position'] + 10) * 5)


def test_fingerprint_tells_what_would_change_the_order():
  data = pipeline.open_data(name='digits', split='train', image_size=8)
  half = pipeline.open_data(name='digits', split='train[:50%]', image_size=8)
  first = data.fingerprint(128, 0)
  assert first == data.fingerprint(128, 0)
  assert len({str(f) for f in (
      first, data.fingerprint(64, 0), data.fingerprint(128, 1),
      half.fingerprint(128, 0))}) == 4


@pytest.mark.parametrize('settings,expected', (
    (dict(crop='center'), ('data.crop', "'center'", 'resmall')),
    (dict(split=None), ('data.split', 'not set')),
    (dict(name=None), ('data.name', 'not set')),
    (dict(min_area=0.0), ('data.min_area', '0')),
    (dict(min_area=1.5), ('data.min_area', '1.5')),
    (dict(image_size=0), ('image_size', '0')),
))
def test_bad_settings_are_refused_when_opened(settings, expected):
  """Not at the first batch, and though the digits need no host crop."""
  settings = dict(dict(name='digits', split='train', image_size=8), **settings)
  with pytest.raises(errors.UserError) as error:
    pipeline.open_data(**settings)
  for part in expected:
    assert part in str(error.value)


def test_ahead_yields_what_it_is_given():
  assert list(pipeline.ahead(iter(range(50)))) == list(range(50))
  assert list(pipeline.ahead(iter(()))) == []


def test_ahead_passes_errors_on():
  """After the items before it, with its type and message."""
  def work():
    yield 1
    yield 2
    raise errors.RunError('no more')
  items = []
  with pytest.raises(errors.RunError, match='no more'):
    for item in pipeline.ahead(work()):
      items.append(item)
  assert items == [1, 2]


def test_ahead_is_ahead():
  """While one item is used, the next is made; not many more are."""
  made = []
  def work():
    for i in range(100):
      made.append(i)
      yield i
  items = pipeline.ahead(work())
  next(items)
  wait_until(lambda: len(made) >= 2)
  time.sleep(.05)
  assert len(made) <= 4
  items.close()


@pytest.mark.parametrize('how', ('closed', 'used up', 'failed'))
def test_ahead_stops_its_thread(how):
  """Also one that waits to hand over an item that nobody will take."""
  before = set(threading.enumerate())
  made = []
  def work():
    for i in range(10**9 if how == 'closed' else 3):
      made.append(i)
      yield i
    if how == 'failed':
      raise ValueError('failed')
  items = pipeline.ahead(work())
  next(items)
  assert set(threading.enumerate()) - before
  if how == 'closed':
    wait_until(lambda: len(made) >= 3)
    time.sleep(.05)
    items.close()
  else:
    with pytest.raises((ValueError, StopIteration)):
      while True:
        next(items)
  wait_until(lambda: not set(threading.enumerate()) - before)


def wait_until(condition):
  end = time.monotonic() + 5
  while not condition():
    assert time.monotonic() < end
    time.sleep(.01)
