"""Metrics of images with several labels equal scikit-learn's."""
import json

import numpy as np
import pytest
from sklearn import metrics
import small_networks

from configs import digits
from mixer.analysis import scoring
from mixer.core import errors
from mixer.data import pipeline
from mixer.evaluation import several_labels
from mixer.evaluation import suite
from mixer.training import run


def made(seed=0, examples=60, classes=5):
  """(what `collect` returns, the answers [N, K]); some scores are equal, some
  images have no label, one cannot be decoded, and class 3 never occurs."""
  rng = np.random.default_rng(seed)
  present = rng.random((examples, classes)) < 0.3
  present[:, 3] = False
  present[:4] = False
  labels = np.full((examples, classes), -1)
  for row, of in zip(labels, present):
    row[:of.sum()] = rng.permutation(np.flatnonzero(of))
  mask = np.arange(examples) != 7
  scores = np.round(rng.random((examples, classes)), 1).astype(np.float32)
  return dict(scores=scores, labels=labels, mask=mask), present


def test_metrics_of_each_class_equal_scikit_learns():
  found, present = made()
  scores, present = found['scores'][found['mask']], present[found['mask']]
  rows = several_labels.by_class(found)
  assert [row['class'] for row in rows] == [0, 1, 2, 4]
  for row in rows:
    one, score = present[:, row['class']], scores[:, row['class']]
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        one, score >= 0.5, average='binary', zero_division=0)
    assert row['examples'] == one.sum()
    np.testing.assert_allclose(
        [row[key] for key in (
            'average_precision', 'precision', 'recall', 'f1')],
        [metrics.average_precision_score(one, score), precision, recall, f1])


def test_means_equal_scikit_learns():
  found, present = made(1)
  keep = [0, 1, 2, 4]   # classes that occur
  scores, present = found['scores'][found['mask']], present[found['mask']]
  out = several_labels.means(found)
  assert tuple(out) == several_labels.METRICS
  for average, end, columns in (('macro', '', keep), ('micro', '_micro',
                                                      range(5))):
    truth, score = present[:, columns], scores[:, columns]
    precision, recall, f1, _ = metrics.precision_recall_fscore_support(
        truth, score >= 0.5, average=average, zero_division=0)
    wanted = dict(precision=precision, recall=recall, f1=f1,
                  mAP=metrics.average_precision_score(
                      truth, score, average=average))
    np.testing.assert_allclose([out[key + end] for key in wanted],
                               list(wanted.values()))


def test_a_ratio_without_any_case_is_zero():
  found = dict(scores=np.array([[0.1], [0.2]]), labels=np.array([[0], [-1]]),
               mask=np.ones(2, bool))
  row, = several_labels.by_class(found)
  assert row == {'class': 0, 'examples': 1, 'average_precision': 0.5,
                 'precision': 0, 'recall': 0, 'f1': 0}


def opened(tmp_path, labels):
  np.savez(tmp_path / 'a.npz', images=np.full((3, 4, 4, 3), 99, np.uint8),
           labels=np.array(labels))
  return {'test': pipeline.open_data(
      name=f'arrays:{tmp_path}/a.npz', split='train', image_size=4,
      crop='resize')}


@pytest.mark.parametrize('labels, loss, has', [
    ([[0, 1], [1, -1], [0, -1]], 'sigmoid', True),
    ([[0, 1], [1, -1], [0, -1]], 'softmax', False),
    ([0, 1, 1], 'sigmoid', False),
])
def test_metrics_follow_the_labels_and_the_loss(labels, loss, has, tmp_path):
  """They are of use where the loss treats each class as a question."""
  names = suite.metrics(opened(tmp_path, labels), {}, loss)
  assert ('eval/test/mAP' in names) == ('eval/test/f1_micro' in names) == has
  assert 'eval/test/accuracy' in names


def test_the_command_scores_a_network_over_all_devices(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (21, 8, 8, 3), np.uint8)
  truth = (rng.random((21, 5)) < 0.4).astype(int)
  truth[3] = 0
  np.savez(tmp_path / 'a.npz', images=images, labels=truth,
           class_names=np.array(small_networks.CLASSES))
  network = small_networks.make(size=(8, 8), loss='sigmoid')
  result, _ = scoring.evaluate(network, scoring.requested(
      dict(data={}, evals={}), network, data=f'arrays:{tmp_path}/a.npz'),
                               batch_size=8)
  e, = result['evals'].values()
  scores = small_networks.probabilities(network, images)
  assert e['mAP'] == pytest.approx(metrics.average_precision_score(
      truth, scores))
  assert e['f1_micro'] == pytest.approx(metrics.f1_score(
      truth, scores >= 0.5, average='micro'))
  # As in training, an image without a label counts in the loss.
  by_hand = -np.log(np.where(truth, scores, 1 - scores)).sum(axis=1)
  assert e['loss'] == pytest.approx(by_hand.mean(), rel=1e-5)
  assert e['unlabelled'] == 21 - e['examples'] == np.sum(~truth.any(axis=1))
  assert [r['name'] for r in json.loads(json.dumps(
      e['several_labels']))] == list(small_networks.CLASSES)


def test_the_best_checkpoint_may_be_named_by_them(tmp_path):
  np.savez(tmp_path / 'a.npz', images=np.full((40, 8, 8), 99, np.uint8),
           labels=np.tile(np.tri(4, 3, -1, dtype=int), (10, 1)))
  config = digits.get_config()
  config.data.name = f'arrays:{tmp_path}/a.npz'
  config.loss.name = 'sigmoid'
  config.checkpoint.best = 'eval/test/mAPs'
  config.run.batch_size = 8
  with pytest.raises(errors.UserError, match="did you mean 'eval/test/mAP'"):
    run.train(config, str(tmp_path / 'run'))
