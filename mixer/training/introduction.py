"""What a run says of itself before its first step."""
import os
import re

from clu import parameter_overview
import numpy as np

from mixer.core import accelerators
from mixer.core import files
from mixer.core.log import log
from mixer.core import processes
from mixer.core import trees
from mixer.models import catalog
from mixer.models import cost

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
  known = accelerators.of_kind(device.device_kind)
  if known:
    flops = total * settings.batch_size * cost.training_flops(
        model, settings.image_size)
    say('cost     %.3g FLOPs in all, %s device-hours at %.0f%% of the peak of '
        '%s', flops, f'{flops / _SHARE / known.flops_per_second / 3600:,.1f}',
        100 * _SHARE, known.name)
  say('workdir  %s', workdir)
  if processes.several():
    for number, host, devices in processes.table():
      say('process  %d on %s: %s', number, host, devices)
  if processes.first():
    files.write(
        os.path.join(workdir, 'parameters.txt'),
        parameter_overview.get_parameter_overview(
            shapes.params, include_stats=False) + '\n')
