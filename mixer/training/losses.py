"""Training losses, one number for each example.

Axes: B batch, K classes, L labels.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixer.core import errors
from mixer.core.log import log

# (logits [B, K], targets [B, K]) -> float32 [B]
Loss = Callable[[jax.Array, jax.Array], jax.Array]
Weights = np.ndarray | None   # of the classes, float32 [K]


def make(*, name: str = 'softmax', label_smoothing: float = 0.0,
         class_weights: str | None = None,
         weights: Weights = None) -> Loss:
  """Returns the training loss; a config's `loss` section.

  Args:
    name: 'softmax' for the cross-entropy of the softmax; or 'sigmoid' for the
      binary cross-entropy summed over the classes, which allows several labels
      per example and is what the official ImageNet recipe uses.
    label_smoothing: share of every target that is spread evenly over all
      classes, in [0, 1).
    class_weights: None, or a text that says how much each class counts, see
      `class_weights.of`, which makes `weights` of it for the classes of a data
      set. The softmax loss counts a label as often as the weight of its class
      says, whether it is an example's only one or one of a mixture. The sigmoid
      loss multiplies the part of each class that is present, as PyTorch's
      `pos_weight` does. The mean over a batch is not divided by the sum of the
      weights, so that it does not depend on which examples come together.
    weights: of the classes; None for 1.

  Returns:
    loss(logits [B, K], targets [B, K]) -> float32 [B].

  Raises:
    UserError: if a value is unknown or out of range.
  """
  if not 0 <= label_smoothing < 1:
    raise errors.UserError('loss.label_smoothing: expected 0 <= x < 1, got '
                           f'{label_smoothing}')
  if name not in _LOSSES:
    raise errors.unknown('loss.name', name, list(_LOSSES))
  del class_weights   # it says what `weights` holds
  if weights is not None:
    from mixer.training import class_weights as weighted
    return weighted.make(name, label_smoothing, weights)

  def loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    logits = logits.astype(jnp.float32)
    if label_smoothing:
      targets = optax.smooth_labels(targets, label_smoothing)
    return _LOSSES[name](logits, targets)

  return loss


def check_labels(name: str, labels: np.ndarray, source: str) -> None:
  """Checks that a loss can learn from the labels of the training split.

  Several labels with the softmax loss get a line in the log.

  Args:
    name: of the loss.
    labels: int32 [N, L], padded by -1; [0, L] if they are not known yet.
    source: name of the data set, for messages.

  Raises:
    UserError: if an example has no label, and the loss is the softmax's.
  """
  if name != 'softmax':
    return
  count = np.sum(labels >= 0, axis=1)
  none = np.flatnonzero(count == 0)
  if none.size:
    raise errors.UserError(
        f'loss.name: {none.size} of {len(labels)} training images of {source} '
        f'have no label, such as image {none[0]} of the split; the softmax '
        'loss needs one for each: set --config.loss.name=sigmoid to learn from '
        'them as examples of no class, or remove them')
  several = int(np.sum(count > 1))
  if several or not len(labels) and labels.shape[1] > 1:
    log.warning(
        'loss.name: %s training images of %s have several labels, and the '
        'softmax loss is for one; consider --config.loss.name=sigmoid',
        f'{several} of {len(labels)}' if several else 'some', source)


def of_labels(name: str) -> Callable[..., jax.Array]:
  """Returns the loss that evaluations report.

  It is the training loss without label smoothing and class weights, so that
  runs that differ in these can be compared, and a network's card is enough to
  compute it.

  Args:
    name: as for `make`.

  Returns:
    (logits [B, K], labels int32 [B, L], weights float32 [B, L] or None)
    -> float32 [B].
  """
  loss = make(name=name)
  return lambda logits, labels, weights=None: loss(
      logits, targets_of(labels, logits.shape[-1], weights))


def targets_of(labels: jax.Array, num_classes: int,
               weights: jax.Array | None = None) -> jax.Array:
  """Returns labels as float32 targets [B, K].

  The target of a class is its weight if it is a label of the example, else 0.

  Args:
    labels: int32 [B, L], padded with -1.
    num_classes: K.
    weights: float32 [B, L], the weight of each label; None for 1.
  """
  hot_BLK = jax.nn.one_hot(labels, num_classes)   # all zeros for -1
  if weights is not None:
    hot_BLK = hot_BLK * weights[..., None]
  return jnp.max(hot_BLK, axis=1)


def _sigmoid(logits: jax.Array, targets: jax.Array) -> jax.Array:
  return jnp.sum(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


_LOSSES: dict[str, Loss] = {
    'softmax': optax.softmax_cross_entropy, 'sigmoid': _sigmoid}
