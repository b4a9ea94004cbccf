"""Says what a run will take, before anything is rented or allocated.

  python -m mixer.plan --config=configs/mixer_h14.py:jft --devices=8
  python -m mixer.plan --config=configs/mixer_b16.py --topology=v3:4x4 \\
    --config.data.dir=DIR --config.sharding.strategy=fsdp

Parameters and operations by formula; steps; the memory of one device, from the
training step compiled ahead of time; device-hours at a stated share of an
accelerator's peak, beside the paper's; and whether the data, labels and weights
that the config names are there.

With --topology (chips: v2 to v6e, such as v3:2x2, v4:2x2x1, v5e:4x4) the step
is compiled for that TPU, by libtpu, which needs no TPU; what does not fit there
is told. Without, CPU devices stand for others, and memory is an upper estimate.
The exit code is 0 also where data is missing: the report has a row for it.
"""
import json
import sys

from absl import flags
from ml_collections import config_flags

from mixer.core import accelerators
from mixer.core import command
from mixer.core import errors

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file in configs/, and after a colon its argument; '
    '--config.SECTION.KEY=VALUE changes a setting.', lock_config=True)
_DEVICES = flags.DEFINE_integer(
    'devices', None, 'How many: of a topology the first, by default all; '
    'without one CPU devices that stand for others, by default one.', 1, 512)
_TOPOLOGY = flags.DEFINE_string('topology', None, 'A TPU slice to compile for, '
                                'as GENERATION:CHIPSxCHIPS; needs libtpu.')
_ACCELERATOR = flags.DEFINE_string(
    'accelerator', None, 'Whose memory and peak are meant: '
    f"{' '.join(accelerators.ACCELERATORS)}; by default the topology's, else "
    'v3.')
_UTILISATION = flags.DEFINE_float('utilisation', 0.4, 'Share of the peak that '
                                  'device-hours are reckoned with.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Checked to be writable.')
_JSON = flags.DEFINE_string('json', None, 'File for the plan.')


def main(argv):
  del argv
  if _CONFIG.value is None:
    raise errors.UserError('--config is required, such as '
                           '--config=configs/mixer_b16.py')
  command.one_length(_CONFIG.value.run)
  import jax
  jax.config.update('jax_platforms', 'cpu')   # which stands for others
  jax.config.update('jax_num_cpu_devices', _DEVICES.value or 1)
  from mixer.analysis import planning
  found = planning.plan(
      _CONFIG.value, topology=_TOPOLOGY.value, devices=_DEVICES.value,
      accelerator=_ACCELERATOR.value, utilisation=_UTILISATION.value,
      workdir=_WORKDIR.value)
  _show(found, planning.remedies(found['memory']))
  if _JSON.value:
    with open(_JSON.value, 'w') as f:
      f.write(json.dumps(found, indent=2) + '\n')


def _show(found, remedies):
  """Tables for people."""
  from rich import box
  from rich import console
  from rich import table
  from rich import text
  out = console.Console(width=None if sys.stdout.isatty() else 100)

  def show(title, rows):
    made = table.Table(box=box.SIMPLE, title=title, title_justify='left',
                       show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow='fold')
    for name, value in rows:
      made.add_row(name, value if isinstance(value, text.Text)
                   else text.Text(str(value)))
    out.print(made)

  m, r, t, x = (found[k] for k in ('model', 'run', 'time', 'xla'))
  epochs = '' if r['epochs'] is None else f', {r["epochs"]:,.1f} epochs'
  show(f'{m["name"]}', [
      ('parameters', f'{m["parameters"]:,}'),
      ('an image', f'{m["forward_flops"] / 1e9:,.3g} GFLOPs forward, '
       f'{m["training_flops"] / 1e9:,.3g} in training'),
      ('run', f'{r["steps"]:,} steps of {r["batch_size"]:,} images{epochs}, '
       f'{r["precision"]}')])
  show(*_memory(found['memory'], remedies, text))
  hours = [
      ('at a utilisation of', f'{t["utilisation"]:.0%} of '
       f'{t["peak_flops_per_second"] / 1e12:,.1f} TFLOP/s a device in '
       f'{t["peak_precision"]}: an assumption'),
      ('device-hours', _hours(t['device_hours'])
       + (', a device being a core, half a chip'
          if t['devices_per_chip'] == 2 else '')),
      (f'on {t["devices"]} device' + ('' if t['devices'] == 1 else 's'),
       f'{_duration(t["hours"])}, '
       f'{t["images_per_second"]:,.0f} images/s')]
  if 'xla_device_hours' in t:
    hours.append(("by XLA's estimate", f'{_hours(t["xla_device_hours"])} '
                  f'device-hours, {x["seconds"] * 1e3:,.1f} ms a step'))
  if t['paper_core_days']:
    days = f'{t["paper_core_days"]:,} TPUv3 core-days'
    own = t['device_hours'] / 24
    hours.append(('the paper', days + (
        f'; this plan has {own:,.0f}' if t['accelerator'] == 'v3' else '')))
  show(f'time on {t["accelerator"]}', hours)
  told, rows = set(), []
  for row in found['preflight']:
    missing = 'missing, as above' if row['remedy'] in told else row['remedy']
    told.add(row['remedy'])
    rows.append((row['what'], text.Text.assemble(
        row['value'], ': ', ('there', 'green') if row['found']
        else (missing, 'red'))))
  show('preflight', rows)


def _memory(memory, remedies, text):
  """(title, rows) of a device's memory."""
  gib = lambda n: f'{n / 2**30:,.2f} GiB' if n >= 2**26 else (
      f'{n / 2**20:,.2f} MiB')
  cut = ', '.join(f'{axis} {n}' for axis, n in memory['layout'].items()
                  if n > 1)
  title = 'memory of ' + ('the device' if memory['devices'] == 1 else
                          f'one of {memory["devices"]} devices')
  title += f' ({memory["strategy"]}' + (f': {cut})' if cut else ')')
  compiled = memory['kind']
  if memory['estimate']:
    compiled = 'a CPU: an upper estimate'
    if accelerators.ACCELERATORS[memory['of']].kind.startswith('TPU v'):
      compiled += ("; a TPU's program holds several times less, which "
                   '--topology tells')
  fits = memory['total'] <= memory['available']
  verdict = f'{gib(memory["total"])} of the {gib(memory["available"])} of '
  verdict += memory['of']
  if fits:
    verdict = text.Text(f'{verdict}: fits', 'green')
  else:
    verdict = text.Text(f'{verdict}: does not fit; try '
                        f'{", ".join(remedies)}', 'red')
  return title, [
      ('compiled for', compiled),
      ('parameters', gib(memory['parameters'])),
      ('optimizer', gib(memory['optimizer'])),
      ('batch', gib(memory['batch'])),
      ('activations and the rest', gib(memory['temporaries'])),
      ('together', verdict)]


def _hours(hours):
  return f'{hours:,.1f}' if hours >= 0.1 else 'under 0.1'


def _duration(hours):
  if hours < 0.1:
    seconds = hours * 3600
    return f'{seconds:,.1f} seconds' if seconds >= 1 else 'under a second'
  return f'{hours:,.1f} hours' if hours < 72 else f'{hours / 24:,.1f} days'


if __name__ == '__main__':
  command.run(main)
