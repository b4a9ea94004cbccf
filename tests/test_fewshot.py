"""Few-shot evaluation: who is picked, and the ridge regression behind it."""
import logging

import numpy as np
import pytest
from sklearn import datasets
from sklearn import linear_model

from mixer.core import errors
from mixer.evaluation import fewshot

K = 3


def blobs(count, dim, seed=0, noise=2.0):
  """Features [count, dim] around a centre a class, and their labels."""
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


def test_pick_is_the_seeds_permutation_of_each_class_in_turn():
  """One generator, classes in order: big_vision's examples. The figures are
  from its own lines on these labels; class 2 has no example."""
  labels = np.array([0, 1, 3, 0, 1, 1, 0, 3, 3, 0, 1, 0, 3, 1, 0, 3])
  assert pick(labels, 2, 0, 4).tolist() == [9, 6, 13, 4, 2, 8]
  assert pick(labels, 2, 1, 4).tolist() == [11, 0, 5, 13, 7, 2]


def test_pick_takes_so_many_of_each_class():
  _, labels = blobs(100, 2)
  chosen = pick(labels, 7, 0)
  assert np.bincount(labels[chosen]).tolist() == [7] * K
  assert len(set(chosen.tolist())) == 7 * K


def test_picks_of_a_seed_are_nested():
  _, labels = blobs(100, 2)
  before = set()
  for shots in (1, 5, 10, 25):
    chosen = set(pick(labels, shots, 2).tolist())
    assert before < chosen
    before = chosen


def test_pick_never_takes_what_has_no_label(caplog):
  """A class with too few gives all it has, and the log says so."""
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
def test_ridge_is_scikit_learns(count, dim, l2):
  """In both forms: more examples than features, and fewer."""
  x, labels = blobs(count, dim)
  x = fewshot.design(x, x.mean(0), x.std(0))
  y = 2. * np.eye(K)[labels] - 1
  theirs = linear_model.Ridge(alpha=l2, fit_intercept=False).fit(x, y)
  other, ours = fewshot.ridge(x, y, [1., l2])
  np.testing.assert_allclose(ours.T, theirs.coef_, rtol=1e-8, atol=1e-11)
  assert np.abs(other - ours).max() > 1e-4


@pytest.mark.parametrize('dim', [6, 30])
def test_accuracies_are_those_of_scikit_learn_step_by_step(dim):
  """Standardised by the picked examples, a bias of 100, targets of -1 and 1."""
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


def test_an_example_by_hand():
  """One feature, standardised to -1 and 1: w = 2 / (2 + l2) for it, and no
  bias, as the two targets cancel. The border is the mean, 5."""
  x = fewshot.design(np.array([[4.], [6.]]), 5., 1.)
  assert x.tolist() == [[-1, 100], [1, 100]]
  (w,) = fewshot.ridge(x, np.array([[1., -1], [-1, 1]]), [2.])
  np.testing.assert_allclose(w, [[-.5, .5], [0, 0]], atol=1e-12)
  found = score([[4.], [6.]], [0, 1], [[4.9], [5.1], [-9.], [5.2]],
                [0, 1, 0, 0], shots=(1,), num_classes=2)
  assert found == {(1, 0): .75}


def test_scale_and_order_of_features_do_not_matter():
  train, labels = blobs(80, 12)
  test, truth = blobs(200, 12, seed=1)
  plain = score(train, labels, test, truth)
  assert plain == score(8 * train - 32, labels, 8 * test - 32, truth)
  assert plain == score(train[:, ::-1], labels, test[:, ::-1], truth)
  assert 1 / K < plain[5, 0] < 1


def test_a_constant_feature_does_not_matter():
  """A dead unit in the few examples: no division by zero."""
  train, labels = blobs(80, 12)
  test, truth = blobs(200, 12, seed=1)
  dead = lambda x: np.hstack([x, np.full((len(x), 1), 7., np.float32)])
  assert score(train, labels, test, truth) == score(
      dead(train), labels, dead(test), truth)


def test_the_order_of_test_examples_does_not_matter():
  """Nor that they are scored in parts."""
  train, labels = blobs(80, 4)
  test, truth = blobs(fewshot._ROWS + 100, 4, seed=1)
  plain = score(train, labels, test, truth)
  assert plain == score(train, labels, test[::-1], truth[::-1])
  parts = [score(train, labels, test[i::2], truth[i::2])[5, 0] for i in (0, 1)]
  assert plain[5, 0] == pytest.approx(np.mean(parts), abs=1e-12)


def test_examples_without_a_label_do_not_count():
  """Whatever their features are."""
  train, labels = blobs(80, 4)
  test, truth = blobs(50, 4, seed=1)
  plain = score(train, labels, test, truth)
  bad = np.full((30, 4), np.nan, np.float32)
  assert plain == score(
      np.vstack([bad, train]), np.append([-1] * 30, labels),
      np.vstack([test, bad]), np.append(truth, [-1] * 30))


def test_several_l2_share_a_factorisation_and_nothing_else():
  train, labels = blobs(80, 20)
  test, truth = blobs(400, 20, seed=1)
  grid = (2**-10, 2**10, 2**19)
  found = score(train, labels, test, truth, l2=grid)
  alone = [score(train, labels, test, truth, l2=x)[5, 0] for x in grid]
  assert found == {(5, 0): alone}
  assert len(set(alone)) > 1


def test_means_are_over_seeds():
  assert fewshot.means({(1, 0): .25, (5, 0): 1., (1, 1): .75}) == {
      1: .5, 5: 1.}
  assert fewshot.means({(1, 0): [0., 1.], (1, 1): [.5, 1.]}) == {1: [.25, 1.]}


def test_digits():
  """Pixels of real digits are features that more shots separate better."""
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
def test_what_cannot_be_scored(change, error, words):
  train, labels = blobs(80, 4)
  labels = change.pop('labels', labels)
  if change.pop('poison', False):
    train[3, 2] = np.inf
  with pytest.raises(error, match=words):
    score(train, labels, train, np.zeros(80, int), **change)
