"""What a run says of itself before its first step."""
import os
import re

from clu import parameter_overview
import numpy as np

from mixer.core import accelerators
from mixer.core import files
from mixer.core import processes
from mixer.core import trees
from mixer.core.log import log
from mixer.models import catalog
from mixer.models import cost
from mixer.training import sharding

_SHARE = 0.4   # of the peak, by which the cost is told; measured it is later


def introduce(config, settings, plan, data, evals, model, shapes, total,
              workdir):
  """Says what is about to run; the whole list of parameters goes to a file."""
  say = log.info
  device = plan.mesh.devices.flat[0]
  say('model    %s', catalog.title(catalog.describe(model, config.model.name)))
  count, frozen = trees.count(shapes.params), config.optimizer.frozen
  still = frozen and sum(
      int(np.prod(x.shape)) for name, x in trees.flatten(shapes.params).items()
      if re.fullmatch(frozen, name))
  say('         %s parameters%s, %.3g GFLOPs an image', f'{count:,}',
      f', {count - still:,} of them trained' if still else '',
      cost.forward_flops(model, settings.image_size) / 1e9)
  say('data     %s %s: %s images, %d classes', data.source.name,
      data.split.spec, f'{len(data):,}', data.source.num_classes)
  for name, held_out in evals.items():
    say('         evaluated as %s: %s images of %s', name,
        f'{len(held_out):,}', held_out.split.spec)
  mesh = ' x '.join(f'{axis} {n}' for axis, n in plan.mesh.shape.items()
                    if n > 1)
  say('devices  %d x %s, %s, state: %s%s', plan.mesh.size, device.device_kind,
      settings.dtype, plan.strategy, f' ({mesh})' if mesh else '')
  say('run      %s steps of %d images, %.1f epochs', f'{total:,}',
      settings.batch_size, total * settings.batch_size / len(data))
  say('memory   %s MiB of parameters and %s of the optimizer on a device', *(
      f'{sharding.held(tree, plan.state(tree, model.SHARDING_RULES)) / 2**20:,.1f}'
      for tree in (shapes.params, shapes.opt_state)))
  say('cost     %s', ', '.join(_cost(config, settings, model, device, total)))
  say('workdir  %s', workdir)
  if processes.several():
    for number, host, devices in processes.table():
      say('process  %d on %s: %s', number, host, devices)
  if processes.first():
    files.write(
        os.path.join(workdir, 'parameters.txt'),
        parameter_overview.get_parameter_overview(
            shapes.params, include_stats=False) + '\n')


def _cost(config, settings, model, device, total):
  """What is known of the cost, for people."""
  image = cost.training_flops(model, settings.image_size)
  flops = total * settings.batch_size * image
  yield f'training: {image / 1e9:.3g} GFLOPs an image, {flops:.3g} FLOPs in all'
  known = accelerators.of_kind(device.device_kind)
  if known:
    hours = flops / _SHARE / known.flops_per_second / 3600
    yield (f'{hours:,.1f} device-hours at {_SHARE:.0%} of the peak of '
           f'{known.name} in {known.precision}')
  days = paper_core_days(config)
  if days:
    yield f'the paper: {days:,} TPUv3 core-days'


def paper_core_days(config):
  """TPUv3 core-days that the paper's run took, or None: it has none of that
  network and data, or this one does not start from scratch."""
  if config.start.weights is not None:
    return None
  return cost.paper_core_days(config.model.name, config.data.name)
