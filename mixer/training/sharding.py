"""Where arrays lie: a named mesh, and rules from parameter names to its axes.

The mesh has three axes: the batch is cut along 'data' and 'fsdp'; 'fsdp' also
cuts the state; 'model' cuts the hidden units of both MLPs. An axis of one
device costs nothing, so every strategy is the same code.
"""
import dataclasses
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from mixer.core import errors

AXES = ('data', 'fsdp', 'model')
STRATEGIES = ('replicate', 'fsdp')
_SMALL = 2**12  # elements; to cut less than this costs more than it saves

@dataclasses.dataclass(frozen=True)
class Plan:
  """The mesh of a run, and how state and batches lie on it."""
  mesh: Any
  strategy: str

  @property
  def platform(self):
    """'cpu', 'gpu' or 'tpu': of the devices, which may be elsewhere."""
    return self.mesh.devices.flat[0].platform

  @property
  def replicated(self):
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch(self):
    """Along the first axis, over all devices but those of 'model'."""
    return NamedSharding(self.mesh, PartitionSpec(('data', 'fsdp')))

  @property
  def parts(self):
    """Into how many a batch is cut."""
    return self.mesh.shape['data'] * self.mesh.shape['fsdp']

  def state(self, shapes, rules):
    """Returns a tree of shardings for a tree of shapes.

    Args:
      shapes: leaves are named by the dicts that they lie in.
      rules: (pattern for the end of a name, mesh axes for each array axis); the
        first that matches holds, for a parameter as for what the optimizer
        keeps of it. An axis that its devices do not divide stays whole.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: self._leaf(path, x, rules), shapes)

  def _leaf(self, path, x, rules):
    if np.prod(x.shape) < _SMALL:
      return self.replicated
    name = '/'.join(str(p.key) for p in path
                    if isinstance(p, jax.tree_util.DictKey))
    axes = next(axes for pattern, axes in rules
                if re.fullmatch(f'(.*/)?{pattern}', name))
    return NamedSharding(self.mesh, PartitionSpec(
        *(self._fitting(side, axis) for side, axis in zip(x.shape, axes))))

  def _fitting(self, side, axes):
    """Of the mesh axes those that divide a side, in turn."""
    kept = []
    for axis in (axes,) if isinstance(axes, str) else axes or ():
      size = self.mesh.shape[axis]
      if size > 1 and side % size == 0:
        kept.append(axis)
        side //= size
    return tuple(kept) or None

  def slots(self, batch_size):
    """The rows of the global batch that this process makes."""
    share = batch_size // jax.process_count()
    return jax.process_index() * share, (jax.process_index() + 1) * share

  def place(self, tree, shardings=None):
    """Puts a tree of host arrays on the devices, replicated by default; see
    the function `place`."""
    return place(tree, self.replicated if shardings is None else shardings)

  def put_batch(self, batch):
    """This process's rows as global arrays."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(self.batch, x), batch)


def held(shapes, shardings):
  """Bytes that one device holds of a tree of shapes and dtypes."""
  return sum(
      math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in zip(
          jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True))


def place(tree, sharding):
  """Puts host arrays, which every process has whole, where they belong; of
  several processes each only its own parts, where `jax.device_put` would gather
  those of all to compare them.

  Args:
    tree: of NumPy arrays; what is on devices already stays.
    sharding: one for all, or a tree of them.
  """
  if isinstance(sharding, NamedSharding):
    return jax.tree.map(lambda x: _place(x, sharding), tree)
  return jax.tree.map(_place, tree, sharding)


def _place(x, sharding):
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return x
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])


def plan(*, strategy='replicate', fsdp=None, model=1, devices=None):
  """The layout; a config's `sharding` section.

  Args:
    strategy: 'replicate', every device holds the whole state; 'fsdp', each
      holds a part of every large parameter and of its optimizer state.
    fsdp: into how many parts 'fsdp' cuts; by default one for each device. With
      fewer, such as the devices of one host, groups of so many hold copies.
    model: devices over which the hidden units of each MLP are cut, which all
      see the same images; for networks that fit no device otherwise.
    devices: all by default.

  Raises:
    UserError: if the devices cannot be arranged so.
  """
  if strategy not in STRATEGIES:
    raise errors.unknown('sharding.strategy', strategy, STRATEGIES)
  devices = jax.devices() if devices is None else devices
  # The rows of a process are next to each other in the batch.
  devices = sorted(devices, key=lambda d: (d.process_index, d.id))
  here = sum(d.process_index == devices[0].process_index for d in devices)
  if model < 1 or here % model:
    raise errors.UserError(f'sharding.model: {model} does not divide the '
                           f'{here} devices of a process')
  rest = len(devices) // model
  if fsdp is not None and strategy != 'fsdp':
    raise errors.UserError(f'sharding.fsdp: {fsdp} is for '
                           f"sharding.strategy='fsdp', not {strategy!r}")
  if fsdp is None:
    fsdp = rest if strategy == 'fsdp' else 1
  if fsdp < 1 or rest % fsdp:
    raise errors.UserError(f'sharding.fsdp: {fsdp} does not divide '
                           f'{rest} devices')
  shape = (rest // fsdp, fsdp, model)
  return Plan(Mesh(np.array(devices).reshape(shape), AXES), strategy)
