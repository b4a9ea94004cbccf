"""The digits, and arrays in npz files."""
import contextlib
import logging

import numpy as np
import pytest
from sklearn import datasets

from mixer.core import errors
from mixer.data import npz_files
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
  images, targets = source.read(np.array(records('test', source.stored)))
  np.testing.assert_array_equal(images, pixels(4, seed=1))
  np.testing.assert_array_equal(targets['labels'], np.full((4, 2), 1))
  _, targets = source.read(np.array(records('train', source.stored)[:2]))
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
    (dict(images=pixels(4)[..., 0, 0], labels=np.zeros(4, int)),
     ('[N, H, W, C]', '[4, 4]')),
    (dict(images=pixels(4)), ('4 images', 'shape None')),
    (dict(images=pixels(4), labels=np.zeros(3, int)), ('4 images', '[3]')),
    (dict(images=pixels(4), labels=np.int64(3)), ('4 images', '[]')),
    (dict(images=pixels(4), labels=np.zeros((4, 2, 2), int)), ('[4, 2, 2]',)),
    (dict(images=pixels(4), labels=np.full(4, 2**32 + 1)),
     ('4294967297', '1,048,576')),
    (dict(images=pixels(4), labels=np.full(4, 2**63, np.uint64)),
     ('9223372036854775808',)),
    (dict(images=pixels(4), labels=np.full((4, 2), -2)), ('-2', 'fewer')),
    (dict(images=pixels(4), labels=np.eye(4, dtype=int),
          class_names=np.array(['a', 'b', 'c'])), ('4 columns', '0 to 2')),
    (dict(val_images=pixels(4), val_labels=np.zeros(4, int),
          validation_images=pixels(4), validation_labels=np.zeros(4, int)),
     ("'val', 'validation'", 'only one')),
    (dict(images=pixels(4), labels=np.array([0, 1, -1, 0])), ('-1', '0 to 1')),
    (dict(images=pixels(4), labels=np.array([0, 1, 2, 3]),
          class_names=np.array(['a', 'b', 'c'])), ('from 0 to 3', '0 to 2')),
    (dict(images=pixels(4), labels=np.array([0., .5, 1., 2.])), ('float64',)),
    (dict(images=pixels(4), labels=np.arange(4) % 3,
          class_names=np.array(['a', 'b', 'a'])), ('class_names', '2 diff')),
    (dict(images=pixels(4), labels=np.arange(4) % 3,
          class_names=np.array('abc')), ('class_names', '[]')),
    (dict(images=pixels(0), labels=np.zeros(0, int)), ('no ', 'images')),
    (dict(train_images=pixels(4), train_labels=np.zeros(4, int),
          test_images=pixels(4, side=5), test_labels=np.zeros(4, int)),
     ('5, 5', '4, 4')),
    (dict(pictures=pixels(4)), ('pictures', "'images'")),
    (dict(images=pixels(4), labels=np.array([{}] * 4)), ('pickle',)),
), ids=('float images', 'rank', 'no labels', 'few labels', 'one label',
        'rank of labels', 'beyond int32', 'beyond int64', 'below -1',
        'columns and names', 'a split twice', 'negative label',
        'label beyond the names', 'float labels', 'equal names',
        'no list of names', 'empty', 'sizes differ',
        'names', 'pickled'))
def test_wrong_arrays_are_refused_with_the_name_of_the_file(
    tmp_path, arrays, expected):
  name = save_npz(tmp_path / 'a.npz', **arrays)
  with pytest.raises(errors.UserError) as error:
    sources.open_source(name)
  for part in (*expected, 'a.npz'):
    assert part in str(error.value)


def test_medmnist_files_are_read_as_they_are(tmp_path):
  """They have grey images without channels, labels [N, 1] and the split 'val',
  which is the split 'validation'."""
  arrays = {}
  for seed, part in enumerate(('train', 'val', 'test')):
    arrays[f'{part}_images'] = pixels(6, seed=seed)[..., 0]
    arrays[f'{part}_labels'] = np.arange(6, dtype=np.uint8)[:, None] % 3
  source = sources.open_source(
      save_npz(tmp_path / 'a.npz', **arrays), wanted=('train', 'validation'))
  assert set(source.stored) == {'train', 'validation', 'test'}
  assert (source.num_classes, source.channels) == (3, 1)
  images, targets = source.read(np.array(records('validation', source.stored)))
  np.testing.assert_array_equal(images[..., 0], pixels(6, seed=1)[..., 0])
  np.testing.assert_array_equal(targets['labels'][:, 0], np.arange(6) % 3)
  assert targets['labels'].dtype == np.int32


@pytest.mark.parametrize('dtype', (np.uint8, np.int64, bool))
def test_labels_of_zeros_and_ones_mark_the_classes_of_an_image(
    tmp_path, caplog, dtype):
  """One-hot or several in a row; a row without a 1 has no label. They are not
  the classes 0 and 1."""
  caplog.set_level(logging.INFO, 'mixer')
  marks = np.array([[0, 0, 1, 0], [1, 0, 1, 0], [0, 0, 0, 0]], dtype)
  source = sources.open_source(
      save_npz(tmp_path / 'a.npz', images=pixels(3), labels=marks))
  assert source.num_classes == 4
  expected = [[2, -1], [0, 2], [-1, -1]]
  records = np.arange(3)
  np.testing.assert_array_equal(source.read(records)[1]['labels'], expected)
  np.testing.assert_array_equal(source.targets(records)['labels'], expected)
  line, = caplog.messages
  assert '[N, 4]' in line and '0 to 2' in line
  one_hot = sources.open_source(save_npz(
      tmp_path / 'b.npz', images=pixels(3), labels=np.eye(3, dtype=dtype)))
  np.testing.assert_array_equal(
      one_hot.read(records)[1]['labels'], [[0], [1], [2]])


def test_images_with_channels_first_are_transposed_and_the_log_says_so(
    tmp_path, caplog):
  images = pixels(5, side=8)
  source = sources.open_source(save_npz(
      tmp_path / 'a.npz', images=images.transpose(0, 3, 1, 2),
      labels=np.arange(5)))
  assert source.channels == 3
  np.testing.assert_array_equal(source.read(np.arange(5))[0], images)
  line, = caplog.messages
  assert '[5, 3, 8, 8]' in line and '[N, C, H, W]' in line


def test_more_channels_than_rows_get_a_line(tmp_path, caplog):
  """They are probably [N, C, H, W]."""
  for shape, lines in (((4, 12, 16, 16), 1), ((4, 16, 16, 12), 0)):
    caplog.clear()
    source = sources.open_source(save_npz(
        tmp_path / 'a.npz', images=np.full(shape, 99, np.uint8),
        labels=np.arange(4)))
    assert source.channels == shape[-1]
    assert [m for m in caplog.messages if '16 channels of 12x16' in m
            ] == caplog.messages and len(caplog.messages) == lines


def test_dark_images_and_unused_arrays_get_a_line(tmp_path, caplog):
  sources.open_source(save_npz(
      tmp_path / 'a.npz', images=pixels(5) // 16, labels=np.arange(5),
      weights=np.ones(5)))
  dark, unused = sorted(caplog.messages, key=lambda line: 'weights' in line)
  assert 'weights' in unused and 'ignored' in unused
  assert '15 of 255' in dark


def test_class_names_of_bytes_are_decoded(tmp_path):
  source = sources.open_source(save_npz(
      tmp_path / 'a.npz', images=pixels(2), labels=np.arange(2),
      class_names=np.array([b'red', 'grün'.encode()])))
  assert source.class_names == ('red', 'grün')


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


def test_two_train_splits_are_an_error(tmp_path):
  np.savez(tmp_path / 'a.npz', images=pixels(6), labels=np.arange(6),
           train_images=pixels(3), train_labels=np.arange(3))
  with pytest.raises(errors.UserError, match='train_images.*only one of them'):
    npz_files.load(str(tmp_path / 'a.npz'))


def test_damaged_bytes_of_a_compressed_file_are_an_error(tmp_path):
  path = tmp_path / 'a.npz'
  np.savez_compressed(path, images=pixels(60), labels=np.arange(60))
  whole = path.read_bytes()
  for at in range(60, len(whole), 97):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1:])
    with contextlib.suppress(errors.UserError):   # some bytes do not matter
      npz_files.load(str(path))
