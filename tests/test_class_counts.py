"""Classes without examples are named, and a mismatch is refused."""
import numpy as np
import pytest

from mixer.core import errors
from mixer.data import class_counts
from mixer.data import pipeline


@pytest.fixture(name='opened')
def fixture_opened(tmp_path):
  """Opens a split of an npz file of 40 images of 4 classes, class by class."""
  np.savez(tmp_path / 'a.npz',
           class_names=np.array(['ant', 'bee', 'cat', 'dog']),
           train_images=np.full((40, 4, 4, 3), 99, np.uint8),
           train_labels=np.repeat(np.arange(4), 10),
           test_images=np.full((3, 4, 4, 3), 99, np.uint8),
           test_labels=np.array([3, 3, 1]))
  return lambda split, key='data': pipeline.open_data(
      name=f'arrays:{tmp_path}/a.npz', split=split, image_size=4, key=key,
      crop='resize')


def test_a_class_without_examples_is_named_in_one_line(opened, caplog):
  caplog.set_level('WARNING')
  data = opened('train[:4]')
  counts = class_counts.of(data)
  assert counts.sum() == 4 and len(counts) == 4
  class_counts.check(data, {'test': opened('test', 'evals.test')})
  lines = [line for line in caplog.messages if 'have no example' in line]
  assert lines[-1] == ("evals.test: 2 of the 4 classes have no example in "
                       "'test': ant, cat")


def test_ids_with_gaps_in_a_manifest_get_one_line(tmp_path, caplog):
  """Not another one for each split that lacks the same classes."""
  caplog.set_level('WARNING')
  (tmp_path / 'm.csv').write_text('path,label,split\n' + ''.join(
      f'{split}{label},{label},{split}\n' for split in ('train', 'test')
      for label in (1, 4, 7)))
  train, test = (pipeline.open_data(
      name=f'manifest:{tmp_path}/m.csv', split=split, image_size=4, key=key,
      crop='resize') for split, key in (('train', 'data'),
                                        ('test', 'evals.test')))
  class_counts.check(train, {'test': test})
  line, = caplog.messages
  assert line == (
      "data: 5 of the 8 classes have no example in 'train': 0, 2, 3, 5, 6; if "
      'labels are ids, list them in classes.txt beside the manifest')


def test_a_split_without_any_label_is_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', train_images=np.zeros((4, 4, 4, 3), np.uint8),
           train_labels=np.array([[0, -1], [1, 0], [-1, -1], [1, -1]]),
           test_images=np.zeros((2, 4, 4, 3), np.uint8),
           test_labels=np.full((2, 2), -1))
  train, test = (pipeline.open_data(
      name=f'arrays:{tmp_path}/a.npz', split=split, image_size=4, key=key,
      crop='resize') for split, key in (('train', 'data'),
                                        ('test', 'evals.test')))
  with pytest.raises(errors.UserError, match="evals.test.*'test' has a label"):
    class_counts.check(train, {'test': test})


def test_nothing_is_said_if_every_class_has_an_example(opened, caplog):
  caplog.set_level('WARNING')
  class_counts.check(opened('train[:50%]'),
                     {'minival': opened('train[50%:]', 'evals.minival')})
  assert not caplog.messages


def test_an_evaluation_without_a_class_of_training_is_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', train_images=np.zeros((4, 4, 4, 3), np.uint8),
           train_labels=np.array([0, 1, 0, 1]),
           test_images=np.zeros((2, 4, 4, 3), np.uint8),
           test_labels=np.array([2, 2]))
  train, test = (pipeline.open_data(
      name=f'arrays:{tmp_path}/a.npz', split=split, image_size=4, key=key,
      crop='resize') for split, key in (('train', 'data'),
                                        ('test', 'evals.test')))
  with pytest.raises(errors.UserError, match='none of the classes'):
    class_counts.check(train, {'test': test})


def test_a_single_class_cannot_be_trained(tmp_path):
  """But it can be evaluated, and learned beside images without labels."""
  def opened(labels):
    np.savez(tmp_path / f'{len(labels)}.npz', labels=np.array(labels),
             images=np.full((len(labels), 4, 4, 3), 99, np.uint8),
             class_names=np.array(['cat']))
    return pipeline.open_data(
        name=f'arrays:{tmp_path}/{len(labels)}.npz', split='train',
        image_size=4, crop='resize')
  one = opened([0, 0])
  with pytest.raises(errors.UserError, match="of one class, 'cat'"):
    class_counts.check(one, {})
  class_counts.check(opened([[0, -1], [-1, -1], [0, -1]]), {'x': one})


def test_an_overview_has_the_first_classes_and_their_counts(tmp_path):
  np.savez(tmp_path / 'a.npz', labels=np.repeat(np.arange(7), 2),
           images=np.full((14, 4, 4, 3), 99, np.uint8))
  data = pipeline.open_data(name=f'arrays:{tmp_path}/a.npz', split='train',
                            image_size=4, crop='resize')
  assert class_counts.overview(data) == (
      '0 (2), 1 (2), 2 (2), 3 (2), 4 (2), ... 2 more')
