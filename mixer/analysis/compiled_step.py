"""Compiles a training step ahead of time and reads XLA's figures about it.

The devices do not have to exist on this machine. XLA compiles for a TPU through
libtpu, given the name of a slice, and reports the memory, the bytes accessed
and its own estimate of the time. A step compiled for CPU devices gives the same
figures for a CPU; for other accelerators its memory is only an estimate.
"""
from collections.abc import Callable
import dataclasses
import importlib.util
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mixer.analysis import cycles
from mixer.core import errors
from mixer.models import interface
from mixer.training import sharding
from mixer.training import step

# 'v3:2x2' counts chips. A chip of v2 and v3 has two cores, each a JAX device.
_TOPOLOGY = re.compile(r'(v2|v3|v4|v5e|v5p|v6e):\d+(x\d+){1,2}')
# libtpu asks the machine it runs on for these; a machine without a TPU has no
# answer, so they are set here. They do not influence the compiled program.
_LIBTPU_SETTINGS = dict(
    TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v3-8', TPU_WORKER_ID='0',
    TPU_WORKER_HOSTNAMES='localhost', ALLOW_MULTIPLE_LIBTPU_LOAD='1')


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled training step.

  Attributes:
    compiled: the program, from jax.jit(...).lower(...).compile().
    state: `step.State` of jax.ShapeDtypeStruct, with shardings.
    seconds: how long XLA took to compile it.
  """
  compiled: jax.stages.Compiled
  state: step.State
  seconds: float

  def bytes(self) -> dict[str, int]:
    """Returns the memory of one device in bytes.

    Returns:
      'parameters' and 'optimizer'; 'batch', which includes a data set that
      lives on the device; 'temporaries', which are activations and everything
      else that lives only during a step; and 'total'.
    """
    memory: Any = self.compiled.memory_analysis()
    held = lambda tree: sharding.held(
        tree, jax.tree.map(lambda x: x.sharding, tree))
    parameters, optimizer = held(self.state.params), held(self.state.opt_state)
    out = dict(
        parameters=parameters, optimizer=optimizer,
        batch=max(0, memory.argument_size_in_bytes - parameters - optimizer),
        temporaries=memory.temp_size_in_bytes)
    # The new state is written over the old one, so only outputs that share no
    # memory with an argument count.
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return dict(out, total=sum(out.values()) + max(0, fresh))

  def cycles(self) -> int:
    """Returns the cycles that a TPU's compiler expects a step to take."""
    return cycles.total(cycles.ops(self.compiled.as_text() or ''))

  def cost(self) -> dict[str, float | None]:
    """Returns XLA's own figures for one device and one step; see `costs`."""
    return costs(self.compiled)


def costs(compiled: jax.stages.Compiled) -> dict[str, float | None]:
  """Returns XLA's own figures for a program on one device.

  Returns:
    'flops', 'bytes_accessed' and 'seconds', each None where XLA gives no
    figure. It estimates the seconds for TPUs only, as a lower bound.
  """
  found: Any = compiled.cost_analysis() or {}
  # XLA reports a negative time for devices that it has no model of.
  seconds = found.get('optimal_seconds', 0)
  return dict(flops=found.get('flops'), seconds=seconds if seconds > 0 else
              None, bytes_accessed=found.get('bytes accessed'))


def time_of(program: Program, generation: str) -> dict[str, Any]:
  """Returns the time of a training step on a TPU generation.

  Returns:
    'cycles'; 'seconds', at the clock of the generation and times 'correction',
    or None if the clock is not known. 'correction' is None where no measured
    step is known, and the seconds are then as the cycles say.
  """
  count = program.cycles()
  seconds = cycles.seconds(count, generation)
  correction = cycles.CORRECTION.get(generation)
  return dict(cycles=count, correction=correction,
              seconds=seconds and seconds * (correction or 1))


def tpu_devices(topology: str) -> list[jax.Device]:
  """Returns the devices of a TPU slice, which XLA can compile for.

  Args:
    topology: generation and chips, such as 'v3:2x2' or 'v4:2x2x1'.

  Raises:
    UserError: if libtpu is not installed or does not know the slice.
  """
  if not _TOPOLOGY.fullmatch(topology):
    raise errors.UserError(
        '--topology: expected GENERATION:CHIPSxCHIPS of v2, v3, v4, v5e, v5p '
        f'or v6e, such as v3:2x2, v4:2x2x1 or v5e:4x4, got {topology!r}')
  if not os.environ.get('TPU_LIBRARY_PATH'):
    found = importlib.util.find_spec('libtpu')
    if found is None or not found.submodule_search_locations:
      raise errors.UserError(
          f'--topology: compiling for {topology} needs libtpu, which is not '
          'installed; run: pip install libtpu==0.0.42.1 (the version in '
          'launch/requirements-tpu.txt)')
    os.environ['TPU_LIBRARY_PATH'] = os.path.join(
        found.submodule_search_locations[0], 'libtpu.so')
  for key, value in _LIBTPU_SETTINGS.items():
    os.environ.setdefault(key, value)
  from jax.experimental import topologies
  try:
    return topologies.get_topology_desc(
        platform='tpu', topology_name=topology).devices
  except (RuntimeError, ValueError) as e:
    raise errors.UserError(
        f'--topology: libtpu does not know {topology!r} '
        f'({str(e).splitlines()[0][:200]}); give a slice that exists, such as '
        'v3:2x2') from None


def train_step(
    step_fn: Callable[..., tuple[step.State, dict[str, jax.Array]]],
    model: interface.Model, optimizer: optax.GradientTransformation,
    plan: sharding.Plan, *, batch_size: int, image_size: tuple[int, int],
    seed: int = 0, resident: int | None = None) -> Program:
  """Compiles a training step without allocating its arrays.

  Args:
    step_fn: the step function, from `step.make_train_step`.
    model: the network that `step_fn` trains, made for `plan.platform`.
    optimizer: the optimizer that `step_fn` uses.
    plan: layout over devices, which need not exist here.
    batch_size: images in a step, over all devices.
    image_size: (height, width) in pixels.
    seed: seed of the run.
    resident: number of examples, if the whole data set lives on the device.

  Raises:
    RunError: if the step does not fit into the devices' memory.
  """
  if model.platform != plan.platform:
    # Networks choose the form of their matrix products by platform, so this
    # would compile a program that no run on these devices uses.
    raise ValueError(f'the network is made for {model.platform}, the devices '
                     f'are {plan.platform}')
  shape = (*image_size, model.in_channels)
  placed = step.shard(step_fn, model, optimizer, plan, seed=seed,
                       image_shape=shape)
  some = lambda count, where: lambda dtype, *axes: jax.ShapeDtypeStruct(
      (count, *axes), dtype, sharding=where)
  row = some(batch_size, plan.batch)
  batch = dict(epoch=row(jnp.int32), record=row(jnp.int32), bad=row(jnp.bool_))
  whole = None
  if resident is None:
    batch.update(image=row(jnp.uint8, *shape), labels=row(jnp.int32, 1))
  else:
    example = some(resident, plan.replicated)
    batch.update(position=row(jnp.int32))
    whole = dict(image=example(jnp.uint8, *shape), labels=example(jnp.int32, 1))
  began = time.monotonic()
  lowered = placed.step.lower(placed.state, batch, whole)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    raise errors.RunError(
        'the training step does not fit into the memory of the device; reduce '
        'run.batch_size, set run.micro_batches, or use more devices with '
        f'sharding.strategy=fsdp. XLA says: {" ".join(str(e).split())[:300]}'
    ) from e
  return Program(compiled, placed.state, time.monotonic() - began)
