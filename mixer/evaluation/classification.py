"""Accuracy over a whole split, every example counted exactly once.

Axes: B examples of a batch, N of the split, L labels of one example padded by
-1, K classes, T the likeliest classes that are kept.
"""
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mixer.core import errors

MOST = 5   # T: as many as top-5 accuracy needs


def probabilities(logits, loss):
  """Of classes [..., K]: the softmax of logits, or of a network trained with
  the sigmoid loss, whose classes do not exclude each other, their sigmoid."""
  return (jax.nn.sigmoid if loss == 'sigmoid' else jax.nn.softmax)(logits)


def make_outcome(predict, labels_of, num_classes, loss='softmax'):
  """outcome(params, batch, resident) -> what became of each example.

  Args:
    predict: (params, batch, resident) -> logits [B, K].
    labels_of: (batch, resident) -> int32 [B, L].
    num_classes: K.
    loss: of the training, for probabilities.

  Returns:
    A function to jit, with a replicated result: 'labels' int32 [B, L]; 'best',
    int32 [B, T], the likeliest classes in their order, and 'probabilities',
    float32 [B, T], of them; 'loss' float32 [B], the softmax cross-entropy
    against the first label; 'mask' and 'bad', bool [B], and 'position', int32
    [B], as in the batch.
  """
  def outcome(params, batch, resident):
    logits = predict(params, batch, resident).astype(jnp.float32)
    labels = labels_of(batch, resident)
    _, best = jax.lax.top_k(logits, min(MOST, num_classes))
    return dict(
        labels=labels, best=best, mask=batch['mask'], bad=batch['bad'],
        position=batch['position'],
        probabilities=jnp.take_along_axis(
            probabilities(logits, loss), best, axis=-1),
        loss=optax.softmax_cross_entropy_with_integer_labels(
            logits, jnp.maximum(labels[:, 0], 0)))
  return outcome


def collect(key, outcome_fn, params, batches, resident, expected):
  """The outcomes of a split of `expected` examples: NumPy arrays [N, ...], in
  its order, those that cannot be decoded included.

  Raises:
    RunError: if not each of them was met once, or none can be decoded.
  """
  parts = []
  for batch in batches:
    parts.append(outcome_fn(params, batch, resident))
    jax.block_until_ready(parts[-3:][0])   # or batches pile up on the device
  whole = jax.tree.map(lambda *x: np.concatenate(x), *jax.device_get(parts))
  met = whole['mask'] | whole['bad']
  found = {name: x[met] for name, x in whole.items()}
  count = int(found['mask'].sum())
  if len(found['mask']) != expected or not count:
    raise errors.RunError(
        f'{key}: counted {count} of {expected} examples, and '
        f'{int(found["bad"].sum())} that cannot be decoded')
  order = np.argsort(found['position'])   # processes may take turns
  return {name: x[order] for name, x in found.items()}


def score(name, found):
  """The metrics 'eval/NAME/...' of what `collect` found.

  An example is right if any of its labels is the likeliest class, or among the
  five likeliest. One without a label is left out, as ReaL wants it, and counted
  as 'unlabelled' where there is any.
  """
  unlabelled = found['mask'] & ~np.any(found['labels'] >= 0, axis=1)
  counted = found['mask'] & ~unlabelled
  if not counted.any():
    raise errors.RunError(f'evals.{name}: no example has a label')
  hits = hit(found)[counted]
  count = int(counted.sum())
  out = dict(accuracy=hits[:, 0].sum() / count,
             accuracy_top5=hits.any(axis=1).sum() / count,
             loss=found['loss'][counted].astype(np.float64).sum() / count,
             examples=count, bad=int(found['bad'].sum()))
  if unlabelled.any():
    out['unlabelled'] = int(unlabelled.sum())
  return {f'eval/{name}/{kind}': value if isinstance(value, int)
          else float(value) for kind, value in out.items()}


def hit(found):
  """Is each of the likeliest classes one of the labels? bool [N, T]."""
  return np.any(found['best'][:, :, None] == found['labels'][:, None, :],
                axis=-1)
