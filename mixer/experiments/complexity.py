"""Experiment: how does the cost grow with the number of patches S of an image?

A Mixer's multiply-adds are linear in S, because the width D_S of its token
mixing does not depend on S (the paper's section 2). Those of a ViT's attention
grow with S^2. Both are counted by formula and timed on this machine. Nothing is
trained, and no data set is read.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import os
import time
from typing import Any

from etils import epath
import jax
import ml_collections
import numpy as np

from mixer.analysis import data_sizes
from mixer.analysis import figures
from mixer.analysis import step_speed
from mixer.core import errors
from mixer.core import files
from mixer.core import tables
from mixer.core import workdir
from mixer.core.log import log
from mixer.experiments import networks
from mixer.models import catalog
from mixer.models import grid
from mixer.models import interface
from mixer.training import assembly
from mixer.training import sharding

_NAMES = ('Mixer', 'ViT')
_DOUBLINGS = 5
_ROUNDS = 20   # of which the median counts
_LARGEST_BATCH = 64
_SECONDS = 10.0   # no later round begins after so long
_FILE = 'measured.json'
# The cost does not depend on the data but for the head and the stem.
_ANY_DATA = data_sizes.Size(examples=None, num_classes=1000, channels=3,
                            missing=None)


def run(config: ml_collections.ConfigDict, path: str, *,
        sizes: Sequence[int | str] = ()) -> dict[str, Any]:
  """Counts and times forward passes of a Mixer and a ViT at several sizes.

  D_S and all other widths stay as they are at the config's own image size. A
  pass has about as many patches at every size, so that small images are timed
  in batches; seconds are those of one image.

  Args:
    config: gives the Mixer and the image size that the ViT costs about as much
      at.
    path: directory of the experiment; finished sizes are kept there.
    sizes: sides of images in pixels. By default the config's own size, and
      twice as many patches five times over.

  Returns:
    {'device', 'dtype', 'networks'}. A network has 'name', 'model', 'points'
    ({'size', 'patches', 'multiply_adds', 'quadratic', those of them that grow
    with the square of S, 'batch_size', 'seconds'}), and 'exponents' of S in
    'multiply_adds' and 'seconds': {'all', 'last'}, fitted to all sizes and
    between the last two.

  Raises:
    UserError: if a size is wrong.
  """
  settings = assembly.check(config)
  configs = {name: networks.alike(config, name) for name in _NAMES}
  plan = assembly.make_plan(config)
  models = {name: assembly.make_model(one, settings, _ANY_DATA, plan.platform)
            for name, one in configs.items()}
  shapes = _shapes(grid.pair(settings.image_size), sizes)
  counts = {name: [_counted(model, shape) for shape in shapes]
            for name, model in models.items()}
  timed = _timed(path, models, shapes, plan)
  found = []
  for name, model in models.items():
    points = [dict(count, **times[name])
              for count, times in zip(counts[name], timed)]
    found.append(dict(
        name=name, points=points, model=catalog.title(
            catalog.describe(model, configs[name].model.name)),
        exponents={key: exponents([p['patches'] for p in points],
                                  [p[key] for p in points])
                   for key in ('multiply_adds', 'seconds')}))
  return dict(device=jax.devices()[0].device_kind,
              dtype=settings.dtype_on(plan.platform), networks=found)


def exponents(patches: Sequence[float],
              costs: Sequence[float]) -> dict[str, float]:
  """Returns the exponents a of costs that grow with S^a.

  Args:
    patches: the numbers S, ascending.
    costs: a cost for each.

  Returns:
    {'all': the slope of a line through all points with logarithmic axes,
    'last': that between the last two}.
  """
  x, y = np.log(patches), np.log(costs)
  return dict(all=float(np.polyfit(x, y, 1)[0]),
              last=float((y[-1] - y[-2]) / (x[-1] - x[-2])))


def show(found: Mapping[str, Any]) -> None:
  """Prints what `run` returned."""
  points = [network['points'] for network in found['networks']]
  columns = [heading for network in found['networks'] for heading in (
      f'{network["name"]} GMACs', 'of S^2', 'ms')]
  rows = [(first['size'], first['patches'], *(
      cell for p in (first, *others) for cell in (
          f'{p["multiply_adds"] / 1e9:.4g}',
          f'{p["quadratic"] / p["multiply_adds"]:.1%}',
          f'{p["seconds"] * 1e3:.3g}')))
          for first, *others in zip(*points)]
  for key, title in (('all', 'exponent of S'), ('last', 'of the last two')):
    rows.append((title, '', *(
        cell for network in found['networks'] for cell in (
            f'{network["exponents"]["multiply_adds"][key]:.2f}', '',
            f'{network["exponents"]["seconds"][key]:.2f}'))))
  tables.show(tables.make(
      rows, ('image', 'S', *columns),
      title='Forward pass of one image: '
      + '; '.join(network['model'] for network in found['networks']),
      caption=f'{found["device"]}, {found["dtype"]}. All widths are fixed, D_S '
      "too. Of a ViT's products, only those of queries with keys and of "
      'weights with values grow with S^2.'))


def draw(found: Mapping[str, Any]) -> figures.Figure:
  """Returns a figure of what `run` returned: cost against S, both logarithmic.

  Lines are multiply-adds, markers are times; both are relative to the smallest
  image, so that a line and its markers can be compared.
  """
  figure, ((axes,),) = figures.grid()
  for number, network in enumerate(found['networks']):
    points, exponents_ = network['points'], network['exponents']
    x = [p['patches'] for p in points]
    settings = dict(color=figures.PALETTE[number])
    for key, label, style in (
        ('multiply_adds', 'multiply-adds', '-'),
        ('seconds', 'time', figures.MARKERS[number])):
      axes.plot(x, [p[key] / points[0][key] for p in points], style,
                label=f'{network["name"]}, {label}: '
                f'$S^{{{exponents_[key]["all"]:.2f}}}$', **settings)
  axes.plot(x, [(s / x[0]) ** 2 for s in x], ':', color=figures.GREY,
            label='$S^2$, for comparison')
  axes.set(xscale='log', yscale='log', xlabel='number of patches S',
           ylabel=f'cost of an image, relative to S = {x[0]}')
  axes.set_xticks(x, [f'{s:,}' for s in x])
  axes.set_xticks([], minor=True)
  axes.grid(True)
  axes.legend()
  return figure


def _shapes(base: tuple[int, int],
            sizes: Sequence[int | str]) -> list[tuple[int, int]]:
  """Returns (height, width) of the images to measure, by number of patches."""
  if not sizes:
    height, width = base
    return [(height * 2**(i // 2), width * 2**(-(-i // 2)))
            for i in range(_DOUBLINGS + 1)]
  sides = sorted({int(size) for size in sizes if str(size).isdigit()})
  if len(sides) < max(2, len(sizes)):
    raise errors.UserError(
        '--sizes: expected at least two different image sizes in pixels, such '
        f'as --sizes=32,64,128, got {",".join(map(str, sizes))!r}')
  return [(side, side) for side in sides]


def _counted(model: interface.Model, shape: tuple[int, int]) -> dict[str, Any]:
  """Returns 'size', 'patches', 'multiply_adds' and 'quadratic' of an image."""
  height, width = shape
  # Of a S^2 + b S + c at S, 2 S and 3 S, the second difference is 2 a S^2.
  one, two, three = (model.multiply_adds((height, times * width))
                     for times in (1, 2, 3))
  return dict(size=f'{height}x{width}',
              patches=grid.tokens(shape, model.patch_size), multiply_adds=one,
              quadratic=(three - 2 * two + one) // 2)


def _timed(path: str, models: Mapping[str, interface.Model],
           shapes: Sequence[tuple[int, int]], plan: sharding.Plan
           ) -> list[dict[str, dict[str, Any]]]:
  """Returns {name: {'batch_size', 'seconds'}} for each image size.

  A size that was measured before is not measured again.
  """
  file = os.path.join(path, _FILE)
  where = json.loads(json.dumps(dict(   # as JSON has it
      device=jax.devices()[0].device_kind, devices=plan.mesh.size,
      models={name: [str(model.dtype), catalog.describe(model)]
              for name, model in models.items()})))
  kept = files.read_json(file) or {}
  done = kept['done'] if kept.get('where') == where else {}
  most, out = max(map(math.prod, shapes)), []
  for shape in shapes:
    batch_size = plan.parts * min(_LARGEST_BATCH, most // math.prod(shape))
    key = f'{batch_size} x {shape[0]}x{shape[1]}'
    if key not in done:
      log.info('complexity  %s', key)
      done[key] = _measured(models, shape, batch_size, plan)
      epath.Path(path).mkdir(parents=True, exist_ok=True)
      workdir.write_json(file, dict(where=where, done=done))
    out.append(done[key])
  return out


def _measured(models: Mapping[str, interface.Model], shape: tuple[int, int],
              batch_size: int, plan: sharding.Plan
              ) -> dict[str, dict[str, Any]]:
  """Returns {name: {'batch_size', 'seconds' of one image}}."""
  candidates = []
  for name, model in models.items():
    images, _ = step_speed.images_and_labels(
        batch_size, shape, model.in_channels, model.num_classes)
    candidates.append(step_speed.Candidate(
        name, step_speed.inference(model, images=images, plan=plan)))
  for one in candidates * 2:   # the first call compiles
    one.run()
  for turn in step_speed.in_turn(candidates, rounds=_ROUNDS, seconds=_SECONDS):
    for one in turn:
      began = time.perf_counter()
      one.run()
      one.seconds.append(time.perf_counter() - began)
  return {one.name: dict(
      batch_size=batch_size,
      seconds=float(np.median(one.seconds)) / batch_size)
          for one in candidates}
