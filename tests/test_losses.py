"""Losses and targets equal their formulas."""
import jax.numpy as jnp
import numpy as np
import pytest

from mixer.core import errors
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
