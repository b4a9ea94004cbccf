"""Accuracy over images in folders with the names of classes."""
import dataclasses

import numpy as np
import pytest

from mixer.core import errors
from mixer.data import sources
from mixer.evaluation import class_folders
from mixer.evaluation import class_names

NAMES = ('n01440764 tench', 'cat', 'dog', 'fox', 'owl', 'rat')


def test_images_in_folders_of_classes_are_labelled(tmp_path, caplog):
  """By the first folder below one that is given; synsets by their number."""
  root, file = str(tmp_path), 'cat/6.jpg'
  below = ('cat/1.jpg', 'cat/dog/2.jpg', 'n01440764/3.jpg', 'bird/dog/4.jpg',
           'dog')
  paths = [f'{root}/{name}' for name in below] + [file]
  found = class_folders.labels(paths, [file, root], NAMES)
  assert found == [(root, 1), (root, 1), (root, 0), None, None, None]
  assert '3 images' in caplog.text and '3 others' in caplog.text
  caplog.clear()
  assert class_folders.labels(paths, [root + '/'], ()) == [None] * 6
  assert class_folders.labels(paths[:1], [f'{root}/cat'], NAMES) == [None]
  assert class_folders.labels(paths[:1], [root + '/'], NAMES) == [
      (root + '/', 1)]
  assert not caplog.text


@pytest.mark.parametrize('root, source, expected', [
    ('photos', 'folder:{}/photos', True),
    ('photos/Training', 'folder:{}/photos', True),
    ('photos/cat', 'folder:{}/photos/', True),
    ('photos/val', 'folder:{}/photos', False),
    ('photos/test', 'folder:{}/photos', False),
    ('photos2', 'folder:{}/photos', False), ('.', 'folder:{}/photos', False),
    ('link', 'folder:{}/photos', True), ('photos', 'photos', False),
    ('photos', None, False)])
def test_a_folder_of_training_images_is_known(root, source, expected, tmp_path):
  """Also through a link; folders of other splits are none."""
  (tmp_path / 'link').symlink_to(tmp_path / 'photos')
  assert class_folders.trained_on(
      f'{tmp_path}/{root}', source and source.format(tmp_path)) == expected


def test_beside_folders_of_splits_training_reads_no_other(tmp_path):
  for folder in ('train/cat', 'val/cat', 'new/cat'):
    (tmp_path / folder).mkdir(parents=True)
  known = [class_folders.trained_on(f'{tmp_path}{x}', f'folder:{tmp_path}')
           for x in ('', '/train', '/val', '/new')]
  assert known == [True, True, False, False]


def test_a_name_of_several_classes_tells_none(tmp_path):
  """ImageNet has two classes called 'crane'."""
  names = ['cat', 'crane', 'dog', 'crane']
  assert class_names.by_name(names) == {'cat': 0, 'dog': 2}

  def opened(*called):
    np.savez(tmp_path / 'a.npz', images=np.full((4, 4, 4, 3), 99, np.uint8),
             labels=np.arange(4) % len(called), class_names=np.array(called))
    return sources.open_source(f'arrays:{tmp_path}/a.npz')

  with pytest.raises(errors.UserError, match="'crane'.*several of that name"):
    class_names.numbers(opened('dog', 'crane'), 4, names)
  assert class_names.numbers(opened('dog', 'cat'), 4, names).tolist() == [2, 0]
  source = dataclasses.replace(opened('dog', 'cat'), num_classes=4,
                               class_names=tuple(names))
  assert class_names.numbers(source, 4, names) is None


def test_accuracies_are_over_the_readable_images_of_each_folder():
  likely = np.array([.05, .1, .4, .2, .1, .15])   # from best: 2 3 5 1 4 0
  labels = [('a', 2), ('a', 0), ('b', 4), ('a', 3), None, ('b', 2)]
  found = [likely, likely, likely, likely, likely, OSError()]
  places = [class_folders.place(*both) for both in zip(labels, found)]
  assert places == [0, 5, 4, 1, None, None]
  a, b = class_folders.scores(labels, places, 6)
  assert a == dict(path='a', examples=3, accuracy=pytest.approx(1 / 3),
                   accuracy_top5=pytest.approx(2 / 3))
  assert b == dict(path='b', examples=1, accuracy=0.0, accuracy_top5=1.0)
  assert 'accuracy_top5' not in class_folders.scores(labels, places, 5)[0]
