"""Tables of a classifier's mistakes, on cases that can be counted by hand."""
import json

import numpy as np
import pytest

from mixer.core import errors
from mixer.evaluation import confusion

NAMES = ('cat', 'dog', 'cow', 'emu')
# True class -> predictions: 2 of 4 cats are right, 1 of 4 dogs, 2 of 2 cows.
CASES = {0: (0, 1, 0, 2), 1: (0, 0, 1, 3), 2: (2, 2)}
LABELS = np.array([[k, -1] for k, v in CASES.items() for _ in v], np.int32)
PREDICTIONS = np.array([p for v in CASES.values() for p in v])


def test_the_worst_classes_equal_those_counted_by_hand():
  rows = confusion.worst_classes(LABELS, PREDICTIONS, names=NAMES)
  assert rows == [
      {'class': 1, 'name': 'dog', 'examples': 4, 'accuracy': .25,
       'taken_for': 0, 'taken_for_name': 'cat', 'share': .5},
      {'class': 0, 'name': 'cat', 'examples': 4, 'accuracy': .5,
       'taken_for': 1, 'taken_for_name': 'dog', 'share': .25},
      {'class': 2, 'name': 'cow', 'examples': 2, 'accuracy': 1.,
       'taken_for': None, 'taken_for_name': None, 'share': 0.}]
  assert json.loads(json.dumps(rows)) == rows


def test_the_confused_pairs_equal_those_counted_by_hand():
  """Both directions of a pair are one row, the more frequent direction first.
  """
  rows = confusion.confused_pairs(LABELS, PREDICTIONS, names=NAMES)
  assert rows == [
      {'classes': [1, 0], 'names': ['dog', 'cat'], 'mistakes': [2, 1],
       'share': 3 / 8},
      {'classes': [0, 2], 'names': ['cat', 'cow'], 'mistakes': [1, 0],
       'share': 1 / 6},
      {'classes': [1, 3], 'names': ['dog', 'emu'], 'mistakes': [1, 0],
       'share': 1 / 4}]
  assert json.loads(json.dumps(rows)) == rows


def test_tables_have_as_many_rows_and_classes_as_asked():
  worst = confusion.worst_classes(LABELS, PREDICTIONS, most=1)
  assert [(r['class'], r['name']) for r in worst] == [(1, '1')]
  worst = confusion.worst_classes(LABELS, 3 - LABELS[:, 0], at_least=3)
  assert [r['class'] for r in worst] == [0, 1]
  pairs = confusion.confused_pairs(LABELS, PREDICTIONS, most=2)
  assert [r['classes'] for r in pairs] == [[1, 0], [0, 2]]


def test_equal_accuracies_are_ordered_by_examples_then_by_class():
  labels = np.array([[5], [3], [4], [4], [3], [2]])
  rows = confusion.worst_classes(labels, np.zeros(6, int))
  assert [r['class'] for r in rows] == [3, 4, 2, 5]


def test_any_label_of_an_example_is_right():
  """As with ReaL. A mistake counts for the class of the first label."""
  labels = np.array([[0, 2, 3], [0, -1, -1], [0, 2, -1]])
  (row,) = confusion.worst_classes(labels, np.array([3, 0, 1]))
  assert row['class'] == 0 and row['accuracy'] == 2 / 3
  (pair,) = confusion.confused_pairs(labels, np.array([3, 0, 1]))
  assert pair['classes'] == [0, 1] and pair['mistakes'] == [1, 0]


def test_rows_without_a_label_or_a_prediction_are_not_counted():
  labels = np.concatenate([[[-1, -1], [1, -1], [-1, -1]], LABELS])
  predictions = np.concatenate([[0, -1, -1], PREDICTIONS])
  for table in (confusion.worst_classes, confusion.confused_pairs):
    assert table(labels, predictions) == table(LABELS, PREDICTIONS)
    assert table(labels[:3], predictions[:3]) == []
    assert table(labels[:0], predictions[:0]) == []


def test_tables_of_many_classes_equal_those_of_a_confusion_matrix():
  rng = np.random.default_rng(0)
  truth = rng.integers(50, size=3000)
  predictions = np.where(rng.random(3000) < .3, rng.integers(50, size=3000),
                         truth)
  matrix = np.zeros((50, 50), int)
  np.add.at(matrix, (truth, predictions), 1)
  mistakes = matrix - np.diag(np.diag(matrix))
  rows = confusion.worst_classes(truth[:, None], predictions, most=50)
  assert sorted(r['class'] for r in rows) == list(range(50))
  assert all(a['accuracy'] <= b['accuracy'] for a, b in zip(rows, rows[1:]))
  for r in rows:
    line = matrix[r['class']]
    assert r['examples'] == line.sum()
    assert r['accuracy'] == line[r['class']] / line.sum()
    assert r['taken_for'] == np.argmax(mistakes[r['class']])
    assert r['share'] == mistakes[r['class']].max() / line.sum()
  pairs = confusion.confused_pairs(truth[:, None], predictions, most=9999)
  assert sum(sum(r['mistakes']) for r in pairs) == mistakes.sum()
  both = np.triu(mistakes + mistakes.T)
  assert len(pairs) == np.count_nonzero(both)
  assert [sum(r['mistakes']) for r in pairs] == sorted(both[both > 0])[::-1]


def test_a_class_without_a_name_is_an_error():
  with pytest.raises(errors.UserError, match='class 3 has none, there are 3'):
    confusion.confused_pairs(LABELS, PREDICTIONS, names=NAMES[:3])


def test_labels_and_predictions_of_different_lengths_are_an_error():
  with pytest.raises(ValueError, match=r'\(10, 2\) and \(9,\)'):
    confusion.worst_classes(LABELS, PREDICTIONS[1:])


def test_the_matrix_counts_each_true_class_as_each_prediction():
  """Classes with fewer mistakes are left out, and share the last column."""
  classes, counts = confusion.matrix(LABELS, PREDICTIONS, num_classes=4)
  assert classes.tolist() == [0, 1, 2, 3]
  assert counts.tolist() == [[2, 1, 1, 0, 0], [2, 1, 0, 1, 0], [0, 0, 2, 0, 0],
                             [0, 0, 0, 0, 0]]
  classes, counts = confusion.matrix(LABELS, PREDICTIONS, num_classes=4, most=2)
  assert classes.tolist() == [0, 1]
  assert counts.tolist() == [[2, 1, 1], [2, 1, 1]]
