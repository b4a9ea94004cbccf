"""Where arrays lie: a named mesh of devices, and how state is split over it.

The mesh has three axes. The batch is split along 'data' and 'fsdp'; 'fsdp' also
splits the training state; 'model' splits the hidden units of both MLPs. An axis
with one device costs nothing, so every strategy runs the same code.
"""
from collections.abc import Sequence
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
_SMALL = 2**12   # elements; splitting a smaller array costs more than it saves

# Mesh axes of one array axis: none, one, or several in turn.
Axes = str | tuple[str, ...] | None
# (pattern for the end of a parameter's name, mesh axes of each array axis)
Rules = Sequence[tuple[str, tuple[Axes, ...]]]


@dataclasses.dataclass(frozen=True)
class Plan:
  """The mesh of a run, and how state and batches lie on it.

  Attributes:
    mesh: devices with the axes `AXES`; they may belong to another machine if a
      step is only compiled for them.
    strategy: one of `STRATEGIES`.
  """
  mesh: Mesh
  strategy: str

  @property
  def platform(self) -> str:
    """'cpu', 'gpu' or 'tpu': the platform of the plan's devices, which is not
    always the backend that runs here."""
    return self.mesh.devices.flat[0].platform

  @property
  def replicated(self) -> NamedSharding:
    """The sharding of an array of which every device holds all."""
    return NamedSharding(self.mesh, PartitionSpec())

  @property
  def batch(self) -> NamedSharding:
    """The sharding of a batch: its first axis is split over 'data' and 'fsdp'.
    """
    return NamedSharding(self.mesh, PartitionSpec(('data', 'fsdp')))

  @property
  def parts(self) -> int:
    """The number of parts into which a batch is split."""
    return self.mesh.shape['data'] * self.mesh.shape['fsdp']

  def state(self, shapes: Any, rules: Rules) -> Any:
    """Returns a tree of shardings for a tree of shapes.

    Args:
      shapes: tree of jax.ShapeDtypeStruct; a leaf's name is the keys of the
        dicts around it, joined by '/'.
      rules: (pattern for the end of a name, mesh axes of each array axis). The
        first rule that matches is used, for a parameter and for everything that
        the optimizer keeps for it. An array axis whose length is not divisible
        by the number of devices is not split.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, x: self._leaf(path, x, rules), shapes)

  def _leaf(self, path: tuple, x: Any, rules: Rules) -> NamedSharding:
    if np.prod(x.shape) < _SMALL:
      return self.replicated
    name = '/'.join(str(part.key) for part in path
                    if isinstance(part, jax.tree_util.DictKey))
    axes = next(axes for pattern, axes in rules
                if re.fullmatch(f'(.*/)?{pattern}', name))
    return NamedSharding(self.mesh, PartitionSpec(
        *(self._fitting(length, axis) for length, axis in zip(x.shape, axes))))

  def _fitting(self, length: int, axes: Axes) -> tuple[str, ...] | None:
    """Returns the mesh axes that, one after the other, divide a length."""
    kept = []
    for axis in (axes,) if isinstance(axes, str) else axes or ():
      size = self.mesh.shape[axis]
      if size > 1 and length % size == 0:
        kept.append(axis)
        length //= size
    return tuple(kept) or None

  def slots(self, batch_size: int) -> tuple[int, int]:
    """Returns (first, last + 1) of the rows that this process loads."""
    share = batch_size // jax.process_count()
    return jax.process_index() * share, (jax.process_index() + 1) * share

  def place(self, tree: Any, shardings: Any = None) -> Any:
    """Puts a tree of host arrays on the devices, as the function `place` does.

    Args:
      tree: arrays that every process has in full.
      shardings: one sharding or a tree of them; None replicates.
    """
    return place(tree, self.replicated if shardings is None else shardings)

  def put_batch(self, batch: Any) -> Any:
    """Joins the rows that each process has loaded into global arrays."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(self.batch, x), batch)


def held(shapes: Any, shardings: Any) -> int:
  """Returns the bytes that one device holds of a tree of arrays.

  Args:
    shapes: tree of anything with a shape and a dtype.
    shardings: a tree of shardings with the same structure.
  """
  return sum(
      math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize
      for x, sharding in zip(jax.tree.leaves(shapes),
                             jax.tree.leaves(shardings), strict=True))


def place(tree: Any, sharding: Any) -> Any:
  """Puts host arrays, which every process has in full, on the devices.

  With several processes, each one copies only the parts of its own devices.
  `jax.device_put` would first gather the arrays of all processes to compare
  them.

  Args:
    tree: NumPy arrays; what is already spread over the devices stays there.
    sharding: one for all arrays, or a tree of them.
  """
  if isinstance(sharding, NamedSharding):
    return jax.tree.map(lambda x: _place(x, sharding), tree)
  return jax.tree.map(_place, tree, sharding)


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return x
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])


def plan(*, strategy: str = 'replicate', fsdp: int | None = None,
         model: int = 1, devices: Sequence[jax.Device] | None = None) -> Plan:
  """Returns the plan of a run; a config's `sharding` section.

  Args:
    strategy: 'replicate' if every device holds the whole state; 'fsdp' if each
      holds a part of every parameter with an axis that can be divided, and of
      its optimizer state.
    fsdp: number of parts that 'fsdp' splits the state into; by default one for
      each device. With fewer parts, such as the number of devices of one host,
      each group of that many devices holds a copy.
    model: number of devices over which the hidden units of each MLP are split.
      These devices see the same images. For networks that do not fit on a
      device otherwise.
    devices: by default all devices.

  Raises:
    UserError: if the devices cannot be arranged like this.
  """
  if strategy not in STRATEGIES:
    raise errors.unknown('sharding.strategy', strategy, STRATEGIES)
  devices = jax.devices() if devices is None else devices
  # Devices of one process are neighbours, so that its rows are neighbours in
  # the batch and do not depend on the number of processes.
  devices = sorted(devices, key=lambda d: (d.process_index, d.id))
  here = sum(d.process_index == devices[0].process_index for d in devices)
  if model < 1 or here % model:
    raise errors.UserError(f'sharding.model: expected a divisor of {here}, the '
                           f'devices of a process, got {model}')
  rest = len(devices) // model
  if fsdp is not None and strategy != 'fsdp':
    raise errors.UserError(
        f"sharding.fsdp: {fsdp} is only used with sharding.strategy='fsdp', "
        f'and the strategy is {strategy!r}')
  if fsdp is None:
    fsdp = rest if strategy == 'fsdp' else 1
  if fsdp < 1 or rest % fsdp:
    raise errors.UserError(f'sharding.fsdp: {fsdp} does not divide '
                           f'{rest} devices')
  shape = (rest // fsdp, fsdp, model)
  return Plan(Mesh(np.array(devices).reshape(shape), AXES), strategy)
