"""Losses of one example each.  Axes: B batch, K classes, L labels."""
import jax
import jax.numpy as jnp
import optax

from mixer.core import errors


def make(*, name='softmax', label_smoothing=0.0):
  """The training loss; a config's `loss` section.

  Args:
    name: 'softmax', cross-entropy of the softmax; or 'sigmoid', binary cross-
      entropy summed over the classes, which allows several labels and is what
      the official ImageNet recipe uses.
    label_smoothing: share of every target that is spread over all classes.

  Returns:
    loss(logits [B, K], targets [B, K]) -> float32 [B].
  """
  if not 0 <= label_smoothing < 1:
    raise errors.UserError('loss.label_smoothing: expected 0 <= x < 1, got '
                           f'{label_smoothing}')
  if name not in _LOSSES:
    raise errors.unknown('loss.name', name, list(_LOSSES))

  def loss(logits, targets):
    logits = logits.astype(jnp.float32)
    if label_smoothing:
      targets = optax.smooth_labels(targets, label_smoothing)
    return _LOSSES[name](logits, targets)

  return loss


def targets_of(labels, num_classes, weights=None):
  """Labels as float32 targets [B, K]: a class's weight, 1 by default, or 0.

  Args:
    labels: int32 [B, L], padded by -1.
    num_classes: K.
    weights: None, or float32 [B, L].
  """
  hot_BLK = jax.nn.one_hot(labels, num_classes)
  if weights is not None:
    hot_BLK = hot_BLK * weights[..., None]
  return jnp.max(hot_BLK, axis=1)


def _sigmoid(logits, targets):
  return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


_LOSSES = {'softmax': optax.softmax_cross_entropy, 'sigmoid': _sigmoid}
