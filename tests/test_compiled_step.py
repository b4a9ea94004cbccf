"""analysis/compiled_step: steps compiled for devices that need not exist."""
import dataclasses
import importlib
import importlib.util
import os
import types

import jax
import numpy as np
import pytest

from mixer import models
from mixer.analysis import compiled_step
from mixer.analysis import planning
from mixer.analysis import step_speed
from mixer.analysis import tpu_speed
from mixer.core import errors
from mixer.training import sharding

SHIPPED = ('mixer_s32', 'mixer_s16', 'mixer_b32', 'mixer_b16', 'mixer_l32',
           'mixer_l16', 'mixer_h14', 'digits', 'cifar10', 'finetune')
HAS_LIBTPU = bool(os.environ.get('TPU_LIBRARY_PATH') or
                  importlib.util.find_spec('libtpu'))
needs_libtpu = pytest.mark.skipif(
    not HAS_LIBTPU, reason='compiling for a TPU needs libtpu, 684 MB, which '
    'is not among the pins of a CPU: pip install libtpu==0.0.42.1')


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a jax.Device as a mesh needs."""
  id: int
  platform: str = 'tpu'
  device_kind: str = 'TPU v3'
  process_index: int = 0


def program(plan, platform, **sizes):
  """A small network's step, compiled."""
  model = models.create(
      'Mixer-S/4', num_classes=3, hidden_dim=8, num_blocks=1,
      tokens_mlp_dim=4, channels_mlp_dim=8, platform=platform)
  optimizer, step_fn = step_speed.make_step(model)
  return model, compiled_step.train_step(
      step_fn, model, optimizer, plan, batch_size=4, image_size=(8, 12),
      **sizes)


def test_memory_is_that_of_parameters_optimizer_and_batch():
  model, found = program(sharding.plan(devices=jax.devices()[:1]), 'cpu')
  held = found.bytes()
  shapes = jax.eval_shape(model.init, jax.random.key(0),
                          np.zeros((1, 8, 12, 3)))
  parameters = sum(4 * x.size for x in jax.tree.leaves(shapes))
  assert held['parameters'] == parameters
  assert held['optimizer'] == parameters + 4   # momentum, and the step
  # Images, a label each, and what else a batch and a state hold.
  assert 4 * (8 * 12 * 3 + 4) <= held['batch'] < 4 * (8 * 12 * 3 + 4) + 100
  assert held['total'] >= sum(
      held[key] for key in ('parameters', 'optimizer', 'batch', 'temporaries'))
  assert found.cost()['flops'] > 0 and found.seconds > 0


def test_a_resident_data_set_counts_as_part_of_the_batch():
  plan = sharding.plan(devices=jax.devices()[:1])
  _, without = program(plan, 'cpu')
  _, found = program(plan, 'cpu', resident=1000)
  more = found.bytes()['batch'] - without.bytes()['batch']
  examples = (1000 - 4) * (8 * 12 * 3 + 4)
  assert examples <= more < examples + 100


@pytest.mark.parametrize('platform', [None, 'cpu'])
def test_a_network_made_for_another_platform_is_refused(platform):
  """Networks choose the form of products by platform: the program would be one
  that no run on these devices has."""
  plan = sharding.plan(devices=[Device(i) for i in range(2)])
  with pytest.raises(ValueError, match='tpu'):
    program(plan, platform)


def test_xla_has_no_time_where_it_gives_a_negative_one():
  cost = lambda **found: compiled_step.Program(
      types.SimpleNamespace(cost_analysis=lambda: found), None, 0.0).cost()
  assert cost(flops=2.0, optimal_seconds=-1.0) == dict(
      flops=2.0, bytes_accessed=None, seconds=None)
  assert cost(optimal_seconds=3.0)['seconds'] == 3.0


def test_a_step_that_does_not_fit_is_an_error_of_the_run(monkeypatch):
  def compile(self):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: 20G of 16G')
  monkeypatch.setattr(jax.stages.Lowered, 'compile', compile)
  with pytest.raises(errors.RunError, match='run.batch_size.*20G of 16G'):
    program(sharding.plan(devices=jax.devices()[:1]), 'cpu')


@pytest.mark.parametrize('topology', ['h100', 'v3', 'v3:4', 'v3:2x2x', ''])
def test_a_topology_has_a_generation_and_chips(topology):
  with pytest.raises(errors.UserError, match='--topology.*v3:2x2'):
    compiled_step.tpu_devices(topology)


def test_without_libtpu_the_error_says_how_to_install_it(monkeypatch):
  monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
  monkeypatch.setattr(compiled_step.importlib.util, 'find_spec',
                      lambda name: None)
  with pytest.raises(errors.UserError, match='pip install libtpu=='):
    compiled_step.tpu_devices('v3:2x2')


# ---- For TPUs, by libtpu.


@needs_libtpu
@pytest.mark.slow   # a minute and more each
@pytest.mark.parametrize('name', SHIPPED)
def test_every_shipped_config_compiles_for_the_papers_tpu(name):
  """For 8 cores of TPU v3, as shipped but for the batch: the paper's slices had
  up to 1,024 cores, so here each core gets 16 images."""
  module = importlib.import_module(f'configs.{name}')
  config = module.get_config()
  config.run.batch_size = min(config.run.batch_size, 128)
  found = planning.plan(config, topology='v3:2x2')
  assert not found['memory']['estimate']
  assert found['memory']['kind'] == 'TPU v3'
  assert found['memory']['total'] < found['memory']['available']
  assert found['xla']['seconds'] > 0


# Million cycles of a core of TPU v3 in bfloat16, as in BENCHMARKS.md.
CYCLES = (('Mixer-B/16', 64, 'forward', 'replicate', 31.30),
          ('Mixer-L/16', 32, 'forward', 'replicate', 55.79),
          ('Mixer-H/14', 16, 'forward', 'replicate', 74.09),
          ('Mixer-B/16', 64, 'train', 'replicate', 104.05),
          ('Mixer-L/16', 32, 'train', 'replicate', 184.09),
          ('Mixer-H/14', 16, 'train', 'replicate', 243.85),
          ('Mixer-B/16', 64, 'train', 'fsdp', 99.77),
          ('Mixer-L/16', 32, 'train', 'fsdp', 171.04),
          ('Mixer-H/14', 16, 'train', 'fsdp', 218.54))


@needs_libtpu
@pytest.mark.slow   # a minute and more each
@pytest.mark.parametrize('name,batch_size,what,strategy,million', CYCLES)
def test_the_cycles_on_a_tpu_are_those_in_the_benchmarks(
    name, batch_size, what, strategy, million):
  """The compiler's estimates are the same on every machine."""
  plan = sharding.plan(strategy=strategy,
                       devices=compiled_step.tpu_devices('v3:2x2'))
  model = models.create(name, dtype='bfloat16', platform=plan.platform)
  found = tpu_speed.estimate(
      name, model, plan, topology='v3:2x2', batch_size=batch_size,
      image_size=224, what=what)
  assert found['cycles'] / 1e6 == pytest.approx(million, rel=.002)
