"""Estimates the speed of a network on a TPU that is not here.

XLA compiles our program, and those of other projects, for the TPU; `cycles`
reads what its compiler expects every op to cost. BENCHMARKS.md has the
estimates beside the speeds that the paper measured.
"""
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mixer.analysis import compiled_step
from mixer.analysis import cycles
from mixer.analysis import peers
from mixer.analysis import step_speed
from mixer.core import tables
from mixer.evaluation import suite
from mixer.models import interface
from mixer.models.grid import pair
from mixer.training import sharding

PASSES = ('forward', 'train')


def estimate(name: str, model: interface.Model, plan: sharding.Plan, *,
             topology: str, batch_size: int, image_size: int | tuple[int, int],
             what: str = 'train', others: Mapping[str, nn.Module] | None = None,
             optimizer: str = 'sgd') -> dict[str, Any]:
  """Compiles our program, and others', for a TPU slice.

  Args:
    name: what the report calls the network.
    model: the network, made for TPUs.
    plan: layout over the devices of the slice.
    topology: name of the slice, such as 'v3:2x2'.
    batch_size: images per device.
    image_size: side in pixels, or (height, width).
    what: 'train' for a training step, 'forward' for a forward pass.
    others: {name: a peer's network}, which computes in float32.
    optimizer: 'sgd' or 'adam', of our training step.

  Returns:
    A dict ready for JSON. 'cycles' of one device, its 'milliseconds',
    'utilisation' of the matrix units and the slice's 'images_per_second' (None
    if the generation's clock is not known); 'optimistic_seconds', which is
    XLA's own lower estimate, or None; 'without_estimate', {kind: number} of the
    ops that the sum leaves out; 'layers', the most expensive, as [name,
    cycles]; 'peers', the same for each.
  """
  side, count = pair(image_size), batch_size * plan.parts
  if what == 'train':
    updates, step_fn = step_speed.make_step(model, optimizer_name=optimizer)
    program = compiled_step.train_step(
        step_fn, model, updates, plan, batch_size=count, image_size=side)
    compiled, memory = program.compiled, program.bytes()
  else:
    compiled, memory = _forward(model, plan, count, side), None
  flops = batch_size * dict(train=model.training_flops,
                            forward=model.forward_flops)[what](side)
  figures = lambda program: _figures(
      program, flops, topology.partition(':')[0], count)
  ours, ops = figures(compiled)
  found = compiled_step.costs(compiled)
  theirs = {
      other: figures(_peer(
          network, what, plan, count, (*side, model.in_channels)))[0]
      for other, network in (others or {}).items()}
  return dict(
      {'pass': what}, mode='tpu', model=name, topology=topology,
      devices=plan.mesh.size, device=plan.mesh.devices.flat[0].device_kind,
      dtype=str(model.dtype), batch_size=batch_size, sharding=plan.strategy,
      **ours, optimistic_seconds=found['seconds'], flops=found['flops'],
      bytes_accessed=found['bytes_accessed'], memory=memory,
      without_estimate=cycles.without_estimate(ops),
      layers=cycles.dearest(ops), peers=theirs)


def show(out: Mapping[str, Any]) -> None:
  """Prints what `estimate` returned."""
  ours = out['cycles']
  shown = lambda value, form, factor=1.0: (
      'unknown' if value is None else format(factor * value, form))
  row = lambda name, dtype, one, ratio: (
      name, dtype, f'{one["cycles"] / 1e6:,.2f}',
      shown(one['milliseconds'], ',.1f'), shown(one['utilisation'], '.1%'),
      shown(one['images_per_second'], ',.0f', 1 / out['devices']), ratio)
  rest = ', '.join(f'{count} {kind}' for kind, count in
                   out['without_estimate'].items())
  tables.show(
      tables.make(
          [row('mixer', out['dtype'], out, ''),
           *(row(name, 'float32', peer, f'{peer["cycles"] / ours:.2f}')
             for name, peer in out['peers'].items())],
          ('', 'dtype', 'million cycles', 'ms', 'of the peak',
           'images/s per device', 'theirs / ours'), left=2,
          title=f'{out["model"]}, {out["pass"]}, {out["batch_size"]} images '
          f'per device, {out["devices"]} x {out["device"]}: by the compiler',
          caption=f'Not in the sum: {rest or "nothing"}.\nA lower bound by '
          'operations and bytes alone, in ms: '
          f'{shown(out["optimistic_seconds"], ".1f", 1e3)}.'),
      tables.make(
          [(layer, f'{count / 1e6:,.2f}', f'{count / ours:.1%}')
           for layer, count in out['layers']],
          ('layer, of all blocks', 'million cycles', '')))
  if memory := out['memory']:
    tables.show(tables.make(
        [[f'{memory[key] / 2**30:.2f}' for key in memory]],
        [f'{key}, GiB' for key in memory], left=0))


def _figures(compiled: jax.stages.Compiled, flops: float, generation: str,
             images: int) -> tuple[dict[str, Any], list[cycles.Op]]:
  ops = cycles.ops(compiled.as_text() or '')
  total = cycles.total(ops)
  seconds = cycles.seconds(total, generation)
  return dict(
      cycles=total, milliseconds=seconds and 1e3 * seconds,
      utilisation=cycles.utilisation(flops, total, generation),
      images_per_second=seconds and images / seconds), ops


def _forward(model: interface.Model, plan: sharding.Plan, count: int,
             size: tuple[int, int]) -> jax.stages.Compiled:
  """Compiles a forward pass, from uint8 images to logits."""
  images, labels = _batch(plan, count, (*size, model.in_channels))
  params = _placed(jax.eval_shape(
      model.init, jax.random.key(0), jnp.zeros((1, *images.shape[1:])))[
          'params'], plan)
  return jax.jit(suite.make_predict(model)).lower(
      params, dict(image=images, labels=labels)).compile()


def _peer(network: nn.Module, what: str, plan: sharding.Plan, count: int,
          shape: tuple[int, ...]) -> jax.stages.Compiled:
  """Compiles a peer's program, with the parameters on every device."""
  images, labels = _batch(plan, count, shape)
  initial, advance = peers.flax_program(
      network, 'train' if what == 'train' else 'infer')
  begin = jax.eval_shape(initial, jax.ShapeDtypeStruct(
      (1, *images.shape[1:]), images.dtype))
  return jax.jit(advance, donate_argnums=(0,) if what == 'train' else ()).lower(
      _placed(begin, plan), images, labels).compile()


def _batch(plan: sharding.Plan, count: int,
           shape: tuple[int, ...]) -> tuple[Any, Any]:
  some = lambda dtype, *axes: jax.ShapeDtypeStruct(
      (count, *axes), dtype, sharding=plan.batch)
  return some(jnp.uint8, *shape), some(jnp.int32)


def _placed(tree: Any, plan: sharding.Plan) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=plan.replicated), tree)
