"""Data sets that live on the device whole and are indexed in the step."""
import jax.numpy as jnp


def fetch(batch, resident):
  """A batch's images, labels, and their weights or None, taken from the device
  if they live there."""
  if resident is not None:
    batch = {k: jnp.take(x, batch['position'], axis=0)
             for k, x in resident.items()}
  return batch['image'], batch['labels'], batch.get('weights')
