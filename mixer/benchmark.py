"""Measures the speed of data input, training or inference, beside other code.

  python -m mixer.benchmark input --config=configs/mixer_b16.py \\
    --config.data.dir=DIR --compare=big_vision,pillow --peers=DIR
  python -m mixer.benchmark train --model=Mixer-B/16 --batch_size=16
  python -m mixer.benchmark infer --config=configs/mixer_b16.py \\
    --config.run.batch_size=16 --compare=big_vision,vision_transformer \\
    --peers=DIR
  python -m mixer.benchmark tpu --topology=v3:2x2 --model=Mixer-B/16 \\
    --batch_size=64 --pass=forward

input: images per second of the config's training and evaluation pipelines,
beside decoding alone: the same files and crops, decoded and thrown away, which
no pipeline can beat.

train, infer: images per second of a training step or of a forward pass on the
devices of this machine, and the share of the peak of matrix products that is
measured in the same run.

tpu: the training step, or with --pass=forward a forward pass, compiled for a
TPU slice, without a TPU: the cycles that the compiler expects each op to take,
the time at the TPU's clock, and memory. Needs libtpu. BENCHMARKS.md has such
estimates beside measured speeds. --compare compiles big_vision's and
vision_transformer's networks in the same way, in float32, which is what they
compute in. --batch_size counts the images of one device: a core of v2 and v3,
a chip of later generations. The run.batch_size of a config counts those of all
devices, as does images_per_second of the last line.

--compare measures other projects in the same rounds. --peers is the directory
of their checkouts, named as their repositories: big_vision, vision_transformer,
pytorch-image-models. Everything is repeated in alternation, and figures are
medians. The last line is one JSON object.
"""
from collections.abc import Sequence
import json
import os
from typing import Any
from typing import TYPE_CHECKING

from absl import flags
from ml_collections import config_flags

from mixer.core import command
from mixer.core import errors
from mixer.core import tables

if TYPE_CHECKING:
  from mixer.models import interface

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file in configs/, with its argument after a colon. '
    'Gives the network, the batch and the image size. input: gives the data.')
_MODEL = flags.DEFINE_string('model', 'Mixer-B/16', 'Name of a network.')
_BATCH = flags.DEFINE_integer(
    'batch_size', 16, 'Images in a step. tpu: images per device.', 1)
_IMAGE = flags.DEFINE_integer('image_size', 224, 'Side of an image in pixels.',
                              1)
_PRECISION = flags.DEFINE_enum(
    'precision', None, ['float32', 'bfloat16'], 'Precision of the computation. '
    'The default is float32 on a CPU and bfloat16 elsewhere.')
_COMPARE = flags.DEFINE_list(
    'compare', [], 'Other projects to measure. train and infer: big_vision, '
    'vision_transformer, timm, timm_compiled. tpu: big_vision, '
    'vision_transformer. input: big_vision, pillow.')
_PEERS = flags.DEFINE_string(
    'peers', None, 'Directory that holds the checkouts for --compare.')
_ROUNDS = flags.DEFINE_integer('rounds', 15, 'Largest number of rounds.', 1)
_SECONDS = flags.DEFINE_integer(
    'seconds', 150, 'No round begins after this many seconds, except the first '
    'three.', 1)
_IMAGES = flags.DEFINE_integer(
    'images', 1024, 'input: images in a round, about.', 1)
_TOPOLOGY = flags.DEFINE_string(
    'topology', 'v3:2x2', 'tpu: slice to compile for, as '
    'GENERATION:CHIPSxCHIPS.')
_PASS = flags.DEFINE_enum(
    'pass', 'train', ['train', 'forward'], 'tpu: what is compiled.')
_SHARDING = flags.DEFINE_enum(
    'sharding', 'replicate', ['replicate', 'fsdp'], 'tpu: whether each device '
    'holds the whole state or a part of it.')
# The flags that a mode reads, besides --config.
_NETWORK = (_MODEL, _BATCH, _IMAGE, _PRECISION)
_MEASURED = (_COMPARE, _PEERS, _ROUNDS, _SECONDS)
_MODES = dict(input=(_IMAGES, *_MEASURED), train=(*_NETWORK, *_MEASURED),
              infer=(*_NETWORK, *_MEASURED),
              tpu=(*_NETWORK, _TOPOLOGY, _SHARDING, _PASS, _COMPARE, _PEERS))
# The sections of a config, and single keys, that each mode reads.
_SIZES = ('run.batch_size', 'run.image_size', 'run.image_width')
_READ = dict.fromkeys(_MODES, (
    'model', 'data.name', 'data.split', 'data.dir', 'data.access', *_SIZES,
    'run.precision')) | dict(input=('data', 'evals', 'fewshot', *_SIZES))
# `input` caps the batch of a config: a round has three batches at least, so a
# batch of thousands would make it much longer than --images asks.
_LARGEST_INPUT_BATCH = 256


def main(argv: Sequence[str]) -> None:
  """Runs one mode; prints a table, then one JSON object."""
  if len(argv) != 2 or argv[1] not in _MODES:
    raise errors.UserError(f'expected one mode, {" or ".join(_MODES)}, got '
                           f'{" ".join(argv[1:]) or "none"}')
  mode = argv[1]
  _check_flags(mode)
  if mode == 'input':
    out = _input()
  elif mode == 'tpu':
    out = _tpu()
  else:
    out = _timed(mode)
  print(json.dumps(out))


def _check_flags(mode: str) -> None:
  """Refuses flags that the mode, or a config, makes meaningless."""
  readers: dict[str, list[str]] = {}
  for other, read in _MODES.items():
    for flag in read:
      readers.setdefault(flag.name, []).append(other)
  for name, modes in readers.items():
    if flags.FLAGS[name].present and mode not in modes:
      raise errors.UserError(f'--{name}: is for {" and ".join(modes)} only, '
                             f'not for {mode}; leave it out')
  if mode == 'input' and _CONFIG.value is None:
    raise errors.UserError('--config is required by input, which reads its '
                           'data, such as --config=configs/mixer_b16.py')
  if mode != 'input' and _CONFIG.value is not None:
    for flag, key in ((_MODEL, 'model.name'), (_BATCH, 'run.batch_size'),
                      (_IMAGE, 'run.image_size')):
      if flag.present:
        raise errors.UserError(
            f'--{flag.name}: got a --config as well, which sets it; use '
            f'--config.{key}={flag.value} instead')
  given = {} if _CONFIG.value is None else config_flags.get_override_values(
      flags.FLAGS['config'])
  for key, value in given.items():
    if not {key, key.partition('.')[0]} & {*_READ[mode]}:
      raise errors.UserError(
          f'--config.{key}: {mode} does not read it, of a config only '
          f'{", ".join(_READ[mode])}; ' + (
              f'give --sharding={value} instead'
              if (mode, key) == ('tpu', 'sharding.strategy') else
              'leave it out'))
  if mode == 'tpu' and _PASS.value == 'forward' and (
      _SHARDING.value != _SHARDING.default):
    raise errors.UserError(
        f'--sharding: {_SHARDING.value} is for --pass=train only; a forward '
        'pass is compiled with the parameters on every device')


def _input() -> dict[str, Any]:
  """Measures the pipelines of --config."""
  from mixer.analysis import input_speed
  config = _CONFIG.value
  out = input_speed.measure(
      *input_speed.opened(config),
      batch_size=min(config.run.batch_size, _LARGEST_INPUT_BATCH),
      images=_IMAGES.value, rounds=_ROUNDS.value, seconds=_SECONDS.value,
      compare=_COMPARE.value, directory=_PEERS.value)
  row = lambda name, key, *more: (
      name, f'{out[key + "_images_per_second"]:,.0f}', *more)
  low, high = (f(out['memory_bytes']) / 2**20 for f in (min, max))
  tables.show(tables.make(
      [row('training', 'train', f'{out["train_of_decode"]:.1%}', ''),
       row('decoding alone', 'decode', '', ''),
       row('evaluation', 'eval', f'{out["eval_of_decode"]:.1%}', ''),
       row('decoding alone', 'eval_decode', '', ''),
       *((name, f'{peer["images_per_second"]:,.0f}', '', f'{peer["ratio"]:.2f}')
         for name, peer in out['peers'].items())],
      ('', 'images/s', 'of decoding alone', 'ours / theirs'),
      title=f'input, batch {out["batch_size"]}, {out["threads"]} threads, '
      f'{out["rounds"]} rounds',
      caption=f'resident memory {low:,.0f} to {high:,.0f} MiB'))
  return out


def _timed(mode: str) -> dict[str, Any]:
  """Measures a training step or a forward pass on this machine."""
  # PyTorch needs some of a GPU's memory, and JAX would take most of it.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  from mixer.analysis import peers
  from mixer.analysis import step_speed
  from mixer.training import sharding
  plan = sharding.plan()
  if _COMPARE.value and plan.mesh.size > 1 and plan.platform != 'cpu':
    raise errors.UserError(
        f'--compare: the others use one device, and {plan.mesh.size} are '
        'visible; start the command with one, on NVIDIA GPUs by '
        'CUDA_VISIBLE_DEVICES=0')
  name, model, batch_size, image_size = _network(plan.platform)
  if batch_size % plan.parts:
    flag = 'batch_size' if _CONFIG.value is None else 'config.run.batch_size'
    raise errors.UserError(f'--{flag}: {batch_size} images do not divide over '
                           f'{plan.parts} devices')
  images, labels = step_speed.images_and_labels(
      batch_size, image_size, model.in_channels, model.num_classes)
  ours = (step_speed.training(model, images=images, labels=labels, plan=plan)
          if mode == 'train' else
          step_speed.inference(model, images=images, plan=plan))
  candidates = [step_speed.Candidate('mixer', ours)]
  for other in _COMPARE.value:
    candidates.append(step_speed.Candidate(other, peers.make(
        other, mode, model, _PEERS.value, images, labels)))
  dtype = str(model.dtype)
  peaks = step_speed.measure(candidates, dtype=dtype, rounds=_ROUNDS.value,
                             seconds=_SECONDS.value)
  out = dict(model=name, **step_speed.report(
      mode, model, candidates, peaks, dtype=dtype, batch_size=batch_size,
      image_size=image_size))
  rows = [('mixer', f'{out["images_per_second"]:.2f}',
           f'{out["utilisation"]:.1%}', '')]
  for other, peer in out['peers'].items():
    low, high = peer['ratio_range']
    rows.append((other, f'{peer["images_per_second"]:.2f}',
                 f'{peer["utilisation"]:.1%}',
                 f'{peer["ratio"]:.2f} ({low:.2f} to {high:.2f})'))
  tables.show(tables.make(
      rows, ('', 'images/s', 'of the peak', 'ours / theirs'),
      title=f'{name}, {mode}, batch {batch_size}, {dtype}, {out["devices"]} x '
      f'{out["device"]}'))
  return out


def _tpu() -> dict[str, Any]:
  """Compiles for a TPU slice and shows what the compiler expects."""
  import jax
  jax.config.update('jax_platforms', 'cpu')
  from mixer.analysis import compiled_step
  from mixer.analysis import peers
  from mixer.analysis import tpu_speed
  from mixer.training import sharding
  plan = sharding.plan(strategy=_SHARDING.value,
                       devices=compiled_step.tpu_devices(_TOPOLOGY.value))
  name, model, batch_size, image_size = _network(plan.platform)
  if _CONFIG.value is not None:
    if batch_size % plan.parts:
      raise errors.UserError(f'--config.run.batch_size: {batch_size} images do '
                             f'not divide over {plan.parts} devices')
    batch_size //= plan.parts
  out = tpu_speed.estimate(
      name, model, plan, topology=_TOPOLOGY.value, batch_size=batch_size,
      image_size=image_size, what=_PASS.value, others={
          other: peers.flax_network(other, _PASS.value, model, _PEERS.value)
          for other in _COMPARE.value})
  tpu_speed.show(out)
  return out


def _network(platform: str
             ) -> 'tuple[str, interface.Model, int, int | tuple[int, int]]':
  """Returns the network that the flags ask for: name, model, batch, image size.

  Args:
    platform: the platform of the devices, as `sharding.Plan.platform`.
  """
  from mixer import models
  from mixer.analysis import data_sizes
  from mixer.training import assembly
  from mixer.training import settings
  given: dict[str, Any] = dict(
      batch_size=_BATCH.value, image_size=_IMAGE.value)
  if _CONFIG.value is not None:
    given = dict(_CONFIG.value.run)
  given.update(   # the length does not matter, but a run has one
      total_steps=1, total_epochs=None,
      precision=_PRECISION.value or given.get('precision'))
  chosen = settings.Settings(**given)
  if _CONFIG.value is None:
    name = _MODEL.value
    model = models.create(name, dtype=chosen.dtype_on(platform),
                          platform=platform)
  else:
    config, name = _CONFIG.value, _CONFIG.value.model.name
    data = data_sizes.size(
        config.data.name, config.data.split, data_dir=config.data.dir,
        access=config.data.access)
    # Images are not augmented, so they may have any number of channels.
    config = config.copy_and_resolve_references()
    config.augment.randaugment_layers = 0
    model = assembly.make_model(config, chosen, data, platform)
  return name, model, chosen.batch_size, chosen.image_size


if __name__ == '__main__':
  command.run(main, positional=1)
