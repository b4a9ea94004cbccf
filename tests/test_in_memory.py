"""The digits, and arrays in npz files."""
import numpy as np
import pytest
from sklearn import datasets

from mixer.core import errors
from mixer.data import sources
from mixer.data import splits


def records(spec, stored):
  """The record numbers of a split, in its order."""
  split = splits.select(stored, spec, 'data.split')
  return split.records(np.arange(len(split))).tolist()


def test_digits_have_1437_training_and_360_test_images():
  """Every fifth image is held out; the pixels have 17 grey levels."""
  raw = datasets.load_digits()
  source = sources.open_source('digits')
  assert (source.num_classes, source.channels, source.decoded) == (10, 1, True)
  sizes = {k: p.stop - p.start for k, p in source.stored.items()}
  assert sizes == {'train': 1437, 'test': 360, 'all': 1797}
  test = records('test', source.stored)
  assert test == list(range(0, 1797, 5))
  assert sorted(records('train', source.stored) + test) == list(range(1797))
  assert records('all', source.stored) == list(range(1797))
  images, targets = source.read(np.arange(1797))
  assert images.dtype == np.uint8 and images.shape == (1797, 8, 8, 1)
  np.testing.assert_array_equal(
      images[..., 0], np.round(raw.images * 255 / 16))
  assert images.max() == 255
  np.testing.assert_array_equal(targets['labels'][:, 0], raw.target)


def save_npz(path, **arrays):
  np.savez(path, **arrays)
  return f'arrays:{path}'


def pixels(count, side=4, channels=3, seed=0):
  return np.random.default_rng(seed).integers(
      0, 256, (count, side, side, channels), np.uint8)


def test_an_npz_of_one_split_is_training_data(tmp_path):
  name = save_npz(tmp_path / 'a.npz', images=pixels(12),
                  labels=np.arange(12) % 3)
  source = sources.open_source(name)
  assert list(source.stored) == ['train'] and source.num_classes == 3
  images, targets = source.read(np.array([7, 2]))
  np.testing.assert_array_equal(images, pixels(12)[[7, 2]])
  np.testing.assert_array_equal(targets['labels'], [[1], [2]])
  assert list(targets) == ['labels']


def test_an_npz_may_hold_several_splits(tmp_path):
  """It may also hold class names, and several labels for an image."""
  name = save_npz(
      tmp_path / 'a.npz', train_images=pixels(6), test_images=pixels(4, seed=1),
      train_labels=np.tile([[0, 2], [1, -1]], (3, 1)),
      test_labels=np.full((4, 2), 1), class_names=np.array(['a', 'b', 'c']))
  source = sources.open_source(name)
  assert source.class_names == ('a', 'b', 'c') and source.num_classes == 3
  images, targets = source.read(np.array(records('test[1:]', source.stored)))
  np.testing.assert_array_equal(images, pixels(4, seed=1)[1:])
  np.testing.assert_array_equal(targets['labels'], np.full((3, 2), 1))
  _, targets = source.read(np.array(records('train[:2]', source.stored)))
  np.testing.assert_array_equal(targets['labels'], [[0, 2], [1, -1]])


def test_a_missing_split_of_an_npz_is_every_tenth_example(tmp_path):
  name = save_npz(tmp_path / 'a.npz', images=pixels(25),
                  labels=np.arange(25) % 3)
  source = sources.open_source(name, wanted=('train', 'test'))
  assert records('test', source.stored) == [0, 10, 20]
  assert len(records('train', source.stored)) == 22


def test_fingerprint_follows_pixels_and_labels(tmp_path):
  """The same arrays in another file have the same fingerprint; another pixel or
  label changes it."""
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
def test_wrong_arrays_are_refused_with_the_name_of_the_file(
    tmp_path, arrays, expected):
  name = save_npz(tmp_path / 'a.npz', **arrays)
  with pytest.raises(errors.UserError) as error:
    sources.open_source(name)
  for part in (*expected, 'a.npz'):
    assert part in str(error.value)


@pytest.mark.parametrize('content', (
    None, b'', b'no zip at all', b'PK\x03\x04 cut short', 'npy'))
def test_a_file_that_is_no_npz_is_refused_by_name(tmp_path, content):
  path = tmp_path / 'a.npz'
  if content == 'npy':
    with open(path, 'wb') as f:
      np.save(f, pixels(4))
  elif content is not None:
    path.write_bytes(content)
  with pytest.raises(errors.UserError, match='cannot read .*a.npz'):
    sources.open_source(f'arrays:{path}')


def test_an_unknown_kind_of_source_is_refused_with_the_known_kinds():
  with pytest.raises(errors.UserError, match='data.name.*array:x.*arrays:PATH'):
    sources.open_source('array:x')
