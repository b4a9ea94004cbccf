"""The pipeline: which batches a split gives on the host and on the device."""
import os
import subprocess
import sys

import numpy as np
import pytest
import tfds_sets

from mixer.core import errors
from mixer.data import pipeline

SMALL, SIDE = tfds_sets.SMALL, tfds_sets.SIDE
ROOT = os.path.dirname(os.path.dirname(__file__))


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """A data_dir with the set 'photos'."""
  data_dir = str(tmp_path_factory.mktemp('tfds'))
  tfds_sets.prepare_photos(data_dir)
  return data_dir


def test_a_set_on_the_device_needs_no_tensorflow(photos):
  """Opening, reading and decoding it do not import TensorFlow."""
  code = ('import sys; from mixer.data import pipeline; '
          f'd = pipeline.open_data(name="photos", split="even", '
          f'dir={photos!r}, on_device=True, image_size={SIDE}); '
          'assert len(d.resident["image"]) == 13; '
          'b = list(d.train_batches(seed=0, batch_size=8, first=0, last=2, '
          'slots=(0, 8))); assert len(b) == 2; '
          'sys.exit("tensorflow" in sys.modules)')
  subprocess.run([sys.executable, '-c', code], check=True, timeout=60,
                 cwd=ROOT)


@pytest.mark.slow
def test_memory_does_not_grow_during_training(photos):
  """The first 1,000 batches fill the buffers; 6,000 more (295 MB of pixels) add
  next to nothing, at random and in sequence. So nothing caches the set."""
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
  for access in ('random', 'sequential'):
    out = subprocess.run(
        [sys.executable, '-c', code, photos, access], check=True,
        text=True, timeout=300, stdout=subprocess.PIPE,
        cwd=ROOT)
    first, *later = map(int, out.stdout.split())
    print(access, first, *later, 'MiB')
    assert len(later) == 6 and max(later) < first + 40


def open_photos(photos, split='train', **settings):
  settings = dict(dict(image_size=32, crop='inception'), **settings)
  return pipeline.open_data(
      name='photos', split=split, dir=photos, **settings)


def train(data, *, seed=0, size=8, first=0, last=6, slots=None):
  return list(data.train_batches(seed=seed, batch_size=size, first=first,
                                 last=last, slots=slots or (0, size)))


def assert_equal(one, other):
  assert one.keys() == other.keys()
  for key in one:
    assert one[key].dtype == other[key].dtype
    np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_host_decoding_may_start_at_any_step(photos):
  """Batches 3 to 5 are the same whether or not 0 to 2 were made before. At
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


def test_labels_belong_to_their_records_and_an_epoch_has_each_record_once(
    photos):
  """Shapes and dtypes are as documented, too."""
  data = open_photos(photos)
  labels = data.source.read(np.arange(SMALL))[1]['labels']
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
  """{(epoch, record): image} of all batches."""
  return {(int(e), int(r)): image for b in batches
          for e, r, image in zip(b['epoch'], b['record'], b['image'])}


def test_inception_crop_depends_on_seed_epoch_and_record_only(photos):
  """It does not depend on the batch, its size, the row, or the rest of the
  split."""
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


@pytest.mark.parametrize('size', (1, 7, 8, SMALL, 64))
def test_evaluation_on_the_host_counts_each_example_once(photos, size):
  """The masks of all batches sum to N, and the unmasked rows are the split."""
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
def test_evaluation_on_the_device_counts_each_example_once(size, processes):
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


def test_all_processes_make_the_same_number_of_evaluation_batches(photos):
  """A process that has no examples left makes batches that are all masked."""
  data = open_photos(photos, 'train[:3]', crop='resize')
  parts = [list(data.eval_batches(batch_size=8, slots=(2 * p, 2 * p + 2)))
           for p in range(4)]
  assert [len(part) for part in parts] == [1] * 4
  assert [int(part[0]['mask'].sum()) for part in parts] == [2, 1, 0, 0]


def test_images_are_the_same_on_the_host_and_on_the_device(photos):
  """Two different decoders give the same pixels of images at their own size."""
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


def test_images_on_the_device_are_resized_to_the_size_asked_for(photos):
  """Files may have any size and format; arrays are resized too."""
  data = open_photos(photos, on_device=True, image_size=(20, 28))
  assert data.resident['image'].shape == (SMALL, 20, 28, 3)
  digits = pipeline.open_data(name='digits', split='test', image_size=16)
  assert digits.resident['image'].shape == (360, 16, 16, 1)
  small = pipeline.open_data(name='digits', split='test', image_size=8)
  difference = (digits.resident['image'].mean((1, 2))
                - small.resident['image'].mean((1, 2)))
  assert np.abs(difference).max() < 8


def test_record_counts_in_the_source_and_position_in_the_split():
  data = pipeline.open_data(name='digits', split='all[10:]', image_size=8)
  for batch in train(data, size=32, last=3):
    np.testing.assert_array_equal(batch['record'], batch['position'] + 10)


def test_fingerprint_follows_batch_size_seed_and_split():
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
def test_invalid_settings_are_refused_when_a_split_is_opened(
    settings, expected):
  """The error does not wait for the first batch, and is raised for digits too,
  which need no host crop."""
  settings = dict(dict(name='digits', split='train', image_size=8), **settings)
  with pytest.raises(errors.UserError) as error:
    pipeline.open_data(**settings)
  for part in expected:
    assert part in str(error.value)
