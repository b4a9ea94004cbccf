"""Few-shot evaluation: which examples are picked, and the ridge regression."""
import logging

import numpy as np
import pytest
from sklearn import datasets
from sklearn import linear_model

from mixer.core import errors
from mixer.data import pipeline
from mixer.evaluation import fewshot
from mixer.evaluation import fewshot_evaluations

K = 3


def blobs(count, dim, seed=0, noise=2.0):
  """Features [count, dim] around one centre for each class, and labels."""
  centres = np.random.default_rng(9).normal(size=(K, dim))
  rng = np.random.default_rng(seed)
  labels = rng.integers(K, size=count)
  x = centres[labels] + noise * rng.normal(size=(count, dim))
  return (x * np.linspace(.1, 5, dim) + 3).astype(np.float32), labels


def score(*splits, **settings):
  settings = dict(shots=(5,), seeds=(0,), num_classes=K) | settings
  return fewshot.accuracies(*splits, **settings)


def pick(labels, shots, seed, num_classes=K):
  return fewshot.pick(labels, shots=shots, seed=seed, num_classes=num_classes)


def test_the_same_examples_are_picked_as_in_big_vision():
  """One generator permutes the classes in turn. The expected numbers are from
  big_vision's code with these labels; class 2 has no example."""
  labels = np.array([0, 1, 3, 0, 1, 1, 0, 3, 3, 0, 1, 0, 3, 1, 0, 3])
  assert pick(labels, 2, 0, 4).tolist() == [9, 6, 13, 4, 2, 8]
  assert pick(labels, 2, 1, 4).tolist() == [11, 0, 5, 13, 7, 2]


def test_as_many_examples_as_shots_are_picked_of_each_class():
  _, labels = blobs(100, 2)
  chosen = pick(labels, 7, 0)
  assert np.bincount(labels[chosen]).tolist() == [7] * K
  assert len(set(chosen.tolist())) == 7 * K


def test_with_one_seed_more_shots_add_examples_to_fewer():
  _, labels = blobs(100, 2)
  before = set()
  for shots in (1, 5, 10, 25):
    chosen = set(pick(labels, shots, 2).tolist())
    assert before < chosen
    before = chosen


def test_a_class_with_too_few_examples_gives_all_that_have_a_label(caplog):
  """The log names such classes."""
  labels = np.array([-1, 0, 0, -1, 1, 2, -1, 2, 2])
  chosen = pick(labels, 3, 0)
  assert sorted(chosen.tolist()) == [1, 2, 4, 5, 7, 8]
  assert fewshot.scarce(labels, shots=3, num_classes=4) == {0: 2, 1: 1, 3: 0}
  features = np.arange(18.).reshape(9, 2)
  with caplog.at_level(logging.INFO, 'mixer'):
    score(features, labels, features, labels, shots=(3,))
    assert '2 of 3 classes have fewer than 3' in caplog.text
    assert '(class 1: 1)' in caplog.text
    caplog.clear()
    score(features, labels, features, labels, shots=(1,))
    assert not caplog.text


@pytest.mark.parametrize('count,dim', [(60, 7), (8, 8), (8, 9), (12, 40)])
@pytest.mark.parametrize('l2', [2**-4, 2**10])
def test_ridge_regression_equals_scikit_learn(count, dim, l2):
  """Both with more examples than features and with fewer."""
  x, labels = blobs(count, dim)
  x = fewshot.design(x, x.mean(0), x.std(0))
  y = 2. * np.eye(K)[labels] - 1
  theirs = linear_model.Ridge(alpha=l2, fit_intercept=False).fit(x, y)
  other, ours = fewshot.ridge(x, y, [1., l2])
  np.testing.assert_allclose(ours.T, theirs.coef_, rtol=1e-8, atol=1e-11)
  assert np.abs(other - ours).max() > 1e-4


@pytest.mark.parametrize('dim', [6, 30])
def test_accuracies_equal_those_of_scikit_learns_ridge(dim):
  """With features standardised by the picked examples, a bias of 100, and
  targets of -1 and 1."""
  train, labels = blobs(200, dim)
  test, truth = blobs(300, dim, seed=1)
  found = score(train, labels, test, truth, shots=(2, 5), seeds=(0, 1))
  assert list(found) == [(2, 0), (2, 1), (5, 0), (5, 1)]
  for (shot, seed), accuracy in found.items():
    chosen = pick(labels, shot, seed)
    few = train[chosen].astype(np.float64)
    mean, deviation = few.mean(0), few.std(0) + 1e-5
    few, wide = ((np.pad((x - mean) / deviation, ((0, 0), (0, 1)),
                         constant_values=100.)) for x in (few, test))
    model = linear_model.Ridge(alpha=2**10, fit_intercept=False)
    model.fit(few, 2. * np.eye(K)[labels[chosen]] - 1)
    theirs = np.argmax(model.predict(wide), 1)
    assert accuracy == np.mean(theirs == truth)
  assert len(set(found.values())) > 1


def test_an_example_that_is_solved_by_hand():
  """The one feature is standardised to -1 and 1, so its weight is 2 / (2 + l2).
  The bias is 0 because the two targets cancel. The border is the mean, 5."""
  x = fewshot.design(np.array([[4.], [6.]]), 5., 1.)
  assert x.tolist() == [[-1, 100], [1, 100]]
  (w,) = fewshot.ridge(x, np.array([[1., -1], [-1, 1]]), [2.])
  np.testing.assert_allclose(w, [[-.5, .5], [0, 0]], atol=1e-12)
  found = score([[4.], [6.]], [0, 1], [[4.9], [5.1], [-9.], [5.2]],
                [0, 1, 0, 0], shots=(1,), num_classes=2)
  assert found == {(1, 0): .75}


def test_scale_and_order_of_features_do_not_change_accuracies():
  train, labels = blobs(80, 12)
  test, truth = blobs(200, 12, seed=1)
  plain = score(train, labels, test, truth)
  assert plain == score(8 * train - 32, labels, 8 * test - 32, truth)
  assert plain == score(train[:, ::-1], labels, test[:, ::-1], truth)
  assert 1 / K < plain[5, 0] < 1


def test_a_constant_feature_does_not_change_accuracies():
  """A unit may be dead in the few examples; nothing is divided by zero."""
  train, labels = blobs(80, 12)
  test, truth = blobs(200, 12, seed=1)
  dead = lambda x: np.hstack([x, np.full((len(x), 1), 7., np.float32)])
  assert score(train, labels, test, truth) == score(
      dead(train), labels, dead(test), truth)


def test_the_order_of_test_examples_does_not_change_accuracies():
  """They are scored in parts, which does not change them either."""
  train, labels = blobs(80, 4)
  test, truth = blobs(fewshot._ROWS + 100, 4, seed=1)
  plain = score(train, labels, test, truth)
  assert plain == score(train, labels, test[::-1], truth[::-1])
  parts = [score(train, labels, test[i::2], truth[i::2])[5, 0] for i in (0, 1)]
  assert plain[5, 0] == pytest.approx(np.mean(parts), abs=1e-12)


def test_examples_without_a_label_are_left_out():
  """Even if their features are not finite."""
  train, labels = blobs(80, 4)
  test, truth = blobs(50, 4, seed=1)
  plain = score(train, labels, test, truth)
  bad = np.full((30, 4), np.nan, np.float32)
  assert plain == score(
      np.vstack([bad, train]), np.append([-1] * 30, labels),
      np.vstack([test, bad]), np.append(truth, [-1] * 30))


def test_accuracies_of_several_l2_equal_those_of_each_alone():
  train, labels = blobs(80, 20)
  test, truth = blobs(400, 20, seed=1)
  grid = (2**-10, 2**10, 2**19)
  found = score(train, labels, test, truth, l2=grid)
  alone = [score(train, labels, test, truth, l2=x)[5, 0] for x in grid]
  assert found == {(5, 0): alone}
  assert len(set(alone)) > 1


def test_accuracies_are_averaged_over_seeds():
  assert fewshot.means({(1, 0): .25, (5, 0): 1., (1, 1): .75}) == {
      1: .5, 5: 1.}
  assert fewshot.means({(1, 0): [0., 1.], (1, 1): [.5, 1.]}) == {1: [.25, 1.]}


def test_more_shots_classify_digits_better():
  """The features are the pixels of real digits."""
  x, labels = datasets.load_digits(return_X_y=True)
  found = fewshot.means(fewshot.accuracies(
      x[:1000], labels[:1000], x[1000:], labels[1000:], num_classes=10))
  assert found[1] < found[5] < found[25]
  assert .3 < found[1] < .6 and .8 < found[25] < .95


@pytest.mark.parametrize('change,error,words', [
    (dict(shots=(0, 5)), errors.UserError, r'shots: .*above 0, got \[0, 5\]'),
    (dict(l2=0), errors.UserError, r'l2: .*above 0, got \[0.0\]'),
    (dict(num_classes=2), errors.UserError, 'label 2 is out of range for 2'),
    (dict(labels=-np.ones(80, int)), errors.UserError, 'no example has a lab'),
    (dict(labels=np.zeros(79, int)), ValueError, r'\(80, 4\) and \(79,\)'),
    (dict(poison=True), errors.RunError, 'of 1 of 80 examples are not finite'),
])
def test_arguments_that_cannot_be_scored_are_an_error(change, error, words):
  train, labels = blobs(80, 4)
  labels = change.pop('labels', labels)
  if change.pop('poison', False):
    train[3, 2] = np.inf
  with pytest.raises(error, match=words):
    score(train, labels, train, np.zeros(80, int), **change)


def test_images_of_several_labels_get_a_line(tmp_path, caplog):
  np.savez(tmp_path / 'a.npz', images=np.full((4, 4, 4, 3), 99, np.uint8),
           labels=np.array([[0, 2], [1, -1], [2, 1], [0, 1]]))
  train, test = (pipeline.open_data(
      name=f'arrays:{tmp_path}/a.npz', split=split, image_size=4,
      crop='resize') for split in ('train[:50%]', 'train[50%:]'))
  fewshot_evaluations.log_shared('few', train, test)
  line, = caplog.messages
  assert line.startswith('fewshot.few: ') and 'only the first' in line
