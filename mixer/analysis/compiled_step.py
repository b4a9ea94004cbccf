"""Training steps compiled ahead of time, for devices that need not be here.

XLA compiles for a TPU without one, by libtpu and a topology's name, and tells
what the program will hold, read and, by its own estimate, take. For CPUs it
tells what they would hold, which for other devices is an estimate.
"""
import dataclasses
import importlib.util
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from mixer.core import errors
from mixer.training import sharding
from mixer.training import step as steps

# 'v3:2x2': chips; v2 and v3 have two cores a chip, each a device.
_TOPOLOGY = re.compile(r'(v2|v3|v4|v5e|v5p|v6e):\d+(x\d+){1,2}')


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled training step.

  Attributes:
    compiled: as jax.jit(...).lower(...).compile() gives it.
    state: tree of jax.ShapeDtypeStruct with shardings.
    seconds: that compiling took.
  """
  compiled: Any
  state: Any
  seconds: float

  def bytes(self):
    """Of one device: 'parameters', 'optimizer'; 'batch', with what of the data
    lives there; 'temporaries', activations and all that lives for a step only;
    and 'total'."""
    memory = self.compiled.memory_analysis()
    held = lambda tree: sharding.held(
        tree, jax.tree.map(lambda x: x.sharding, tree))
    parameters, optimizer = held(self.state.params), held(self.state.opt_state)
    out = dict(
        parameters=parameters, optimizer=optimizer,
        batch=max(0, memory.argument_size_in_bytes - parameters - optimizer),
        temporaries=memory.temp_size_in_bytes)
    # The new state takes the old one's place.
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return dict(out, total=sum(out.values()) + max(0, fresh))

  def cost(self):
    """XLA's own figures for one device: 'flops', 'bytes_accessed', and of a TPU
    'seconds', its estimate of a step; None where it gives none."""
    found = self.compiled.cost_analysis() or {}
    seconds = found.get('optimal_seconds', 0)   # negative where it has no model
    return dict(flops=found.get('flops'), seconds=seconds if seconds > 0 else
                None, bytes_accessed=found.get('bytes accessed'))


def tpu_devices(topology):
  """The devices of a TPU slice, such as 'v3:2x2' or 'v4:2x2x1' (chips).

  Raises:
    UserError: if libtpu is not installed, or knows no such slice.
  """
  if not _TOPOLOGY.fullmatch(topology):
    raise errors.UserError(
        f'--topology: expected GENERATION:CHIPSxCHIPS, such as v3:2x2, '
        f'v4:2x2x1 or v5e:4x4, got {topology!r}')
  library = os.environ.get('TPU_LIBRARY_PATH')
  if not library:
    found = importlib.util.find_spec('libtpu')
    if found is None:
      raise errors.UserError(
          '--topology: needs libtpu, which compiles for a TPU that is not '
          'here: pip install libtpu==0.0.42.1 (launch/requirements-tpu.txt)')
    os.environ['TPU_LIBRARY_PATH'] = os.path.join(
        found.submodule_search_locations[0], 'libtpu.so')
  # What it would else ask of a machine with a TPU.
  for key, value in dict(
      TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v3-8', TPU_WORKER_ID='0',
      TPU_WORKER_HOSTNAMES='localhost',
      ALLOW_MULTIPLE_LIBTPU_LOAD='1').items():
    os.environ.setdefault(key, value)
  from jax.experimental import topologies
  try:
    return topologies.get_topology_desc(
        platform='tpu', topology_name=topology).devices
  except (RuntimeError, ValueError) as e:
    raise errors.UserError(
        f'--topology: {topology!r}: {str(e).splitlines()[0][:200]}') from e


def train_step(step_fn, model, optimizer, plan, *, batch_size, image_size,
               seed=0, labels=1, resident=None):
  """Compiles a training step; nothing of its size is allocated.

  Args:
    step_fn: as `step.make_train_step` makes it.
    model, optimizer: as it was given.
    plan: `sharding.Plan`, of devices that may be elsewhere.
    batch_size: images of a step, over all devices.
    image_size: (height, width).
    seed: of the run.
    labels: of an image.
    resident: None, or examples of a data set that lives on the device.

  Returns:
    A `Program`.

  Raises:
    RunError: if it does not fit the devices, with what XLA says.
  """
  shape = (*image_size, model.in_channels)
  placed = steps.shard(step_fn, model, optimizer, plan, seed=seed,
                       image_shape=shape)
  some = lambda count, sharding: lambda dtype, *axes: jax.ShapeDtypeStruct(
      (count, *axes), dtype, sharding=sharding)
  row = some(batch_size, plan.batch)
  batch = dict(epoch=row(jnp.int32), record=row(jnp.int32), bad=row(jnp.bool_))
  whole = None
  if resident is None:
    batch.update(image=row(jnp.uint8, *shape), labels=row(jnp.int32, labels))
  else:
    stay = some(resident, plan.replicated)
    batch.update(position=row(jnp.int32))
    whole = dict(image=stay(jnp.uint8, *shape), labels=stay(jnp.int32, labels))
  began = time.monotonic()
  lowered = placed.step.lower(placed.state, batch, whole)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    raise errors.RunError(
        'it does not fit the device: ' + ' '.join(str(e).split())[:300]) from e
  return Program(compiled, placed.state, time.monotonic() - began)
