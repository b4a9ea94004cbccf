"""A balanced order draws every class equally often, and is exact like others.
"""
import os
import shutil

import batches
import numpy as np
from PIL import Image
import pytest

from configs import digits
from mixer.core import checkpoint_reader
from mixer.core import errors
from mixer.core import trees
from mixer.data import order
from mixer.data import pipeline
from mixer.training import metrics_file
from mixer.training import run

COUNTS = (25, 8, 0, 3)   # examples of each class; the third has none


@pytest.fixture(name='settings', scope='module', params=('arrays', 'folder'))
def fixture_settings(request, tmp_path_factory):
  """Arguments of `open_data` for a training split of COUNTS."""
  path, labels = tmp_path_factory.mktemp('data'), np.repeat(
      np.arange(len(COUNTS)), COUNTS)
  if request.param == 'arrays':
    name = f'arrays:{path}/a.npz'
    images = np.arange(36, dtype=np.uint8)[:, None, None, None] + np.full(
        (36, 4, 4, 3), 99, np.uint8)
    np.savez(path / 'a.npz', images=images, labels=labels,
             class_names=np.array(list('abcd')))
  else:
    name = f'folder:{path}/photos'
    for i, label in enumerate(labels):
      folder = path / 'photos' / 'abcd'[label]
      os.makedirs(folder, exist_ok=True)
      Image.new('RGB', (8, 8), (i, 2 * i, 99)).save(folder / f'{i:02}.png')
  return dict(name=name, split='train', image_size=4, crop='resize')


def draws(data, size=6, steps=36, seed=0):
  """(label, epoch, record) of all rows, in order."""
  found = batches.train(data, size, 0, steps, seed)
  return [np.concatenate([batch[key] for batch in found]).reshape(-1)
          for key in ('labels', 'epoch', 'record')]


def test_every_epoch_has_the_same_number_of_each_class(settings):
  """36 examples of 3 classes that occur, for six epochs."""
  data = batches.reopened(settings, balance='classes')
  label, _, _ = draws(data)
  classes = np.unique(label)
  assert len(classes) == 3
  for epoch in label.reshape(6, 36):
    assert [np.sum(epoch == k) for k in classes] == [12, 12, 12]
    assert len({tuple(epoch[i:i + 6]) for i in range(0, 36, 6)}) > 3   # mixed


def test_a_class_gives_each_example_once_before_any_comes_again(settings):
  data = batches.reopened(settings, balance='classes')
  label, again, record = draws(data)
  for k in np.unique(label):
    rounds = [record[(label == k) & (again == r)] for r in range(
        again[label == k].max() + 1)]
    whole = [sorted(r) for r in rounds[:-2]]
    assert whole and all(
        r == whole[0] and len(set(r)) == len(r) for r in whole)
    if len(whole[0]) > 5:   # and in another order each time
      assert len({tuple(r) for r in rounds[:-2]}) == len(whole)
  # No two draws of a record share their randomness.
  assert len(set(zip(again, record))) == len(record)


def test_a_balanced_batch_is_a_function_of_its_step(settings):
  """Any process computes its rows from any step on."""
  data = batches.reopened(settings, balance='classes')
  whole = batches.train(data, 8, 0, 9, seed=3)
  batches.assert_equal(whole[5:], batches.train(
      batches.reopened(settings, balance='classes'), 8, 5, 9, seed=3))
  halves = [batches.train(data, 8, 0, 9, seed=3, slots=slots)
            for slots in ((0, 4), (4, 8))]
  batches.assert_equal(whole, [
      {key: np.concatenate([one[key], other[key]]) for key in one}
      for one, other in zip(*halves)])
  assert not np.array_equal(
      draws(data, seed=3)[2], draws(data, seed=4)[2])


def test_without_balance_order_and_fingerprint_stay_as_they_were(settings):
  data = batches.reopened(settings)
  plain, balanced = (d.fingerprint(8, 0) for d in (
      data, batches.reopened(settings, balance='classes')))
  assert 'balance' not in plain
  assert balanced == plain | dict(balance='classes')
  _, epoch, record = draws(data)
  wanted = [order.batch(0, step, 6, 36) for step in range(36)]
  assert epoch.tolist() == np.concatenate([e for e, _ in wanted]).tolist()
  assert record.tolist() == np.concatenate([p for _, p in wanted]).tolist()


def test_permutations_of_several_sizes_at_once_are_those_of_one():
  sizes = np.array([1, 2, 5, 17, 300, 65_537, 5, 17])
  i = np.array([0, 1, 3, 16, 299, 65_536, 0, 4])
  keys = order.mixed(7, 5, np.arange(8), np.arange(8) % 3)
  assert order.permute(i, sizes, keys).tolist() == [
      int(order.permute(np.array([a]), n, k)[0])
      for a, n, k in zip(i, sizes, keys)]


def test_balance_of_unknown_or_several_labels_is_refused(tmp_path):
  np.savez(tmp_path / 'a.npz', images=np.full((3, 4, 4, 3), 99, np.uint8),
           labels=np.array([[0, 1], [1, -1], [0, -1]]))
  settings = dict(name=f'arrays:{tmp_path}/a.npz', split='train', image_size=4,
                  crop='resize')
  with pytest.raises(errors.UserError, match='data.balance.* 1 of 3 .*image 0'):
    pipeline.open_data(**settings, balance='classes')
  for key, value in (('data', 'class'), ('evals.test', 'classes')):
    with pytest.raises(errors.UserError, match=f'{key}.balance'):
      pipeline.open_data(**settings, balance=value, key=key)


def run_config(class_weights):
  config = digits.get_config()
  config.model.update(hidden_dim=8, num_blocks=1, dropout_rate=0.1)
  config.data.balance = 'classes'
  config.loss.class_weights = class_weights
  config.checkpoint.every = 2
  config.run.update(batch_size=16, total_steps=4, log_every=1)
  return config


@pytest.mark.parametrize('text, words', [
    ('owl=2', 'owl'), ('balanced', 'data.balance')])
def test_class_weights_that_cannot_be_are_refused_before_a_run(
    text, words, tmp_path):
  """Weights that balance the classes would balance a balanced order again."""
  with pytest.raises(errors.UserError, match='loss.class_weights') as e:
    run.train(run_config(text), str(tmp_path / 'run'))
  assert words in str(e.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.slow   # three runs that compile
def test_a_balanced_run_with_class_weights_resumes_with_the_same_bits(tmp_path):
  path = tmp_path / 'run'
  run.train(run_config('1=3,7=0.5'), str(path))
  last = path / 'checkpoints' / '4'
  whole = trees.flatten(checkpoint_reader.load_params(str(last)))
  shutil.rmtree(last)   # as if the run was killed before it saved
  run.train(run_config('1=3,7=0.5'), str(path))
  for name, value in trees.flatten(checkpoint_reader.load_params(str(last))).items():
    np.testing.assert_array_equal(value, whole[name], err_msg=name)
  with pytest.raises(errors.UserError, match="class_weights was '1=3,7=0.5'"):
    run.train(run_config(None), str(path))
  run.train(run_config(','.join('0' * 10)), str(tmp_path / 'other'))
  assert all(row['train/loss'] == 0 for row in metrics_file.read(
      str(tmp_path / 'other')))
