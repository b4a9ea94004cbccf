"""Measures the input, a training step or a forward pass, beside other code's;
asks XLA about a training step on a TPU that is not here.

  python -m mixer.benchmark input --config=configs/mixer_b16.py \\
    --config.data.dir=DIR --compare=big_vision,pillow --peers=DIR
  python -m mixer.benchmark train --model=Mixer-B/16 --batch_size=16
  python -m mixer.benchmark infer --config=configs/mixer_b16.py \\
    --config.run.batch_size=16 --compare=big_vision,vision_transformer \\
    --peers=DIR

`input` reads the config's data: training and evaluation images a second,
beside the decoding alone (the same files and crops, nothing after), which no
pipeline can beat. --peers is a directory of checkouts under their repository
names (big_vision, vision_transformer, pytorch-image-models). The last line is
one JSON object.

  python -m mixer.benchmark tpu --topology=v3:2x2 --model=Mixer-B/16 \\
    --batch_size=64

`tpu` compiles the step for a TPU slice by libtpu, --batch_size images a device
(of v2 and v3 a core, else a chip; a config's run.batch_size is that of all
devices), and prints the compiler's own estimate of
its time, operations, bytes accessed and memory. Nothing is measured.
"""
import json
import os
import sys

from absl import flags
from ml_collections import config_flags
from rich import console as consoles
from rich import table as tables

from mixer.core import command
from mixer.core import errors

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Takes model, batch and image size from a config.')
_MODEL = flags.DEFINE_string('model', 'Mixer-B/16', 'A network by its name.')
_BATCH = flags.DEFINE_integer('batch_size', 16, 'Images a step.', 1)
_IMAGE = flags.DEFINE_integer('image_size', 224, 'Side in pixels.', 1)
_PRECISION = flags.DEFINE_enum('precision', None, ['float32', 'bfloat16'],
                               'Of the computation; by default float32 on a '
                               'CPU, bfloat16 elsewhere.')
_COMPARE = flags.DEFINE_list('compare', [], 'Peers: big_vision, '
                             'vision_transformer, timm, timm_compiled; of '
                             'input: big_vision, pillow.')
_PEERS = flags.DEFINE_string('peers', None, 'Where their checkouts lie.')
_ROUNDS = flags.DEFINE_integer('rounds', 15, 'Repeats, at most.', 1)
_SECONDS = flags.DEFINE_integer('seconds', 150, 'No repeat begins later.', 1)
_IMAGES = flags.DEFINE_integer('images', 1024, 'Of a repeat of input.', 1)
_TOPOLOGY = flags.DEFINE_string('topology', 'v3:2x2', 'Of tpu: chips, as '
                                'GENERATION:CHIPSxCHIPS.')
_SHARDING = flags.DEFINE_enum('sharding', 'replicate', ['replicate', 'fsdp'],
                              'Of tpu: how the state lies on the devices.')
MODES = ('input', 'train', 'infer', 'tpu')
_TIMED = ('input', 'train', 'infer')
_NETWORK = ('train', 'infer', 'tpu')
_READ_BY = dict(   # modes, by flag; the config is for all
    topology=('tpu',), sharding=('tpu',), images=('input',), compare=_TIMED,
    peers=_TIMED, rounds=_TIMED, seconds=_TIMED, model=_NETWORK,
    batch_size=_NETWORK, image_size=_NETWORK, precision=_NETWORK)
_MOST_INPUT = 256   # images of a batch, when only the input is timed


def main(argv):
  if len(argv) != 2 or argv[1] not in MODES:
    raise errors.UserError(f'expected one mode, {" or ".join(MODES)}, got '
                           f'{" ".join(argv[1:]) or "none"}')
  mode = argv[1]
  for flag, modes in _READ_BY.items():
    if flags.FLAGS[flag].present and mode not in modes:
      raise errors.UserError(f'--{flag}: of {" and ".join(modes)} only, not of '
                             f'{mode}; leave it out')
  if mode == 'input':
    _input()
    return
  if _CONFIG.value is not None:
    given = [f for f in ('model', 'batch_size', 'image_size')
             if flags.FLAGS[f].present]
    if given:
      raise errors.UserError(f'--{given[0]}: the config has it; set it there, '
                             'as in --config.run.batch_size=16')
  if mode == 'tpu':
    _tpu()
    return
  # PyTorch needs some of a GPU's memory, of which JAX would take most.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  from mixer.analysis import peers
  from mixer.analysis import step_speed
  from mixer.training import sharding
  model, batch_size, image_size = _subject()
  plan = sharding.plan()
  if batch_size % plan.parts:
    raise errors.UserError(f'--batch_size: {batch_size} images do not divide '
                           f'over {plan.parts} devices')
  images, labels = step_speed.images_and_labels(
      batch_size, image_size, model.in_channels, model.num_classes)
  ours = (step_speed.training(model, images=images, labels=labels, plan=plan)
          if mode == 'train' else
          step_speed.inference(model, images=images, plan=plan))
  candidates = [step_speed.Candidate('mixer', ours)]
  for name in _COMPARE.value:
    candidates.append(step_speed.Candidate(name, peers.make(
        name, mode, model, _PEERS.value, images, labels)))
  dtype = str(model.dtype)
  peaks = step_speed.measure(candidates, dtype=dtype, rounds=_ROUNDS.value,
                             seconds=_SECONDS.value)
  out = step_speed.report(mode, model, candidates, peaks, dtype=dtype,
                          batch_size=batch_size, image_size=image_size)
  _show(out)
  print(json.dumps(out))


def _input():
  """The pipelines of --config."""
  if _CONFIG.value is None:
    raise errors.UserError('--config: input is measured on the data of a '
                           'config, such as --config=configs/mixer_b16.py')
  from mixer.analysis import input_speed
  from mixer.evaluation import suite
  from mixer.training import settings
  config = _CONFIG.value
  data, evals, _ = suite.open_splits(
      config, settings.Settings(**config.run).image_size)
  if data.resident is not None:
    raise errors.UserError(
        f'data.name: {config.data.name} lives on the device, where its input '
        'costs nothing; give a set that is decoded on the host')
  if not evals:
    raise errors.UserError('evals: the config evaluates nothing')
  held_out = evals.get('validation') or next(iter(evals.values()))
  out = input_speed.measure(
      data, held_out, batch_size=min(config.run.batch_size, _MOST_INPUT),
      images=_IMAGES.value, rounds=_ROUNDS.value, seconds=_SECONDS.value,
      compare=_COMPARE.value, directory=_PEERS.value)
  table = tables.Table(title=f'input, batch {out["batch_size"]}, '
                       f'{out["threads"]} threads, {out["rounds"]} rounds')
  for name in ('', 'images/s', 'of the decoding alone', 'ours over theirs'):
    table.add_column(name, justify='right' if name else 'left')
  row = lambda name, key, *more: table.add_row(
      name, f'{out[key + "_images_per_second"]:,.0f}', *more)
  row('training', 'train', f'{out["train_of_decode"]:.1%}')
  row('decoding alone', 'decode')
  row('evaluation', 'eval', f'{out["eval_of_decode"]:.1%}')
  row('decoding alone', 'eval_decode')
  for name, peer in out['peers'].items():
    table.add_row(name, f'{peer["images_per_second"]:,.0f}', '',
                  f'{peer["ratio"]:.2f}')
  consoles.Console(file=sys.stdout).print(table)
  low, high = min(out['memory_bytes']), max(out['memory_bytes'])
  print(f'resident memory {low / 2**20:,.0f} to {high / 2**20:,.0f} MiB')
  print(json.dumps(out))


def _tpu():
  """What XLA says of our training step."""
  import jax
  jax.config.update('jax_platforms', 'cpu')
  from mixer.analysis import compiled_step
  from mixer.analysis import step_speed
  from mixer.models.grid import pair
  from mixer.training import sharding
  devices = compiled_step.tpu_devices(_TOPOLOGY.value)
  plan = sharding.plan(strategy=_SHARDING.value, devices=devices)
  model, batch_size, image_size = _subject('bfloat16')
  name = _MODEL.value
  if _CONFIG.value is not None:   # whose batch is that of all devices
    name = _CONFIG.value.model.name
    if batch_size % plan.parts:
      raise errors.UserError(f'--config.run.batch_size: {batch_size} images do '
                             f'not divide over {plan.parts} devices')
    batch_size //= plan.parts
  optimizer, step = step_speed.make_step(model)
  program = compiled_step.train_step(
      step, model, optimizer, plan, batch_size=batch_size * plan.parts,
      image_size=pair(image_size))
  cost, memory = program.cost(), program.bytes()
  out = dict(mode='tpu', model=name, topology=_TOPOLOGY.value,
             devices=len(devices), device=devices[0].device_kind,
             dtype=str(model.dtype), batch_size=batch_size,
             sharding=_SHARDING.value, **cost, memory=memory,
             compile_seconds=program.seconds,
             images_per_second=cost['seconds'] and (   # not known of all TPUs
                 batch_size * plan.parts / cost['seconds']))
  table = tables.Table(
      title=f'{name}, {batch_size} images a device, {model.dtype}, '
      f"{len(devices)} x {devices[0].device_kind}: XLA's estimate")
  for name in ('a step', 'images/s a device', 'TFLOPs', 'GB accessed',
               'temporaries, GiB', 'together, GiB'):
    table.add_column(name, justify='right')
  table.add_row(
      *(('unknown', '') if cost['seconds'] is None else (
          f'{cost["seconds"] * 1e3:.1f} ms',
          f'{batch_size / cost["seconds"]:,.0f}')),
      f'{cost["flops"] / 1e12:.2f}', f'{cost["bytes_accessed"] / 1e9:.1f}',
      *(f'{memory[k] / 2**30:.2f}' for k in ('temporaries', 'total')))
  consoles.Console(file=sys.stdout).print(table)
  print(json.dumps(out))


def _subject(precision=None):
  """(model, batch size, image size) of the flags."""
  from mixer import models
  from mixer.analysis import planning
  from mixer.training import settings as settings_lib
  if _CONFIG.value is None:
    settings = settings_lib.Settings(batch_size=_BATCH.value, total_steps=1,
                            image_size=_IMAGE.value,
                            precision=_PRECISION.value or precision)
    model = models.create(_MODEL.value, dtype=settings.dtype)
  else:
    section = dict(_CONFIG.value.run, total_steps=1, total_epochs=None)
    section['precision'] = _PRECISION.value or section['precision'] or precision
    settings = settings_lib.Settings(**section)
    model = planning.make_model(_CONFIG.value, settings)
  return model, settings.batch_size, settings.image_size


def _show(out):
  table = tables.Table(title=f'{out["mode"]}, batch {out["batch_size"]}, '
                       f'{out["dtype"]}, {out["devices"]} x {out["device"]}')
  for name in ('', 'images/s', 'of the peak', 'ours over theirs'):
    table.add_column(name, justify='right' if name else 'left')
  table.add_row('mixer', f'{out["images_per_second"]:.2f}',
                f'{out["utilisation"]:.1%}', '')
  for name, peer in out['peers'].items():
    low, high = peer['ratio_range']
    table.add_row(name, f'{peer["images_per_second"]:.2f}',
                  f'{peer["utilisation"]:.1%}',
                  f'{peer["ratio"]:.2f} ({low:.2f} to {high:.2f})')
  consoles.Console(file=sys.stdout).print(table)


if __name__ == '__main__':
  command.run(main, positional=1)
