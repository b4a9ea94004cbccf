"""Compares the paper's speeds and costs with estimates of the TPU's compiler.

`mixer.study table --topology` prints them. The ratios show how far the
estimates of other programs can be trusted.
"""
from collections.abc import Collection
from collections.abc import Mapping
import os
import statistics
from typing import Any

from etils import epath

from mixer.analysis import compiled_step
from mixer.analysis import tpu_speed
from mixer.core import errors
from mixer.core import files
from mixer.core import provenance
from mixer.core import tables
from mixer.core import workdir
from mixer.core.log import log
from mixer.models import interface
from mixer.models import published
from mixer.training import sharding

# big_vision's time of B/16's 300 epochs of train[:99%] on 128 cores of v3, with
# evaluations and checkpoints, over the number of steps; 32 images a core.
# Source: its configs/mlp_mixer_i1k.py.
STEP_NAME, STEP_SECONDS = 'Mixer-B/16', (2 * 60 + 11) * 60 / 92_897
# Images of the pre-training data. The paper gives round numbers.
IMAGES = {published.I1K: 1_281_167, published.I21K: 14e6, published.JFT: 300e6}
# The paper rounds to 10 core-days: smaller costs say too little for a median.
LEAST_DAYS = 50
# What the paper's code computes in; a TPU multiplies in bfloat16 all the same.
_DTYPE = 'float32'
_SIZE = 224   # side of the images in pre-training
# Images of one core in prediction at 224 pixels; half as many in training.
_BATCHES = {'S/32': 256, 'B/32': 256, 'S/16': 128, 'L/32': 128, 'B/16': 64,
            'L/16': 32, 'H/14': 16, 'R50x1': 64, 'R152x1': 64, 'R50x2': 32,
            'R152x2': 32, 'R200x3': 16}
_FILE = 'compiled.json'


def run(path: str, topology: str, networks: Mapping[tuple[str, int], Any]
        ) -> dict[str, Any]:
  """Compiles each network's forward pass and training step for a TPU.

  Args:
    path: directory of the experiment. Compiled programs are kept there, so that
      the same command goes on where it was stopped.
    topology: a slice of TPU v3, which the paper measured, such as 'v3:2x2'.
    networks: {(name, image size): makes it for a dtype and a platform}. Those
      of 224 pixels are compiled for training too.

  Returns:
    As `compare`, and 'topology' and 'dtype'.

  Raises:
    UserError: if the slice is not of TPU v3, or libtpu is missing.
  """
  if not topology.startswith('v3:'):
    raise errors.UserError('--topology: expected a slice of TPU v3, which the '
                           f'paper measured, such as v3:2x2, got {topology}')
  plan = sharding.plan(devices=compiled_step.tpu_devices(topology))
  file, now = os.path.join(path, _FILE), provenance.collect(data={})
  kept = files.read_json(file) or {}
  done = kept['done'] if kept.get('topology') == topology else {}
  made = {key: make(dtype=_DTYPE, platform=plan.platform)
          for key, make in networks.items()}
  for other in {provenance.differences(one['code'], now)
                for one in done.values()} - {''}:
    log.warning('table: figures in %s are used as they are, though %s; choose '
                'another --workdir to compile again', file, other)
  for name, size, what in programs(made):
    key = f'{name} {size} {what}'
    if key in done:
      continue
    log.info('table  compiles %s', key)
    batch_size = batch(name, size, what)
    found = tpu_speed.estimate(
        name, made[name, size], plan, topology=topology, batch_size=batch_size,
        image_size=size, what=what, optimizer='adam')
    done[key] = dict(
        code=now, batch_size=batch_size, cycles=found['cycles'],
        speed=batch_size / found['milliseconds'] * 1e3)
    epath.Path(path).mkdir(parents=True, exist_ok=True)
    workdir.write_json(file, dict(topology=topology, done=done))
  return dict(compare(done), topology=topology, dtype=_DTYPE)


def programs(networks: Mapping[tuple[str, int], interface.Model]
             ) -> list[tuple[str, int, str]]:
  """Returns (name, image size, pass) of what is compiled, cheapest first."""
  keys = sorted(networks, key=lambda key: networks[key].forward_flops(key[1]))
  return [*((*key, 'forward') for key in keys),
          *((*key, 'train') for key in keys if key[1] == _SIZE)]


def batch(name: str, size: int, what: str) -> int:
  """Returns the images of one core; the paper kept the best of several."""
  images = _BATCHES[name.partition('-')[2]] // (2 if what == 'train' else 1)
  return images // (size // _SIZE) ** 2


def compare(done: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """Returns the rows of table 3 beside the speeds of compiled programs.

  Args:
    done: {'NAME SIZE PASS': {'speed', in images per second and core}}; rows
      without a forward pass are left out.

  Returns:
    'rows', with 'speed' and 'core_days', each {'paper', 'cycles', 'ratio'}; a
    ratio above 1 means that the cycles promise too much. 'step', the same of
    big_vision's training step, in milliseconds, or None; 'median', of the
    ratios: 'speed', where a network counts once for each image size, and
    'core_days', of LEAST_DAYS and more. 'programs' is `done`.
  """
  speed = lambda *key: done.get(' '.join(map(str, key)), {}).get('speed')
  rows: list[dict[str, Any]] = []
  for row in published.TABLE_3:
    forward = speed(row.name, row.size, 'forward')
    train = speed(row.name, _SIZE, 'train')
    if forward and row.speed and row.epochs:
      days = train and row.epochs * IMAGES[row.data] / train / 86400
      rows.append(dict(
          name=row.name, data=row.data, size=row.size, epochs=row.epochs,
          speed=dict(paper=row.speed, cycles=forward,
                     ratio=forward / row.speed),
          core_days=dict(paper=row.core_days, cycles=days,
                         ratio=days and row.core_days / days)))
  key = STEP_NAME, _SIZE, 'train'
  train, images = speed(*key), batch(*key)
  once = {(row['name'], row['size']): row['speed']['ratio'] for row in rows}
  # Rows of larger images repeat the pre-training of a row of 224 pixels.
  large = {(row['name'], row['data'], row['epochs']): row['core_days']['ratio']
           for row in rows if row['core_days']['paper'] >= LEAST_DAYS}
  return dict(
      rows=rows, programs=done, step=train and dict(
          paper=1e3 * STEP_SECONDS, cycles=1e3 * images / train,
          ratio=STEP_SECONDS * train / images),
      median=dict(speed=_median(once.values()),
                  core_days=_median(large.values())))


def table(found: Mapping[str, Any]) -> Any:
  """Returns the printed table of what `run` returned."""
  cells = lambda one: (
      f'{one["paper"]:,}', *((f'{one["cycles"]:,.0f}', f'{one["ratio"]:.2f}')
                             if one['ratio'] else ('-', '-')))
  say = lambda value: '-' if value is None else f'{value:.2f}'
  step, median = found['step'], found['median']
  return tables.make(
      [(row['name'], row['data'], row['size'], row['epochs'],
        *cells(row['speed']), *cells(row['core_days']))
       for row in found['rows']],
      ('table 3', 'data', 'size', 'epochs', 'img/s', 'expected', 'ratio',
       'days', 'expected\ndays', 'days\nratio'), left=2,
      title='The paper\'s speeds and core-days beside the cycles that XLA '
      f'expects on TPU v3, {found["dtype"]}',
      caption='A ratio above 1: the cycles promise too much. Median ratio of '
      f'the speeds {say(median["speed"])}, of the core-days '
      f'{say(median["core_days"])} (only costs of {LEAST_DAYS} or more, '
      'because the paper rounds to 10).' + (
          f' big_vision\'s training step of {STEP_NAME}: {step["paper"]:.1f} '
          f'ms, by cycles {step["cycles"]:.1f}, ratio {step["ratio"]:.2f}.'
          if step else ''))


def _median(ratios: Collection[float | None]) -> float | None:
  return statistics.median(filter(None, ratios)) if any(ratios) else None
