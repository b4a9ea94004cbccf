"""What a run prints about itself before its first step."""
from collections.abc import Iterator
from collections.abc import Mapping
import os

from clu import parameter_overview

from mixer.core import files
from mixer.core import processes
from mixer.core import trees
from mixer.core import workdir
from mixer.core.log import log
from mixer.data import class_counts
from mixer.data import pipeline
from mixer.models import cost
from mixer.models import interface
from mixer.training import sharding
from mixer.training import step
from mixer.training.settings import Settings

# Share of the peak for the estimate of hours; the run then measures its own.
_UTILISATION = 0.4
_STATE = dict(replicate='every device holds the whole state',
              fsdp='the state is split over the devices')


def introduce(*, path: str, title: str, settings: Settings, plan: sharding.Plan,
              data: pipeline.Data, evals: Mapping[str, pipeline.Data],
              model: interface.Model, state: step.State, trained: int,
              image_flops: int, total_steps: int,
              paper_core_days: int | None, code: str = '') -> None:
  """Logs what is about to run, and writes the table of all parameters.

  Args:
    path: the workdir.
    title: the model's name and what differs from it.
    settings: of the config's `run` section.
    plan: of the devices.
    data: the training split.
    evals: {name: evaluation split}.
    model: the network.
    state: shapes of the training state.
    trained: how many of the parameters are not frozen.
    image_flops: FLOPs of one image in training.
    total_steps: length of the run.
    paper_core_days: TPUv3 core-days of the same run in the paper, or None.
    code: commit and versions, '' if they are not known.
  """
  say = log.info
  device, count = plan.mesh.devices.flat[0], trees.count(state.params)
  say('model    %s', title)
  of_them = '' if trained == count else f', {trained:,} of them trained'
  say('         %s parameters%s; %.3g GFLOPs per image in a forward pass',
      f'{count:,}', of_them,
      cost.forward_flops(model, settings.image_size) / 1e9)
  say('data     %s, split %s: %s images of %d classes', data.source.name,
      data.split.spec, f'{len(data):,}', data.source.num_classes)
  for name, split in evals.items():
    say('         evaluation %r on %s, split %s: %s images', name,
        split.source.name, split.split.spec, f'{len(split):,}')
  if classes := class_counts.overview(data):
    say('classes  %s', classes)
  mesh = ' x '.join(f'{axis} {size}' for axis, size in plan.mesh.shape.items()
                    if size > 1)
  say('devices  %d x %s, computing in %s; %s%s', plan.mesh.size,
      device.device_kind, settings.dtype_on(plan.platform),
      _STATE[plan.strategy], f' ({mesh})' if mesh else '')
  say('run      %s steps of %d images: %.1f epochs', f'{total_steps:,}',
      settings.batch_size, total_steps * settings.batch_size / len(data))
  held = [sharding.held(tree, plan.state(tree, model.SHARDING_RULES))
          for tree in (state.params, state.opt_state)]
  say('memory   parameters %s MiB, optimizer state %s MiB on each device',
      *(f'{number / 2**20:,.1f}' for number in held))
  say('cost     %s', '; '.join(_cost(
      image_flops, total_steps * settings.batch_size * image_flops,
      plan.platform, device.device_kind, paper_core_days)))
  if code:
    say('code     %s', code)
  say('workdir  %s', path)
  if processes.several():
    for number, host, devices in processes.table():
      say('process  %d on %s: %s', number, host, devices)
  if processes.first():
    files.write(
        os.path.join(path, workdir.PARAMETERS),
        parameter_overview.get_parameter_overview(
            state.params, include_stats=False) + '\n')


def _cost(image: float, total: float, platform: str, kind: str,
          paper_core_days: int | None) -> Iterator[str]:
  """Yields what is known of the cost, as phrases.

  Args:
    image: FLOPs of training on one image.
    total: FLOPs of the whole run.
    platform: of the devices.
    kind: JAX's `device_kind` of the devices.
    paper_core_days: TPUv3 core-days of the same run in the paper, or None.
  """
  yield (f'training takes {image / 1e9:.3g} GFLOPs per image, {total:.3g} '
         'FLOPs in total')
  if platform != 'cpu':
    from mixer.core import accelerators
    known = accelerators.of_kind(kind)
    if known:
      hours = total / _UTILISATION / known.flops_per_second / 3600
      yield (f'about {hours:,.1f} device-hours at {_UTILISATION:.0%} of the '
             f'{known.precision} peak of a {known.name}')
  if paper_core_days:
    yield f'the paper took {paper_core_days:,} TPUv3 core-days'
