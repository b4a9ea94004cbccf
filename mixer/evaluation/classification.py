"""Accuracy over a whole split, with every example counted exactly once.

Axes: B examples of a batch, N of the split, L labels of one example padded by
-1, K classes, T the most likely classes that are kept.
"""
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mixer.core import errors
from mixer.core import trees

MOST = 5   # T: as many as top-5 accuracy needs

# A dict of arrays; a split that lives on the device, or None. What they hold is
# described in `mixer.data.pipeline`.
Batch: TypeAlias = Mapping[str, Any]
Resident: TypeAlias = Mapping[str, jax.Array] | None
Predict: TypeAlias = Callable[[trees.Tree, Batch, Resident], jax.Array]
# (logits [B, K], labels [B, L], weights [B, L] or None) -> float32 [B]
LossOf: TypeAlias = Callable[..., jax.Array]
Outcome: TypeAlias = Callable[[trees.Tree, Batch, Resident],
                              dict[str, jax.Array]]


def probabilities(logits: jax.Array, loss: str) -> jax.Array:
  """Returns the probabilities of classes.

  Args:
    logits: [..., K].
    loss: what the network was trained with. 'softmax' gives probabilities that
      sum to 1; with 'sigmoid' each class has a probability of its own.
  """
  return (jax.nn.sigmoid if loss == 'sigmoid' else jax.nn.softmax)(logits)


def make_outcome(predict: Predict,
                 targets_of: Callable[[Batch, Resident], tuple[
                     jax.Array, jax.Array | None]],
                 loss_of: LossOf, loss: str = 'softmax',
                 classes: np.ndarray | None = None,
                 several: bool = False) -> Outcome:
  """Returns a function that compares predictions with labels.

  Args:
    predict: (params, batch, resident) -> logits [B, K].
    targets_of: (batch, resident) -> (labels int32 [B, L], their weights
      float32 [B, L] or None).
    loss_of: the training loss, see `training.losses.of_labels`.
    loss: what the network was trained with, see `probabilities`.
    classes: int [k], the network's number of each class that the labels are
      of; None if the numbers are the same.
    several: whether to keep the probabilities of all classes.

  Returns:
    (params, batch, resident) -> dict. Jit it with a replicated result.
      'labels': int32 [B, L].
      'best': int32 [B, T], the most likely classes, best first.
      'probabilities': float32 [B, T], of the classes in 'best'.
      'loss': float32 [B], the training loss.
      'scores', with `several`: float32 [B, K], the probability of each class.
      'mask', 'bad': bool [B], and 'position': int32 [B], as in the batch.
      'subset', with `classes`: the first five over the logits of these classes
      alone, in the numbering of the labels.
  """
  def compare(logits, labels, weights):
    _, best = jax.lax.top_k(logits, min(MOST, logits.shape[-1]))
    scores = probabilities(logits, loss)
    return dict(
        labels=labels, best=best, probabilities=jnp.take_along_axis(
            scores, best, axis=-1),
        loss=loss_of(logits, labels, weights),
        **(dict(scores=scores) if several else {}))

  def outcome(params, batch, resident):
    logits = predict(params, batch, resident).astype(jnp.float32)
    labels, weights = targets_of(batch, resident)
    kept = {key: batch[key] for key in ('mask', 'bad', 'position')}
    if classes is None:
      return compare(logits, labels, weights) | kept
    own = jnp.where(labels < 0, -1, jnp.asarray(classes, jnp.int32)[labels])
    return compare(logits, own, weights) | kept | dict(
        subset=compare(logits[:, classes], labels, weights))
  return outcome


def collect(key: str, outcome: Outcome, params: trees.Tree,
            batches: Iterable[Batch], resident: Resident,
            expected: int) -> dict[str, np.ndarray]:
  """Computes the outcome of every example of a split.

  Args:
    key: the config section, for error messages.
    outcome: as `make_outcome` returns it, jitted; or any function with 'mask',
      'bad' and 'position' in its result.
    params: the network's parameters.
    batches: global batches on the devices.
    resident: the split, if it lives on the device.
    expected: N.

  Returns:
    What `outcome` returns for the whole split, in the split's order: arrays
    [N, ...]. Examples that cannot be decoded are there too; only 'bad' is true
    for them, not 'mask'.

  Raises:
    RunError: if an example is missing, comes twice, or none can be decoded.
  """
  parts: list[dict[str, jax.Array]] = []
  for batch in batches:
    parts.append(outcome(params, batch, resident))
    # JAX dispatches without waiting. Two batches ahead keep the device busy;
    # any more would only fill its memory.
    jax.block_until_ready(parts[-3:][0])
  whole = jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(parts))
  real = whole['mask'] | whole['bad']   # the other rows only fill a batch
  found = jax.tree.map(lambda x: x[real], whole)
  count = int(found['mask'].sum())
  if len(found['mask']) != expected or not count:
    raise errors.RunError(
        f'{key}: counted {count} of {expected} examples, and '
        f'{int(found["bad"].sum())} that cannot be decoded')
  # With several processes, a global batch is not a run of the split's order.
  order = np.argsort(found['position'])
  return jax.tree.map(lambda x: x[order], found)


def score(name: str, found: Mapping[str, np.ndarray],
          negatives: bool = False) -> dict[str, int | float]:
  """Returns the metrics of an evaluation.

  A prediction is right if it is any of the example's labels; top-5 accuracy
  asks this of the five most likely classes. Examples without a label are left
  out, as ReaL's authors do (https://arxiv.org/abs/2006.07159).

  Args:
    name: the evaluation's name in the config.
    found: what `collect` returns for `make_outcome`.
    negatives: whether examples without a label count in the loss, as those of
      no class do in training with the sigmoid loss. Those that a label file
      such as ReaL's leaves without are in doubt instead.

  Returns:
    'eval/NAME/accuracy', 'eval/NAME/accuracy_top5', 'eval/NAME/loss'; the
    number of 'eval/NAME/examples' counted; 'eval/NAME/bad', those that cannot
    be decoded; and, if there are any, 'eval/NAME/unlabelled'.

  Raises:
    RunError: if no example has a label.
  """
  unlabelled = found['mask'] & ~np.any(found['labels'] >= 0, axis=1)
  counted = found['mask'] & ~unlabelled
  if not counted.any():
    raise errors.RunError(f'evals.{name}: no example has a label')
  hits = hit(found)[counted]
  count = int(counted.sum())
  out = dict(accuracy=hits[:, 0].sum() / count,
             accuracy_top5=hits.any(axis=1).sum() / count,
             loss=found['loss'][found['mask'] if negatives else counted].astype(
                 np.float64).mean(),
             examples=count, bad=int(found['bad'].sum()))
  if unlabelled.any():
    out['unlabelled'] = int(unlabelled.sum())
  return {f'eval/{name}/{kind}': value if isinstance(value, int)
          else float(value) for kind, value in out.items()}


def hit(found: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns whether each of the most likely classes is a label, bool [N, T]."""
  return np.any(found['best'][:, :, None] == found['labels'][:, None, :],
                axis=-1)
