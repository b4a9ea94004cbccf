"""`python -m mixer.benchmark`: what it prints, and what it refuses."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

from mixer.models import catalog

ROOT = pathlib.Path(__file__).resolve().parent.parent
SMALL = ('--image_size=32', '--batch_size=4', '--rounds=3', '--seconds=1')
# Runs the command with a stand-in for the compiler and for the TPU slice, so
# that it needs no libtpu; the error stream says what was to be compiled.
TPU = """
import dataclasses, runpy, sys, types
from mixer.analysis import compiled_step
@dataclasses.dataclass(frozen=True)
class Device:
  id: int
  platform: str = 'tpu'
  device_kind: str = 'TPU v3'
  process_index: int = 0
def train_step(step_fn, model, optimizer, plan, **sizes):
  print(model.platform, model.dtype, sizes['batch_size'], file=sys.stderr)
  return types.SimpleNamespace(
      seconds=1.0, bytes=lambda: dict(temporaries=2**30, total=2**31),
      compiled=types.SimpleNamespace(cost_analysis=dict, as_text=lambda: (
          'ENTRY %main () -> f32[] {\\n  ROOT %fusion.1 = f32[8]{0} fusion(%x), '
          'backend_config={"estimated_cycles":"470000000"}')))
compiled_step.train_step = train_step
compiled_step.tpu_devices = lambda topology: [Device(i) for i in range(8)]
runpy.run_module('mixer.benchmark', run_name='__main__')
"""


def run(*args):
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='')
  return subprocess.run([sys.executable, *args], cwd=ROOT, env=env,
                        capture_output=True, text=True, timeout=600)


@pytest.mark.slow   # compiles and measures
@pytest.mark.parametrize('mode', ['train', 'infer'])
def test_the_last_line_has_figures_that_agree(mode):
  out = run('-m', 'mixer.benchmark', mode, '--model=Mixer-S/32', *SMALL)
  assert out.returncode == 0, out.stderr
  found = json.loads(out.stdout.splitlines()[-1])
  assert (found['mode'], found['batch_size'], found['rounds']) == (mode, 4, 3)
  assert found['model'] == 'Mixer-S/32'
  model = catalog.create('Mixer-S/32')
  flops = dict(train=model.training_flops, infer=model.forward_flops)[mode](32)
  seconds = found['median_seconds']
  assert found['images_per_second'] == pytest.approx(4 / seconds)
  assert found['flops_per_second'] == pytest.approx(4 * flops / seconds)
  assert found['utilisation'] == pytest.approx(
      found['flops_per_second'] / found['peak_flops_per_second'])


@pytest.mark.parametrize('args,batch', [
    (('--model=Mixer-S/32', '--batch_size=4'), 32),   # 4 for each device
    (('--config=configs/digits.py', '--config.run.batch_size=64'), 64),
])
def test_tpu_compiles_the_network_for_the_slice_and_not_for_this_machine(
    args, batch):
  out = run('-c', TPU, 'tpu', '--topology=v3:2x2', *args)
  assert out.returncode == 0, out.stderr
  assert out.stderr.splitlines() == [f'tpu bfloat16 {batch}']
  found = json.loads(out.stdout.splitlines()[-1])
  assert (found['mode'], found['devices'], found['device']) == (
      'tpu', 8, 'TPU v3')
  assert found['batch_size'] == batch // 8
  assert found['cycles'] == 470e6   # half a second of 940 MHz
  assert found['images_per_second'] == batch / 0.5
  table = ' '.join(out.stdout.split())
  assert '470.00 500.0' in table and f'{batch // 8} images per device' in table


@pytest.mark.parametrize('args, expected', [
    ((), ('one mode', 'input', 'train', 'infer', 'tpu')),
    (('train', '--topology=v3:2x2'), ('--topology', 'tpu only', 'train')),
    (('train', '--compare=tim', *SMALL), ('--compare', "'tim'", "'timm'")),
    (('train', '--config=configs/digits.py', '--batch_size=4'),
     ('--batch_size', '--config.run.batch_size=4')),
    (('input',), ('--config is required', 'configs/mixer_b16.py')),
    (('input', '--config=configs/digits.py'), ('data.name', 'digits')),
    # Before any image is decoded: the data need not be here.
    (('input', '--config=configs/cifar10.py', '--config.data.dir=/nowhere'),
     ('--config.data.on_device=False', 'data.on_device')),
    (('input', '--config=configs/mixer_b16.py', '--config.data.dir=/nowhere',
      '--config.evals.validation.on_device=True'),
     ('--config.evals.validation.on_device=False',)),
    (('tpu', '--pass=forward', '--sharding=fsdp'),
     ('--sharding', 'fsdp', '--pass=train only')),
    (('tpu', '--config=configs/digits.py', '--config.sharding.strategy=fsdp'),
     ('--config.sharding.strategy', 'tpu', 'give --sharding=fsdp instead')),
    (('train', '--config=configs/digits.py', '--config.optimizer.name=adam'),
     ('--config.optimizer.name', 'run.batch_size', 'leave it out')),
    (('infer', '--config=configs/digits.py', '--config.run.micro_batches=2'),
     ('--config.run.micro_batches', 'infer')),
    (('train', '--config=configs/digits.py', '--config.data.crop=bit'),
     ('--config.data.crop', 'data.split')),
    (('input', '--config=configs/digits.py', '--config.model.num_blocks=2'),
     ('--config.model.num_blocks', 'evals, fewshot')),
    (('train', '--compare=big_vision', '--precision=float32',
      '--peers=/nowhere', *SMALL), ('--peers', '/nowhere', 'no folder')),
    (('train', '--config=configs/mixer_b16.py', '--compare=big_vision',
      '--config.run.batch_size=2', '--config.run.image_size=32',
      '--config.run.precision=float32'),
     ('--compare', 'big_vision', '--config.model.stochastic_depth=0')),
])
def test_a_mistake_is_told_in_one_line(args, expected):
  out = run('-m', 'mixer.benchmark', *args)
  line, = out.stderr.splitlines()
  assert out.returncode == 2 and line.startswith('error: '), out.stderr
  for part in expected:
    assert part in line


def test_others_are_not_compared_with_several_devices():
  """Two GPUs would do our work and one of them theirs."""
  out = run('-c', """
import jax, runpy, sys, types
from mixer.training import sharding
sharding.plan = lambda: types.SimpleNamespace(
    platform='gpu', mesh=types.SimpleNamespace(size=2))
runpy.run_module('mixer.benchmark', run_name='__main__')
""", 'train', '--compare=timm')
  assert out.returncode == 2
  assert out.stderr.startswith('error: --compare: the others use one device')
  assert 'CUDA_VISIBLE_DEVICES=0' in out.stderr


def test_settings_that_the_modes_read_are_not_refused():
  """Nor is RandAugment, which is not measured, for images of two channels."""
  out = run('-c', TPU, 'tpu', '--config=configs/mixer_b16.py', *(
      f'--config.{setting}' for setting in (
          'model.num_blocks=1', 'model.in_channels=2', 'data.dir=/nowhere',
          'run.batch_size=8', 'run.image_size=32', 'run.precision=float32')))
  assert out.returncode == 0, out.stderr
