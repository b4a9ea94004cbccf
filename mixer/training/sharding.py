"""Where arrays lie: a named mesh, and rules from parameter names to axes."""
import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from mixer.core import checks

STRATEGIES = ('replicate', 'fsdp')
_SMALL = 2**12  # elements; sharding less than this costs more than it saves


@dataclasses.dataclass(frozen=True)
class Plan:
  """The mesh of a run, and how state and batches lie on it."""
  mesh: Any
  strategy: str

  @property
  def replicated(self):
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch(self):
    """Along the first axis, over all devices."""
    return NamedSharding(self.mesh, PartitionSpec('data'))

  def state(self, shapes):
    """A tree of shardings for a tree of shapes."""
    return jax.tree.map(self._leaf, shapes)

  def _leaf(self, x):
    if self.strategy == 'replicate' or np.prod(x.shape) < _SMALL:
      return self.replicated
    n = self.mesh.size
    fits = [i for i, side in enumerate(x.shape) if side % n == 0]
    if not fits:
      return self.replicated
    axis = max(fits, key=lambda i: x.shape[i])
    return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, 'data'))

  def slots(self, batch_size):
    """The rows of the global batch that this process makes."""
    share = batch_size // jax.process_count()
    return jax.process_index() * share, (jax.process_index() + 1) * share

  def put_batch(self, batch):
    """This process's rows as global arrays."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(self.batch, x), batch)


def plan(*, strategy='replicate', devices=None):
  """The layout; a config's `sharding` section.

  Args:
    strategy: 'replicate', every device holds the whole state; 'fsdp', each
      holds 1/N of every large parameter and of its optimizer state, along the
      longest axis that N divides.
    devices: all by default.
  """
  if strategy not in STRATEGIES:
    raise checks.unknown('sharding.strategy', strategy, STRATEGIES)
  devices = jax.devices() if devices is None else devices
  return Plan(Mesh(np.array(devices), ('data',)), strategy)
