"""Plans a run: its size, memory and time, and whether its data is there.

A plan needs the config only. The training step is compiled, but no array of its
size is allocated, and the data may be elsewhere.
"""
from collections.abc import Mapping
import dataclasses
import os
from typing import Any

import jax
import ml_collections

from mixer import models
from mixer.analysis import compiled_step
from mixer.analysis import data_sizes
from mixer.core import accelerators
from mixer.core import errors
from mixer.core import files
from mixer.core import trees
from mixer.data import splits
from mixer.evaluation import suite
from mixer.models import catalog
from mixer.models.grid import pair
from mixer.pretrained import fetch
from mixer.pretrained import registry
from mixer.training import assembly
from mixer.training import optimizers
from mixer.training.settings import Settings

RELEASED_SIZE = 224   # pixels, of all released Mixers
_PAPER_ACCELERATOR = 'v3'


def plan(config: ml_collections.ConfigDict, *, topology: str | None = None,
         devices: int | None = None, accelerator: str | None = None,
         utilisation: float | None = None, workdir: str | None = None
         ) -> dict[str, Any]:
  """Returns the whole plan of a run, ready for JSON.

  Args:
    config: the config of the run.
    topology: a TPU slice to compile for, such as 'v3:2x2'; needs libtpu. None
      compiles for CPU devices instead, whose activations say little about
      other devices: 'memory' then has 'estimate', and only its 'least' holds.
    devices: number of devices. With a topology the default is all of it, and
      fewer are its first; without one the default is 1.
    accelerator: a key of `accelerators.ACCELERATORS`, whose memory and peak are
      compared; by default the topology's, or v3, which the paper used.
    utilisation: share of the peak that the run is assumed to reach. None takes
      the time of the compiled step with a topology, as `compiled_step.time_of`
      returns it, and else accelerators.USUAL_UTILISATION.
    workdir: a directory to check for write access, or None.

  Returns:
    A dict with 'model', 'run', 'memory', 'xla', 'time' and 'preflight', the
    last a list of {'what', 'value', 'found', 'remedy'}.

  Raises:
    UserError: if the config or an argument is wrong.
    RunError: if the TPU compiler finds that the step does not fit.
  """
  settings = assembly.check(config)
  chosen = _devices(topology, devices)
  device = _accelerator(accelerator, topology)
  if utilisation is not None and not 0 < utilisation <= 1:
    raise errors.UserError('--utilisation: expected 0 < x <= 1, got '
                           f'{utilisation}')
  settings = dataclasses.replace(
      settings, image_width=None, image_size=pair(settings.image_size),
      precision=settings.precision or device.precision)
  layout = assembly.make_plan(config, chosen)
  settings.check_devices(layout.parts)
  data, preflight = _look(config)
  model = _enlarged(
      assembly.make_model(config, settings, data, layout.platform), config,
      settings)
  catalog.say_without_effect(config.model, model)
  total = _steps(settings, data)
  optimizer, step_fn = assembly.make_step(config, settings, model, total)
  on_device = config.data.on_device or data.decoded
  program = compiled_step.train_step(
      step_fn, model, optimizer, layout, batch_size=settings.batch_size,
      image_size=pair(settings.image_size), seed=settings.seed,
      resident=data.examples if on_device else None)
  preflight += _weights(config.start.weights) + _workdir(workdir)
  images = total * settings.batch_size
  flops = model.training_flops(
      settings.image_size, config.optimizer.frozen, program.state.params)
  held = program.bytes()
  count = trees.count(program.state.params)
  # The gradients of the trained parameters, which lie as the parameters do.
  gradients = held['parameters'] * optimizers.trained(
      program.state.params, config.optimizer.frozen) // max(count, 1)
  return dict(
      model=dict(
          name=assembly.described(config, model)['name'],
          parameters=count,
          forward_flops=model.forward_flops(settings.image_size),
          training_flops=flops),
      run=dict(
          examples=data.examples, batch_size=settings.batch_size, steps=total,
          images=images, epochs=data.examples and images / data.examples,
          precision=settings.precision),
      memory=dict(
          devices=len(chosen), kind=chosen[0].device_kind,
          estimate=topology is None, layout=dict(layout.mesh.shape),
          strategy=layout.strategy, of=device.name,
          available=device.memory_bytes, gradients=gradients,
          least=held['parameters'] + held['optimizer'] + gradients, **held),
      xla=dict(program.cost(), compile_seconds=program.seconds),
      time=_time(
          device, len(chosen), images=images, flops=images * flops,
          utilisation=utilisation, core_days=assembly.paper_core_days(config),
          steps=total, xla_seconds=program.cost()['seconds'],
          precision=settings.precision, compiled=compiled_step.time_of(
              program, device.name) if topology else None),
      preflight=preflight)


def remedies(memory: Mapping[str, Any]) -> list[str]:
  """Returns what to change so that a step that does not fit takes less memory.

  Args:
    memory: 'memory' of a plan.
  """
  out = []
  if memory['estimate']:   # the activations are unknown
    memory = dict(memory, temporaries=0, total=memory['least'])
  if memory['temporaries'] > 0.5 * memory['total']:
    out += ['--config.model.remat=block', '--config.run.micro_batches=N',
            'a smaller --config.run.batch_size']
  if memory['parameters'] + memory['optimizer'] > 0.25 * memory['total'] and (
      memory['strategy'] != 'fsdp'):
    out.append('--config.sharding.strategy=fsdp')
  return out or ['more devices']


def _devices(topology: str | None, count: int | None) -> list[jax.Device]:
  """Returns the devices to compile for."""
  every = compiled_step.tpu_devices(topology) if topology else jax.devices()
  wanted = count or (len(every) if topology else 1)
  if wanted > len(every):
    raise errors.UserError(
        f'--devices: expected at most {len(every)}, the number of devices of '
        f'{topology or "this machine"}, got {wanted}')
  return every[:wanted]


def _accelerator(name: str | None,
                 topology: str | None) -> accelerators.Accelerator:
  """Returns the accelerator whose memory and peak are compared."""
  generation = topology and topology.partition(':')[0]
  name = name or generation or _PAPER_ACCELERATOR
  if name not in accelerators.ACCELERATORS:
    raise errors.unknown('--accelerator', name, accelerators.ACCELERATORS)
  if topology and name != generation:
    raise errors.UserError(f'--accelerator: {name} contradicts --topology='
                           f'{topology}; give only one of the two')
  return accelerators.ACCELERATORS[name]


def _look(config: Mapping[str, Any]) -> tuple[data_sizes.Size, list[dict]]:
  """Returns the size of the training split, and a row about every split."""
  sections, _ = suite.sections(config)
  rows, found = [], {}
  for key, section in sections.items():
    name = section['name']
    data_sizes.check_values(key, section)
    found[key] = data_sizes.size(
        name, section['split'], data_dir=section.get('dir'), key=key,
        access=section.get('access'),
        wanted=splits.wanted(sections, name))
    count = found[key].examples
    rows.append(_row(
        key, f'{name} {section["split"]}' + (
            '' if count is None else f', {count:,} images'),
        found[key].missing))
    labels = section.get('labels')
    if labels:
      there = files.is_remote(labels) or os.path.exists(
          os.path.expanduser(labels))
      rows.append(_row(f'{key}.labels', labels,
                       None if there else 'no such file'))
  return found['data'], rows


def _weights(weights: str | None) -> list[dict]:
  """Returns a row about the weights that the run starts from, if any."""
  if weights is None:
    return []
  release = registry.find(weights) if weights else None
  address = weights if fetch.is_url(weights) else None
  if release is not None and weights == release.name:
    address = release.url
  if address:
    return [_row('start.weights', weights, None if fetch.cached(
        address) else f'will be fetched from {address} at the start')]
  there = weights and os.path.exists(os.path.expanduser(weights))
  return [_row('start.weights', weights or '(not given)',
               None if there else 'no such workdir or file')]


def _workdir(path: str | None) -> list[dict]:
  """Returns a row about write access to the workdir, if one is given."""
  if path is None:
    return []
  # A workdir is made when the run starts; what counts is the nearest directory
  # above it that exists. Buckets are not checked.
  there = os.path.abspath(path)
  while not os.path.exists(there):
    there = os.path.dirname(there)
  fine = '://' in path or (os.path.isdir(there) and os.access(there, os.W_OK))
  return [_row('workdir', path, None if fine else f'{there} cannot be written')]


def _row(what: str, value: str, missing: str | None) -> dict[str, Any]:
  return dict(what=what, value=value, found=missing is None, remedy=missing)


def _enlarged(model, config, settings):
  """The model with the widths of the weights that the run starts from. Released
  weights are for 224x224 images, and have D_S after the paper's enlargement."""
  weights, method = config.start.weights, config.start.method
  if not weights:
    return model
  release = registry.find(weights)
  if release is None:   # the weights themselves tell, if they are here
    return assembly.load_start(config, settings, model, None, None)[
        0] if os.path.exists(os.path.expanduser(weights)) else model
  if method == 'resample' or any(
      config.model.get(key) for key in model.TIED_TO_SIZE):
    return model
  patch = pair(models.create(release.model).patch_size)
  if method is None and patch != pair(model.patch_size):
    return model
  grown = [side // new / (RELEASED_SIZE // old) for side, new, old in zip(
      settings.image_size, pair(model.patch_size), patch)]
  if any(k != int(k) for k in grown):
    return model
  return model.enlarged(int(grown[0] * grown[1]))


def _steps(settings: Settings, data: data_sizes.Size) -> int:
  if settings.total_steps is None and data.examples is None:
    raise errors.UserError(
        f'run.total_epochs: got {settings.total_epochs}, but the number of '
        f'examples is unknown and the data is not here ({data.missing}); give '
        '--config.run.total_steps instead')
  return settings.steps(data.examples)


def _time(device: accelerators.Accelerator, count: int, *, images: int,
          flops: int, steps: int, utilisation: float | None,
          core_days: int | None, xla_seconds: float | None,
          precision: str | None, compiled: Mapping[str, Any] | None
          ) -> dict[str, Any]:
  """Returns the time of a run.

  Args:
    device: the accelerator.
    count: number of devices.
    images: images of the whole run.
    flops: operations of the whole run.
    steps: steps of the whole run.
    utilisation: share of the peak that the run is assumed to reach, or None.
    core_days: what the paper's run took, or None.
    xla_seconds: XLA's own estimate of a step, a lower bound, or None.
    precision: of the computation. Times are None if its peak is not known.
    compiled: as `compiled_step.time_of` returns it, or None.
  """
  least = flops / device.flops_per_second / 3600   # at the peak
  seconds = compiled['seconds'] if compiled and utilisation is None else None
  hours = (seconds * steps * count / 3600 if seconds else
           least / (utilisation or accelerators.USUAL_UTILISATION))
  times: dict[str, float | None] = dict(
      utilisation=least / hours, device_hours=hours, hours=hours / count,
      images_per_second=images / (3600 * hours / count))
  # TPUs multiply float32 matrices in bfloat16.
  if precision != device.precision and not device.kind.startswith('TPU'):
    times = dict.fromkeys(times)
  out = dict(times, accelerator=device.name, assumed=not seconds, devices=count,
             compiled=compiled, flops=flops, precision=precision,
             peak_flops_per_second=device.flops_per_second,
             peak_precision=device.precision,
             devices_per_chip=device.devices_per_chip,
             paper_core_days=core_days)
  if xla_seconds:
    out.update(xla_device_hours=xla_seconds * steps * count / 3600)
  return out
