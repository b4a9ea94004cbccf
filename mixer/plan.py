"""Plans a run before you rent the hardware: size, memory, time and data.

  python -m mixer.plan --config=configs/mixer_h14.py:jft --devices=8
  python -m mixer.plan --config=configs/mixer_b16.py --topology=v3:4x4 \\
    --config.data.dir=DIR --config.sharding.strategy=fsdp

The report has the number of parameters and operations, the steps, the memory of
one device, the device-hours at an assumed share of the accelerator's peak, the
paper's time for the same run, and a check of every data set, label file and
checkpoint that the config names.

With --topology the training step is compiled for that TPU slice. Its memory is
then exact, and the device-hours follow from the cycles that the compiler
expects, if the TPU's clock is known. On v3 they are corrected by how much
longer a measured step took. They leave out communication between devices. This
needs libtpu, but no TPU. A topology counts chips: v3:2x2, v4:2x2x1 or v5e:4x4;
the generations are v2, v3, v4, v5e, v5p and v6e. Without --topology the report
has a lower bound of the memory: parameters, their gradients and the optimizer
state.

Exit codes: 0 even if data is missing, 1 the step does not fit the TPU, 2 wrong
usage or config.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import json
from typing import Any

from absl import flags
from ml_collections import config_flags

from mixer.core import accelerators
from mixer.core import command
from mixer.core import errors
from mixer.core import outputs
from mixer.core import tables

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file in configs/, with its argument after a colon. '
    '--config.SECTION.KEY=VALUE changes a setting.', lock_config=True)
_DEVICES = flags.DEFINE_integer(
    'devices', None, 'Number of devices. With --topology it may be fewer than '
    'the slice has, and the default is all of them; without, the default is 1.',
    1, 512)
_TOPOLOGY = flags.DEFINE_string(
    'topology', None, 'TPU slice to compile for, as GENERATION:CHIPSxCHIPS, '
    'such as v3:2x2. Needs libtpu.')
_ACCELERATOR = flags.DEFINE_string(
    'accelerator', None, 'Accelerator whose memory and peak speed the plan is '
    "compared with. The default is the topology's, or v3. Known: "
    f"{' '.join(accelerators.ACCELERATORS)}.")
_UTILISATION = flags.DEFINE_float(
    'utilisation', None, "Share of the accelerator's peak that the run is "
    "assumed to reach. The default is what the compiler's cycles say with "
    '--topology, and else 0.4.')
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory of the run; the plan checks that it can be '
    'written to.')
_JSON = flags.DEFINE_string('json', None, 'File to write the plan to, as JSON.')

_Rows = list[tuple[Any, ...]]


def main(argv: Sequence[str]) -> None:
  """Plans the run of --config."""
  del argv
  if _CONFIG.value is None:
    raise errors.UserError('--config is required, such as '
                           '--config=configs/mixer_b16.py')
  command.one_length(_CONFIG.value.run)
  outputs.check_file(_JSON.name, _JSON.value)
  import jax
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', _DEVICES.value or 1)
  from mixer.analysis import planning
  found = planning.plan(
      _CONFIG.value, topology=_TOPOLOGY.value, devices=_DEVICES.value,
      accelerator=_ACCELERATOR.value, utilisation=_UTILISATION.value,
      workdir=None if _WORKDIR.value is None else command.folder(
          _WORKDIR.value))
  for title, rows in (
      _run(found), _memory(found['memory'], planning.remedies(found['memory'])),
      _time(found['time'], found['xla']), _preflight(found['preflight'])):
    tables.show(tables.make(rows, title=title))
  if _JSON.value:
    with open(_JSON.value, 'w') as f:
      f.write(json.dumps(found, indent=2) + '\n')


def _run(found: Mapping[str, Any]) -> tuple[str, _Rows]:
  model, run = found['model'], found['run']
  epochs = '' if run['epochs'] is None else f', {run["epochs"]:,.1f} epochs'
  return model['name'], [
      ('parameters', f'{model["parameters"]:,}'),
      ('operations per image', f'{model["forward_flops"] / 1e9:,.3g} GFLOPs '
       f'forward, {model["training_flops"] / 1e9:,.3g} GFLOPs in training'),
      ('run', f'{run["steps"]:,} steps of {run["batch_size"]:,} images{epochs}'
       f', {run["precision"]}')]


def _memory(memory: Mapping[str, Any],
            remedies: Sequence[str]) -> tuple[str, _Rows]:
  mesh = ', '.join(f'{axis} {n}' for axis, n in memory['layout'].items()
                   if n > 1)
  title = 'memory of ' + ('the device' if memory['devices'] == 1 else
                          f'one of {memory["devices"]} devices')
  title += f' ({memory["strategy"]}' + (f': {mesh})' if mesh else ')')
  estimate = memory['estimate']
  held = memory['least' if estimate else 'total']
  verdict = (f'{_bytes(held)} of the {_bytes(memory["available"])} of '
             f'{memory["of"]}: ')
  if held > memory['available']:
    total = tables.styled(
        f'{verdict}does not fit; try {", ".join(remedies)}', 'red')
  elif estimate:
    total = tables.styled(verdict + 'fits, if the activations do', 'yellow')
  else:
    total = tables.styled(verdict + 'fits', 'green')
  rows: _Rows = [('parameters', _bytes(memory['parameters'])),
                 ('optimizer state', _bytes(memory['optimizer']))]
  if estimate:
    tpu = accelerators.ACCELERATORS[memory['of']].kind.startswith('TPU v')
    return title, [
        *rows, ('gradients', _bytes(memory['gradients'])),
        ('activations', 'unknown: they depend on the compiler' + (
            '; give --topology, which needs libtpu' if tpu else '')),
        ('at least', total)]
  return title, [
      ('compiled for', memory['kind']), *rows,
      ('batch', _bytes(memory['batch'])),
      ('activations and the rest', _bytes(memory['temporaries'])),
      ('total', total)]


def _time(time: Mapping[str, Any],
          xla: Mapping[str, Any]) -> tuple[str, _Rows]:
  of_core = ' (a device is a core, half a chip)' if (
      time['devices_per_chip'] == 2) else ''
  rows: _Rows = [
      ('device-hours', f'unknown: the run is in {time["precision"]}, and the '
       f'peak of {time["accelerator"]} is known in {time["peak_precision"]} '
       'only')] if time['hours'] is None else [
      ('assumed utilisation' if time['assumed'] else 'utilisation',
       f'{time["utilisation"]:.0%} of '
       f'{time["peak_flops_per_second"] / 1e12:,.1f} TFLOP/s per device in '
       f'{time["peak_precision"]}'),
      ('device-hours', _hours(time['device_hours']) + of_core),
      (f'on {time["devices"]} device' + ('' if time['devices'] == 1 else 's'),
       f'{_duration(time["hours"])}, '
       f'{time["images_per_second"]:,.0f} images/s')]
  if time['compiled']:
    rows.append(("the compiler's cycles", _compiled(
        time['compiled'], time['accelerator'])))
  if 'xla_device_hours' in time:
    rows.append(("XLA's lower bound", f'{_hours(time["xla_device_hours"])} '
                 f'device-hours, {xla["seconds"] * 1e3:,.1f} ms per step'))
  if time['paper_core_days']:
    days = f'{time["paper_core_days"]:,} TPUv3 core-days'
    rows.append(('the paper', days + (
        f'; this plan: {time["device_hours"] / 24:,.0f}'
        if time['accelerator'] == 'v3' else '')))
  return f'time on {time["accelerator"]}', rows


def _compiled(compiled: Mapping[str, Any], generation: str) -> str:
  """Returns the time of a compiled step, and by what it was corrected."""
  text = f'{compiled["cycles"] / 1e6:,.1f} million per step'
  if compiled['seconds'] is None:
    return f'{text}; the clock of {generation} is not known'
  factor = compiled['correction']
  return f'{text}, {compiled["seconds"] * 1e3:,.1f} ms, ' + (
      f'corrected by {factor}: a measured float32 step of Mixer-B/16 on '
      f'{generation} takes {factor} times its cycles' if factor else
      f'not corrected: no measured step on {generation} is known')


def _preflight(found: Sequence[Mapping[str, Any]]) -> tuple[str, _Rows]:
  explained: set[str] = set()
  rows: _Rows = []
  for row in found:
    # Splits of one data set have the same remedy, which is long.
    missing = ('missing, see above' if row['remedy'] in explained else
               row['remedy'])
    explained.add(row['remedy'])
    rows.append((row['what'], tables.joined(
        row['value'], ': ', tables.styled('found', 'green') if row['found']
        else tables.styled(missing, 'red'))))
  return 'data and files', rows


def _bytes(count: int) -> str:
  return (f'{count / 2**30:,.2f} GiB' if count >= 2**26 else
          f'{count / 2**20:,.2f} MiB')


def _hours(hours: float) -> str:
  return f'{hours:,.1f}' if hours >= 0.1 else 'under 0.1'


def _duration(hours: float) -> str:
  if hours < 0.1:
    seconds = hours * 3600
    return f'{seconds:,.1f} seconds' if seconds >= 1 else 'under a second'
  return f'{hours:,.1f} hours' if hours < 72 else f'{hours / 24:,.1f} days'


if __name__ == '__main__':
  command.run(main)
