"""Losses and targets equal their formulas."""
import jax.numpy as jnp
import numpy as np
import pytest

from mixer.core import errors
from mixer.data import pipeline
from mixer.training import class_weights
from mixer.training import losses

LOGITS = np.array([[0.3, -1.2, 2.0]], np.float32)


def test_sigmoid_loss_is_the_sum_over_classes():
  targets = np.array([[1.0, 0.0, 1.0]], np.float32)
  p = 1 / (1 + np.exp(-LOGITS))
  by_hand = -(np.log(p[0, 0]) + np.log(1 - p[0, 1]) + np.log(p[0, 2]))
  np.testing.assert_allclose(losses.make(name='sigmoid')(LOGITS, targets),
                             [by_hand], rtol=1e-5)


def test_softmax_loss_with_label_smoothing_equals_its_formula():
  loss = losses.make(name='softmax', label_smoothing=0.3)
  targets = np.array([[0.0, 1.0, 0.0]], np.float32)
  log_p = np.log(np.exp(LOGITS) / np.exp(LOGITS).sum())
  np.testing.assert_allclose(
      loss(LOGITS, targets), [-(log_p * [0.1, 0.8, 0.1]).sum()], rtol=1e-5)


def test_class_weights_multiply_the_softmax_loss_of_their_labels():
  """Each label of a mixture counts by its own weight, and with label smoothing
  the whole loss of the label does."""
  logits = np.array([[0.3, -1.2, 2.0], [1.0, 0.0, -0.5]], np.float32)
  weights = np.array([2.0, 0.5, 3.0], np.float32)
  targets = np.array([[0.0, 1.0, 0.0], [0.75, 0.0, 0.25]], np.float32)
  log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  plain = losses.make(weights=weights)(logits, targets)
  np.testing.assert_allclose(plain, [
      -0.5 * log_p[0, 1], -2 * 0.75 * log_p[1, 0] - 3 * 0.25 * log_p[1, 2]],
                             rtol=1e-5)
  smoothed = losses.make(weights=weights, label_smoothing=0.3)
  of_label = lambda row, label: -(0.7 * log_p[row, label]
                                  + 0.1 * log_p[row].sum())
  np.testing.assert_allclose(smoothed(logits, targets), [
      0.5 * of_label(0, 1), 2 * 0.75 * of_label(1, 0) + 3 * 0.25 * of_label(
          1, 2)], rtol=1e-5)
  ones = losses.make(weights=np.ones(3, np.float32), label_smoothing=0.3)
  np.testing.assert_allclose(ones(logits, targets), losses.make(
      label_smoothing=0.3)(logits, targets), rtol=1e-6)


def test_class_weights_multiply_the_sigmoid_loss_of_present_classes():
  weights = np.array([2.0, 5.0, 3.0], np.float32)
  targets = np.array([[1.0, 0.0, 1.0]], np.float32)
  p = 1 / (1 + np.exp(-LOGITS))
  by_hand = -(2 * np.log(p[0, 0]) + np.log(1 - p[0, 1]) + 3 * np.log(p[0, 2]))
  np.testing.assert_allclose(
      losses.make(name='sigmoid', weights=weights)(LOGITS, targets), [by_hand],
      rtol=1e-5)
  for smoothing in (0.0, 0.2):
    settings = dict(name='sigmoid', label_smoothing=smoothing)
    np.testing.assert_allclose(
        losses.make(weights=np.ones(3, np.float32), **settings)(
            LOGITS, targets), losses.make(**settings)(LOGITS, targets),
        rtol=1e-5)


@pytest.fixture(name='pets', scope='module')
def fixture_pets(tmp_path_factory):
  """A training split of 8 images: 6 ants, 2 cats that are big, no dog."""
  path = tmp_path_factory.mktemp('pets') / 'a.npz'
  np.savez(path, images=np.full((8, 4, 4, 3), 99, np.uint8),
           labels=np.array([0] * 6 + [1] * 2),
           class_names=np.array(['ant', 'cat, big', 'dog']))
  return pipeline.open_data(name=f'arrays:{path}', split='train', image_size=4,
                            crop='resize')


@pytest.mark.parametrize('text, weights', [
    # 8 examples of 2 classes that occur: 8 / (2 * 6), 8 / (2 * 2).
    ('balanced', [2 / 3, 2, 1, 1]),
    ('cat, big=2.5', [1, 2.5, 1, 1]),
    ('dog=0, cat, big=4,ant=1e-1', [0.1, 4, 0, 1]),
    ('3,1,0.5', [3, 1, 0.5, 1]),
])
def test_a_config_gives_class_weights(text, weights, pets):
  """A network may have more classes than the data; these weigh 1."""
  found = class_weights.of(text, pets, 4)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, weights, rtol=1e-6)


@pytest.mark.parametrize('text, word', [
    ('balance', "'balanced'"), ('owl=2', "'owl' is unknown"), ('1,2', 'all 3 classes'),
    ('ant=-1', 'none below 0'), ('ant=nan', 'none below 0'),
    ('ant=x', 'ant=x'), ('ant=2,dog', 'NAME=WEIGHT'), ('', 'NAME=WEIGHT')])
def test_wrong_class_weights_are_refused(text, word, pets):
  with pytest.raises(errors.UserError, match='loss.class_weights') as e:
    class_weights.of(text, pets, 3)
  assert word in str(e.value)


def test_all_labels_of_an_example_become_targets():
  labels = np.array([[2, 0, -1], [1, -1, -1]])
  np.testing.assert_array_equal(losses.targets_of(labels, 4),
                                [[1, 0, 1, 0], [0, 1, 0, 0]])


def test_targets_are_the_weights_of_the_labels():
  labels = jnp.array([[2, 0], [1, -1]])
  weights = jnp.array([[.5, 1.], [.25, 0.]])
  np.testing.assert_array_equal(
      losses.targets_of(labels, 3, weights), [[1, 0, .5], [0, .25, 0]])
  np.testing.assert_array_equal(
      losses.targets_of(labels, 3), [[1, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize('settings, words', [
    (dict(name='hinge'), ['loss.name', 'hinge', 'sigmoid']),
    (dict(label_smoothing=1.0), ['loss.label_smoothing', '1.0']),
])
def test_an_error_names_the_setting_and_its_value(settings, words):
  with pytest.raises(errors.UserError) as e:
    losses.make(**settings)
  for word in words:
    assert word in str(e.value)


def test_the_softmax_loss_needs_a_label_for_each_image(caplog):
  """The sigmoid loss learns from an image without labels that it shows no
  class; several labels with the softmax loss get a line."""
  none = np.array([[0, -1], [-1, -1], [2, -1]])
  with pytest.raises(errors.UserError) as e:
    losses.check_labels('softmax', none, 'manifest:m.csv')
  for word in ('loss.name', '1 of 3', 'm.csv', 'image 1', 'sigmoid'):
    assert word in str(e.value)
  losses.check_labels('sigmoid', none, 'manifest:m.csv')
  losses.check_labels('softmax', np.array([[0], [1]]), 'digits')
  losses.check_labels('softmax', np.array([[0, -1], [1, -1]]), 'a')
  assert caplog.messages == []
  losses.check_labels('softmax', np.array([[0, 1], [1, -1]]), 'a')
  losses.check_labels('softmax', np.zeros((0, 32), int), 'b')
  first, second = caplog.messages
  assert '1 of 2' in first and 'sigmoid' in first and 'some' in second
