"""What a run will take, before anything is rented: size, memory, time, data.

Everything is said of a config, whose data need not be at hand.
"""
import dataclasses
import os

import jax

from mixer import models
from mixer.analysis import compiled_step
from mixer.analysis import data_sizes
from mixer.core import accelerators
from mixer.core import errors
from mixer.core import trees
from mixer.evaluation import suite
from mixer.models import cost
from mixer.models.mixer import pair
from mixer.pretrained import fetch
from mixer.pretrained import registry
from mixer.training import assembly
from mixer.training import sharding

RELEASED_SIZE = 224   # pixels, of all released Mixers


def plan(config, *, topology=None, devices=None, accelerator=None,
         utilisation=0.4, workdir=None):
  """The whole plan of a run, ready for JSON.

  Args:
    config: of a run.
    topology: of TPU devices to compile for, such as 'v3:2x2'; needs libtpu.
    devices: how many: the topology's first, by default all of them; or CPU
      devices that stand for others, by default one.
    accelerator: a key of `accelerators.ACCELERATORS`, for memory and time; by
      default the topology's, else v3, the paper's.
    utilisation: share of the peak that the time is reckoned with.
    workdir: that is to be checked, or None.

  Returns:
    dict: 'model', 'run', 'memory', 'xla', 'time', 'preflight', a list of
    {'what', 'value', 'found', 'remedy'}.

  Raises:
    UserError: if the config or an argument is wrong.
    RunError: if a TPU's compiler finds that it does not fit.
  """
  settings = assembly.check(config)
  every = compiled_step.tpu_devices(topology) if topology else jax.devices()
  name = accelerator or (topology or 'v3').partition(':')[0]
  if name not in accelerators.ACCELERATORS:
    raise errors.unknown('--accelerator', name, accelerators.ACCELERATORS)
  if topology and name != topology.partition(':')[0]:
    raise errors.UserError(f'--accelerator: {name} is not what --topology='
                           f'{topology} is; give one of them')
  if not 0 < utilisation <= 1:
    raise errors.UserError('--utilisation: expected 0 < x <= 1, got '
                           f'{utilisation}')
  device = accelerators.ACCELERATORS[name]
  wanted = devices or (len(every) if topology else 1)
  if wanted > len(every):
    raise errors.UserError(f'--devices: {wanted}, but there are {len(every)}')
  chosen = every[:wanted]
  settings = dataclasses.replace(
      settings, image_width=None, image_size=pair(settings.image_size),
      precision=settings.precision or 'bfloat16')
  layout = sharding.plan(devices=chosen, **config.sharding)
  settings.check_devices(layout.parts)
  data, preflight = _look(config)
  model = _enlarged(make_model(config, settings, data, layout.platform),
                    config, settings)
  total = _steps(settings, data)
  optimizer, step_fn = assembly.make_step(config, settings, model, total)
  resident = data.examples if (
      config.data.on_device or data.decoded) else None
  program = compiled_step.train_step(
      step_fn, model, optimizer, layout, batch_size=settings.batch_size,
      image_size=settings.image_size, seed=settings.seed, resident=resident)
  preflight += _weights(config) + _workdir(workdir)
  return dict(
      model=dict(
          name=config.model.name, parameters=trees.count(program.state.params),
          forward_flops=cost.forward_flops(model, settings.image_size),
          training_flops=cost.training_flops(model, settings.image_size)),
      run=dict(
          examples=data.examples, batch_size=settings.batch_size, steps=total,
          images=total * settings.batch_size,
          epochs=data.examples and total * settings.batch_size / data.examples,
          precision=settings.precision),
      memory=dict(
          devices=len(chosen), kind=chosen[0].device_kind,
          estimate=topology is None, layout=dict(layout.mesh.shape),
          strategy=layout.strategy, of=device.name,
          available=device.memory_bytes, **program.bytes()),
      xla=dict(program.cost(), compile_seconds=program.seconds),
      time=_time(config, settings, model, device, len(chosen), total,
                 utilisation, program.cost()['seconds'] if topology else None),
      preflight=preflight)


def remedies(memory):
  """Settings that would make a step smaller, for one that does not fit."""
  out = []
  if memory['temporaries'] > 0.5 * memory['total']:
    out += ['--config.model.remat=block', '--config.run.micro_batches=N',
            'a smaller --config.run.batch_size']
  if memory['parameters'] + memory['optimizer'] > 0.25 * memory['total'] and (
      memory['strategy'] != 'fsdp'):
    out.append('--config.sharding.strategy=fsdp')
  return out or ['more devices']


def _look(config):
  """(`data_sizes.Size` of the training split, rows about every split)."""
  asked, _ = suite.sections(config)
  rows, found = [], {}
  for key, section in asked.items():
    name = section['name']
    found[key] = data_sizes.size(
        name, section['split'], data_dir=section.get('dir'), key=key,
        access=section.get('access'),
        wanted=[s['split'] for s in asked.values() if s['name'] == name])
    count = found[key].examples
    rows.append(_row(
        key, f'{name} {section["split"]}' + (
            '' if count is None else f', {count:,} images'),
        found[key].missing))
    labels = section.get('labels')
    if labels:
      rows.append(_row(f'{key}.labels', labels, None if os.path.exists(
          labels) else 'no such file'))
  return found['data'], rows


def _weights(config):
  """A row about what the run starts from, if anything."""
  weights = config.start.weights
  if weights is None:
    return []
  release = registry.find(weights) if weights else None
  named = release is not None and weights == release.name
  if named or fetch.is_url(weights):
    address = release.url if named else weights
    return [_row('start.weights', weights, None if fetch.cached(
        address) else f'will be fetched from {address} at the start')]
  there = weights and os.path.exists(os.path.expanduser(weights))
  return [_row('start.weights', weights or '(not given)',
               None if there else 'no such workdir or file')]


def _workdir(path):
  if path is None:
    return []
  there = os.path.abspath(path)
  while not os.path.exists(there):
    there = os.path.dirname(there)
  fine = '://' in path or (os.path.isdir(there) and os.access(there, os.W_OK))
  return [_row('workdir', path, None if fine else f'{there} cannot be written')]


def _row(what, value, missing):
  return dict(what=what, value=value, found=missing is None, remedy=missing)


def make_model(config, settings, data=None, platform=None):
  """The network of a config whose data need not be at hand.

  Args:
    config: of a run.
    settings: `Settings` of its `run` section.
    data: `data_sizes.Size` of the training split, if that is known already.
    platform: as `sharding.Plan.platform`.
  """
  data = data or data_sizes.size(
      config.data.name, config.data.split, data_dir=config.data.dir,
      access=config.data.access)
  return assembly.make_model(config, settings, data, platform)


def _enlarged(model, config, settings):
  """The model with the D_S that released weights, made for 224x224 images, have
  after the paper's enlargement."""
  weights, method = config.start.weights, config.start.method
  if not weights or method == 'resample' or config.model.get('tokens_mlp_dim'):
    return model
  release = registry.find(weights)
  if release is None:
    return model
  patch = pair(models.create(release.model).patch_size)
  if method is None and patch != pair(model.patch_size):
    return model
  grown = [side // new / (RELEASED_SIZE // old) for side, new, old in zip(
      settings.image_size, pair(model.patch_size), patch)]
  if any(k != int(k) for k in grown):
    return model
  return model.clone(
      tokens_mlp_dim=model.tokens_mlp_dim * int(grown[0] * grown[1]))


def _steps(settings, data):
  if settings.total_steps is None and data.examples is None:
    raise errors.UserError(
        'run.total_epochs: nobody knows how many examples the data has, and it '
        f'is not there ({data.missing}); give --config.run.total_steps')
  return settings.steps(data.examples)


def _time(config, settings, model, device, count, steps, utilisation,
          xla_seconds):
  """Device-hours at the stated utilisation, and by XLA's own estimate."""
  flops = steps * settings.batch_size * cost.training_flops(
      model, settings.image_size)
  hours = flops / (utilisation * device.flops_per_second) / 3600
  out = dict(accelerator=device.name, utilisation=utilisation,
             flops=flops, peak_flops_per_second=device.flops_per_second,
             peak_precision=device.precision,
             device_hours=hours, hours=hours / count, devices=count,
             devices_per_chip=device.devices_per_chip,
             images_per_second=steps * settings.batch_size / (
                 3600 * hours / count),
             paper_core_days=assembly.paper_core_days(config))
  if xla_seconds:
    out.update(xla_device_hours=xla_seconds * count * steps / 3600)
  return out
