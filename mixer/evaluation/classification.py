"""Accuracy over a whole split, every example counted exactly once."""
import jax
import jax.numpy as jnp
import optax

from mixer.core import checks


def make_count(predict, labels_of, num_classes):
  """count(params, batch, resident) -> sums over the examples not masked.

  Args:
    predict: (params, batch, resident) -> logits [B, K].
    labels_of: (batch, resident) -> int32 [B, L] padded by -1.
    num_classes: K.

  Returns:
    A function to jit; its sums are 'count', 'right', 'right_of_5', 'loss', and
    'bad', the images left out since they cannot be decoded.
    An example is right if any of its labels is the likeliest class (among the
    five likeliest for 'right_of_5'); the loss is the softmax cross-entropy
    against its first label.
  """
  def count(params, batch, resident):
    logits = predict(params, batch, resident).astype(jnp.float32)
    labels = labels_of(batch, resident)
    mask = batch['mask'].astype(jnp.float32)
    _, best = jax.lax.top_k(logits, min(5, num_classes))
    hits = jnp.any(best[:, :, None] == labels[:, None, :], axis=-1)
    loss = optax.softmax_cross_entropy_with_integer_labels(
        logits, jnp.maximum(labels[:, 0], 0))
    total = lambda x: jnp.sum(x * mask)
    number = lambda x: jnp.sum(x.astype(jnp.int32))
    return dict(count=number(batch['mask']), bad=number(batch['bad']),
                right=number(hits[:, 0] & batch['mask']), loss=total(loss),
                right_of_5=number(jnp.any(hits, axis=-1) & batch['mask']))
  return count


def score(name, count_fn, params, batches, resident, expected):
  """The metrics 'eval/NAME/...' of a split of `expected` examples.

  Raises:
    RunError: if not each of them was counted once, or none can be decoded.
  """
  sums = None
  for batch in batches:
    part = count_fn(params, batch, resident)
    sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
  sums = {k: float(v) for k, v in jax.device_get(sums).items()}
  count, bad = int(sums['count']), int(sums['bad'])
  if count + bad != expected or not count:
    raise checks.RunError(f'evals.{name}: counted {count} of {expected} '
                          f'examples, and {bad} that cannot be decoded')
  return {f'eval/{name}/accuracy': sums['right'] / count,
          f'eval/{name}/accuracy_top5': sums['right_of_5'] / count,
          f'eval/{name}/loss': sums['loss'] / count,
          f'eval/{name}/examples': count, f'eval/{name}/bad': bad}
