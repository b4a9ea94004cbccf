"""Training losses with a weight for each class, and what a config says of it.

Axes: B batch, K classes.
"""
from collections.abc import Callable
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixer.core import errors
from mixer.data import class_counts
from mixer.data import order
from mixer.data import pipeline

_PAIR = re.compile(r'\s*([^=]+?)\s*=([^=,]*)(?:,|$)')   # names may hold commas


def of(text: str, data: pipeline.Data, num_classes: int) -> np.ndarray:
  """Returns the weight of each class in the loss, float32 [K].

  Args:
    text: 'balanced' gives class k the weight N / (C n_k), where n_k is the
      number of labels of the class in the training split, N their sum and C the
      number of classes that have any; the mean weight of a label is then 1.
      'NAME=WEIGHT,...' names classes, by number if they have no names, and the
      others weigh 1. 'WEIGHT,WEIGHT,...' has the weights of all classes in
      order.
    data: the training split.
    num_classes: K, of the network. Classes beyond those of the data weigh 1.

  Raises:
    UserError: if the text is none of these or names an unknown class, a weight
      is negative, or the labels cannot be counted.
  """
  out = np.ones(num_classes, np.float32)
  source = data.source
  count = source.num_classes
  names = list(source.class_names or map(str, range(count)))
  if text == 'balanced':
    out[:count] = _balanced(data)
    return out
  pairs = _PAIR.findall(text)
  if not pairs or _PAIR.sub('', text).strip():
    parts = text.split(',')
    pairs = list(zip(names, parts)) if len(parts) == count else []
  for name, _ in pairs:
    if name not in names:
      raise errors.unknown('loss.class_weights', name, names)
  try:
    given = [float(weight) for _, weight in pairs]
  except ValueError:
    given = []
  if not given or not all(0 <= weight < np.inf for weight in given):
    raise errors.UserError(
        f"loss.class_weights: {text!r}: expected 'balanced', 'NAME=WEIGHT,...' "
        f'or the weights of all {count} classes of {source.name} in order, '
        "such as '1,2.5', none below 0")
  out[[names.index(name) for name, _ in pairs]] = given
  return out


def _balanced(data: pipeline.Data) -> np.ndarray:
  """Returns N / (C n_k) of each class; 1 for a class without examples."""
  if data.draw is not order.batch:
    raise errors.UserError(
        "loss.class_weights: 'balanced' weights classes by how rare they are, "
        'and data.balance draws all equally often already; unset one of them')
  counts = class_counts.of(data)
  if counts is None:
    raise errors.UserError(
        "loss.class_weights: 'balanced' needs the labels of "
        f'{data.source.name} before the first step, and they can only be read '
        'together with the images; give the weights, or set '
        'data.on_device=True')
  have = counts > 0
  return np.where(have, counts.sum() / (have.sum() * np.maximum(counts, 1)), 1)


def make(name: str, smoothing: float, weights: np.ndarray
         ) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns a training loss, see `losses.make`.

  Args:
    name: 'softmax' or 'sigmoid'.
    smoothing: share of every target that is spread evenly over all classes.
    weights: of the classes, float32 [K].

  Returns:
    loss(logits [B, K], targets [B, K]) -> float32 [B].
  """
  def softmax(logits, targets):
    targets = targets * weights[None]
    evenly = jnp.mean(targets, axis=-1, keepdims=True)
    return optax.softmax_cross_entropy(
        logits.astype(jnp.float32),
        (1 - smoothing) * targets + smoothing * evenly)

  def sigmoid(logits, targets):
    logits = logits.astype(jnp.float32)
    targets = optax.smooth_labels(targets, smoothing)
    return -jnp.sum(weights[None] * targets * jax.nn.log_sigmoid(logits)
                    + (1 - targets) * jax.nn.log_sigmoid(-logits), axis=-1)

  return softmax if name == 'softmax' else sigmoid
