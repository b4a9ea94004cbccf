"""mixer.plan: what it says is what the run is, and nothing is allocated."""
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from configs import digits
from configs import finetune
from configs import mixer_b16
from mixer import models
from mixer.analysis import compiled_step
from mixer.analysis import data_sizes
from mixer.analysis import planning
from mixer.analysis import step_speed
from mixer.core import accelerators
from mixer.core import errors
from mixer.core import trees
from mixer.models import cost
from mixer.training import sharding

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHIPPED = ('mixer_s32', 'mixer_s16', 'mixer_b32', 'mixer_b16', 'mixer_l32',
           'mixer_l16', 'mixer_h14', 'digits', 'cifar10', 'finetune')
HAS_LIBTPU = bool(os.environ.get('TPU_LIBRARY_PATH') or
                  importlib.util.find_spec('libtpu'))
needs_libtpu = pytest.mark.skipif(
    not HAS_LIBTPU, reason='compiling for a TPU needs libtpu, 684 MB, which '
    'is not among the pins of a CPU: pip install libtpu==0.0.42.1')


def command(*args, **env):
  return subprocess.run(
      [sys.executable, '-m', 'mixer.plan', *args], cwd=ROOT, text=True,
      capture_output=True, timeout=600, env=dict(os.environ, **env))


def small(**more):
  """The digits' config, quick to compile."""
  config = digits.get_config()
  config.model.update(num_blocks=1, stochastic_depth=0.0, **more)
  config.augment.update(rotate=0.0, zoom=0.0, shift=0.0)
  return config


# ---- The formulas, beside XLA's own count.


@pytest.mark.parametrize('name,size', [
    ('Mixer-S/32', 224), ('Mixer-S/16', 224), ('Mixer-S/32', 448)])
def test_flops_are_xlas(name, size):
  """XLA also counts what is no matrix product: a few percent."""
  model = models.create(name, num_blocks=2)
  images = jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images)
  lowered = jax.jit(lambda v, x: model.apply(v, x)[0]).lower(shapes, images)
  ours = 4 * cost.forward_flops(model, size)
  assert 1 <= lowered.cost_analysis()['flops'] / ours < 1.06
  assert trees.count(shapes['params']) == cost.parameters(model, size)

  def loss(v, x):
    return model.apply(v, x, train=True)[0].sum()

  lowered = jax.jit(jax.grad(loss)).lower(shapes, images)
  # The images get no gradient, so the stem's third product is not there.
  patch = model.patch_size
  stem = 2 * (size // patch)**2 * 3 * patch**2 * model.hidden_dim
  ours = 4 * (cost.training_flops(model, size) - stem)
  assert 1 <= lowered.cost_analysis()['flops'] / ours < 1.06


# ---- What a plan says.


def test_a_plan_of_the_digits():
  found = planning.plan(small(), devices=1, utilisation=0.5)
  model, run, memory, time = (found[k] for k in (
      'model', 'run', 'memory', 'time'))
  assert (run['examples'], run['steps'], run['batch_size']) == (1437, 1200, 128)
  assert memory['parameters'] == 4 * model['parameters']
  # Momentum, and the step that the schedule counts.
  assert 0 <= memory['optimizer'] - memory['parameters'] < 16
  assert memory['temporaries'] > 0 and memory['estimate']
  assert memory['total'] >= memory['parameters'] * 2 + memory['temporaries']
  flops = 1200 * 128 * model['training_flops']
  assert time['device_hours'] == pytest.approx(flops / (.5 * 61.5e12) / 3600)
  assert [(row['what'], row['found']) for row in found['preflight']] == [
      ('data', True), ('evals.test', True)]


@pytest.mark.slow   # compiles for several layouts
def test_memory_falls_with_fsdp():
  def held(**settings):
    config = small(hidden_dim=512)
    config.sharding.update(settings)
    found = planning.plan(config, devices=8)['memory']
    return found['parameters'] + found['optimizer']
  whole, shared = held(), held(strategy='fsdp')
  assert whole / 8 <= shared < whole / 6   # what is small stays whole
  assert whole / 4.2 < held(strategy='fsdp', fsdp=4) < whole / 3.5
  assert held(model=2) < 0.6 * whole


@pytest.mark.slow   # half a minute to compile
def test_remat_holds_less():
  def temporaries(**more):
    config = small(**more)
    config.model.update(num_blocks=8, hidden_dim=128)
    config.run.image_size = 32
    config.data.name = 'cifar10'
    return planning.plan(config)['memory']['temporaries']
  plain = temporaries()
  # Without the loop XLA's CPU backend computes nothing again.
  assert temporaries(remat='block', scan=True) < 0.5 * plain


def test_data_that_is_not_there_is_a_row(tmp_path):
  (tmp_path / 'file').touch()
  config = small()
  config.data.update(name='imagenet2012', dir=str(tmp_path),
                     split='train[:99%]')
  config.evals.test.split = 'validation'
  config.start.weights = str(tmp_path / 'gone')
  found = planning.plan(config, workdir=str(tmp_path / 'file' / 'run'))
  assert found['run']['examples'] == 1_268_355
  rows = {row['what']: row for row in found['preflight']}
  assert set(rows) == {'data', 'evals.test', 'start.weights', 'workdir'}
  assert not any(row['found'] for row in rows.values())
  assert str(tmp_path) in rows['data']['remedy']
  assert 'ILSVRC2012_img_train.tar' in rows['data']['remedy']


def test_few_shot_sets_and_arrays_are_looked_for(tmp_path):
  config = small()
  config.data.name = f'arrays:{tmp_path}/gone.npz'
  config.fewshot.pets = dict(name='oxford_iiit_pet', dir=str(tmp_path))
  data, rows = planning._look(config)
  assert data.decoded and data.missing   # arrays live on the device
  assert [row['what'] for row in rows] == [
      'data', 'evals.test', 'fewshot.pets.train', 'fewshot.pets.test']
  assert '3,680 images' in rows[2]['value'] and str(tmp_path) in (
      rows[2]['remedy'])


def test_released_weights_are_looked_for_in_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  config = finetune.get_config('b16,cifar10')
  row, = planning._weights(config)
  assert not row['found'] and 'storage.googleapis.com' in row['remedy']


def test_fine_tuning_is_not_set_beside_the_papers_pre_training():
  model, v3 = models.create('Mixer-B/16'), accelerators.ACCELERATORS['v3']
  for module, argument, days in ((finetune, 'b16,imagenet2012', None),
                                 (mixer_b16, 'imagenet2012', 10)):
    config = module.get_config(argument)
    settings = planning.dataclasses.replace(
        planning.assembly.check(config), image_size=(224, 224))
    assert planning._time(config, settings, model, v3, 1, 10, 0.4, None)[
        'paper_core_days'] == days


def test_an_enlarged_network_is_planned_as_it_will_be():
  config = finetune.get_config('b16,cifar10')
  config.run.image_size = 448
  settings = planning.assembly.check(config)
  model = models.create('Mixer-B/16')
  settings = planning.dataclasses.replace(settings, image_size=(448, 448))
  grown = planning._enlarged(model, config, settings)
  assert grown.tokens_mlp_dim == 4 * 384
  config.start.method = 'resample'
  assert planning._enlarged(model, config, settings) == model


def test_sizes_that_are_known_and_unknown():
  size = data_sizes.size('jft', 'train[1%:]', data_dir='/nowhere')
  assert (size.examples, size.num_classes) == (297_000_000, 18_291)
  size = data_sizes.size('my_own_set', 'train', data_dir='/nowhere')
  assert size.examples is None and size.missing
  with pytest.raises(errors.UserError, match='trian'):
    data_sizes.size('cifar10', 'trian', data_dir='/nowhere')


@pytest.mark.parametrize('kind,name', [
    ('TPU v3', 'v3'), ('TPU v5 lite', 'v5e'), ('TPU v5', 'v5p'),
    ('TPU v6 lite', 'v6e'), ('TPU7x', '7x'), ('NVIDIA H200', 'H200'),
    ('NVIDIA H100 80GB HBM3', 'H100'), ('NVIDIA A100-SXM4-80GB', 'A100-80GB'),
    ('NVIDIA A100-SXM4-40GB', 'A100-40GB'), ('NVIDIA L4', 'L4'),
    ('NVIDIA A100-PCIE-40GB', 'A100-40GB'),
    ('NVIDIA A100 80GB PCIe', 'A100-80GB'), ('NVIDIA L40S', 'L40S'),
    ('NVIDIA H100 PCIe', 'H100-PCIe'), ('cpu', None),
    ('Tesla V100-SXM2-16GB', 'V100'), ('Tesla V100-SXM2-32GB', 'V100-32GB'),
    ('NVIDIA A10', 'A10'), ('NVIDIA A10G', None), ('NVIDIA B200', 'B200'),
    ('NVIDIA GB200', 'GB200'), ('NVIDIA GH200 480GB', 'GH200')])
def test_accelerators_by_what_jax_calls_them(kind, name):
  found = accelerators.of_kind(kind)
  assert (found and found.name) == name


def test_a_core_is_half_a_chip():
  v3 = accelerators.ACCELERATORS['v3']
  assert (v3.flops_per_second, v3.memory_bytes) == (61.5e12, 16 * 2**30)


def test_whose_products_in_bfloat16_are_no_faster():
  """float16's peak is not theirs, as no run computes in it."""
  found = {a.name for a in accelerators.ACCELERATORS.values()
           if a.precision == 'float32'}
  assert found == {'V100', 'V100-32GB', 'T4'}
  assert accelerators.ACCELERATORS['V100'].flops_per_second == 15.7e12


# ---- The command.


def test_the_command(tmp_path):
  out = command('--config=configs/digits.py', '--devices=2',
                *('--config.' + key for key in (
                    'model.num_blocks=1', 'augment.rotate=0', 'augment.zoom=0',
                    'augment.shift=0')), f'--json={tmp_path}/plan.json',
                '--accelerator=H100')
  assert (out.returncode, out.stderr) == (0, '')
  for words in ('Mixer-S/2', 'memory of one of 2 devices', 'an upper estimate',
                'time on H100', 'digits train, 1,437 images: there'):
    assert words in ' '.join(out.stdout.split())
  assert json.loads((tmp_path / 'plan.json').read_text())['memory'][
      'devices'] == 2


@pytest.mark.parametrize('args,words', [
    ((), ['--config is required']),
    (('--accelerator=h100',), ['--accelerator', "did you mean 'H100'"]),
    (('--utilisation=0',), ['--utilisation', '0']),
    (('--topology=h100',), ['--topology', 'v3:2x2']),
    (('--devices=0',), ['devices', '0']),
    (('--config.sharding.model=3',), ['sharding.model', '3']),
])
def test_mistakes_are_one_line(args, words):
  config = ('--config=configs/digits.py',) if args else ()
  out = command(*config, *args)
  assert out.returncode == 2 and out.stderr.count('\n') == 1
  assert out.stderr.startswith('error: ')
  for word in words:
    assert word in out.stderr


def test_without_libtpu_it_says_how_to_get_it(monkeypatch):
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  monkeypatch.setattr(compiled_step.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match='pip install libtpu=='):
    compiled_step.tpu_devices('v3:2x2')


# mixer.plan, which then says the KiB that it held at most.
MEASURED = """
import atexit, pathlib, re, runpy
atexit.register(lambda: print(re.search(
    r'VmHWM:\\s*(\\d+)', pathlib.Path('/proc/self/status').read_text())[1]))
runpy.run_module('mixer.plan', run_name='__main__')
"""


@pytest.mark.slow   # it compiles H/14
def test_the_largest_network_is_planned_without_its_parameters(tmp_path):
  path = tmp_path / 'plan.json'
  out = subprocess.run(
      [sys.executable, '-c', MEASURED, '--config=configs/mixer_h14.py:jft',
       '--devices=8', f'--json={path}'], cwd=ROOT, text=True,
      capture_output=True, timeout=120)   # it takes a quarter of a minute
  assert out.returncode == 0, out.stderr
  found = json.loads(path.read_text())
  held = int(out.stdout.splitlines()[-1]) * 1024
  assert held < 0.7 * found['memory']['parameters'], held
  assert found['model']['parameters'] == 431_069_952 + 1281 * 18_291
  assert found['time']['paper_core_days'] == 1010
  assert found['run']['steps'] == int(14 * 297_000_000 / 4096)


# ---- For a TPU that is not here.


@needs_libtpu
@pytest.mark.slow   # a minute and more each
@pytest.mark.parametrize('name', SHIPPED)
def test_every_config_compiles_for_the_papers_tpu(name):
  """As shipped, for 8 cores of TPU v3, but for the batch, which the paper's
  slices of up to 1,024 cores share: 16 images a core."""
  module = importlib.import_module(f'configs.{name}')
  config = module.get_config()
  config.run.batch_size = min(config.run.batch_size, 128)
  found = planning.plan(config, topology='v3:2x2')
  assert not found['memory']['estimate']
  assert found['memory']['kind'] == 'TPU v3'
  assert found['memory']['total'] < found['memory']['available']
  assert found['xla']['seconds'] > 0


@needs_libtpu
@pytest.mark.slow   # likewise
@pytest.mark.parametrize('name,batch_size,seconds,gigabytes', [
    ('Mixer-B/16', 64, 0.0912, 18.1), ('Mixer-L/16', 32, 0.1624, 29.8),
    ('Mixer-H/14', 8, 0.1238, 26.8)])
def test_the_step_on_a_tpu_costs_no_more_than_it_did(
    name, batch_size, seconds, gigabytes):
  """XLA's estimates, which do not depend on the machine: BENCHMARKS.md."""
  plan = sharding.plan(devices=compiled_step.tpu_devices('v3:2x2'))
  model = models.create(name, dtype='bfloat16')
  optimizer, step = step_speed.make_step(model)
  program = compiled_step.train_step(
      step, model, optimizer, plan, batch_size=8 * batch_size,
      image_size=(224, 224))
  assert program.cost()['seconds'] < 1.001 * seconds
  assert program.cost()['bytes_accessed'] < 1.005e9 * gigabytes
