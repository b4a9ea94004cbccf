"""analysis/data_sizes: sizes of data sets, also of those that are not here."""
import numpy as np
import pytest

from mixer.analysis import data_sizes
from mixer.core import errors
from mixer.data import vtab


def test_a_known_data_set_need_not_be_here():
  size = data_sizes.size('jft', 'train[1%:]', data_dir='/nowhere')
  assert (size.examples, size.num_classes) == (297_000_000, 18_291)
  assert size.missing


def test_a_data_set_that_is_here_is_counted(tmp_path):
  np.savez(tmp_path / 'a.npz', train_images=np.zeros((5, 4, 4, 1), np.uint8),
           train_labels=np.arange(5))
  size = data_sizes.size(f'arrays:{tmp_path}/a.npz', 'train')
  assert size == data_sizes.Size(
      examples=5, num_classes=5, channels=1, decoded=True, missing=None)


def test_the_size_of_an_unknown_data_set_is_unknown():
  size = data_sizes.size('my_own_set', 'train', data_dir='/nowhere')
  assert size.examples is None and size.missing and not size.decoded
  arrays = data_sizes.size('arrays:/nowhere/a.npz', 'train')
  assert arrays.examples is None and arrays.decoded


@pytest.mark.parametrize('split,examples', [
    ('train800+val200', 1000), ('train800val200', 1000), ('train800', 800),
    ('val200', 200), ('train800[:10%]', 80), ('test', None),
    ('val200+test[:50]', None)])
@pytest.mark.parametrize('task', vtab.TASKS)
def test_a_vtab_task_trains_on_1000_examples(task, split, examples):
  size = data_sizes.size(f'vtab:{task}', split, data_dir='/nowhere')
  assert (size.examples, size.num_classes) == (
      examples, vtab.TASKS[task].num_classes)


@pytest.mark.parametrize('name,split,words', [
    ('vtab:dtd', 'train', "data.split: 'train' is unknown.*train800"),
    ('foldr:photos', 'train', "data.name: 'foldr:photos'.*'folder:PATH'"),
])
def test_a_mistake_is_not_missing_data(name, split, words):
  with pytest.raises(errors.UserError, match=words):
    data_sizes.size(name, split, data_dir='/nowhere')


def test_a_misspelt_split_is_refused():
  with pytest.raises(errors.UserError, match='trian'):
    data_sizes.size('cifar10', 'trian', data_dir='/nowhere')
