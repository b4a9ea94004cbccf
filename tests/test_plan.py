"""mixer.plan and analysis/planning: a plan is what the run will be."""
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import pytest
from small_weights import release

from configs import digits
from configs import finetune
from configs import mixer_b16
from mixer import plan
from mixer.analysis import compiled_step
from mixer.analysis import cycles
from mixer.analysis import planning
from mixer.core import accelerators
from mixer.core import errors
from mixer.core import tables

ROOT = pathlib.Path(__file__).resolve().parent.parent


def command(*args, **env):
  return subprocess.run(
      [sys.executable, '-m', 'mixer.plan', *args], cwd=ROOT, text=True,
      capture_output=True, timeout=600, env=dict(os.environ, **env))


def small(**more):
  """The config of the digits, quick to compile."""
  config = digits.get_config()
  config.model.update(num_blocks=1, stochastic_depth=0.0, **more)
  config.augment.update(rotate=0.0, zoom=0.0, shift=0.0)
  return config


@dataclasses.dataclass(frozen=True)
class Device:
  """As much of a jax.Device as the layout of a plan needs."""
  id: int
  platform: str = 'tpu'
  device_kind: str = 'TPU v3'
  process_index: int = 0


@pytest.fixture
def compiled(monkeypatch):
  """Replaces the compiler and the TPU slice; lists what is compiled."""
  asked = []

  def train_step(step_fn, model, optimizer, plan, **sizes):
    del step_fn, optimizer
    asked.append(types.SimpleNamespace(model=model, plan=plan, **sizes))
    seconds = 0.5 if plan.platform == 'tpu' else None
    return types.SimpleNamespace(
        state=types.SimpleNamespace(params={}), seconds=0.0,
        cost=lambda: dict(flops=1.0, bytes_accessed=1.0, seconds=seconds),
        cycles=lambda: 94_000_000,
        bytes=lambda: dict(parameters=1, optimizer=1, batch=1, temporaries=1,
                           total=4))

  monkeypatch.setattr(compiled_step, 'train_step', train_step)
  monkeypatch.setattr(compiled_step, 'tpu_devices',
                      lambda topology: [Device(i) for i in range(8)])
  return asked


# ---- What a plan says.


def test_a_plan_of_the_digits_agrees_with_the_formulas():
  found = planning.plan(small(), devices=1, utilisation=0.5)
  model, run, memory, time = (found[k] for k in (
      'model', 'run', 'memory', 'time'))
  assert (run['examples'], run['steps'], run['batch_size']) == (1437, 1200, 128)
  assert memory['parameters'] == 4 * model['parameters']
  # Momentum is as large as the parameters; the schedule's step is 4 bytes.
  assert 0 <= memory['optimizer'] - memory['parameters'] < 16
  assert memory['temporaries'] > 0 and memory['estimate']
  assert memory['total'] >= memory['parameters'] * 2 + memory['temporaries']
  assert memory['gradients'] == memory['parameters']
  assert memory['least'] == 2 * memory['parameters'] + memory['optimizer']
  flops = 1200 * 128 * model['training_flops']
  assert time['device_hours'] == pytest.approx(flops / (.5 * 61.5e12) / 3600)
  assert [(row['what'], row['found']) for row in found['preflight']] == [
      ('data', True), ('evals.test', True)]


def test_a_lower_bound_that_does_not_fit_has_remedies_of_its_own():
  memory = dict(estimate=True, temporaries=2**40, total=2**41, parameters=2**34,
                optimizer=2**34, least=3 * 2**34, strategy='replicated')
  assert planning.remedies(memory) == ['--config.sharding.strategy=fsdp']


@pytest.mark.slow   # compiles for several layouts
def test_memory_falls_with_fsdp():
  def held(**settings):
    config = small(hidden_dim=512)
    config.sharding.update(settings)
    found = planning.plan(config, devices=8)['memory']
    return found['parameters'] + found['optimizer']
  whole, shared = held(), held(strategy='fsdp')
  assert whole / 8 <= shared < whole / 6   # small parameters are not cut
  assert whole / 4.2 < held(strategy='fsdp', fsdp=4) < whole / 3.5
  assert held(model=2) < 0.6 * whole


@pytest.mark.slow   # half a minute to compile
def test_memory_falls_with_remat():
  def temporaries(**more):
    config = small(**more)
    config.model.update(num_blocks=8, hidden_dim=128)
    config.run.image_size = 32
    config.data.name = 'cifar10'
    return planning.plan(config)['memory']['temporaries']
  plain = temporaries()
  # Without the loop, XLA's CPU backend undoes the recomputation.
  assert temporaries(remat='block', scan=True) < 0.5 * plain


@pytest.mark.parametrize('topology,platform', [
    (None, 'cpu'), ('v3:2x2', 'tpu')])
def test_the_network_is_made_for_the_devices_of_the_plan(
    topology, platform, compiled):
  """And not for the machine that compiles, which has CPU devices only."""
  found = planning.plan(small(), topology=topology)
  asked, = compiled
  assert asked.model.platform == asked.plan.platform == platform
  assert found['memory']['estimate'] == (topology is None)
  assert found['memory']['devices'] == (8 if topology else 1)
  assert found['time']['accelerator'] == 'v3'


def test_xla_estimates_the_time_of_a_tpu_only(compiled):
  found = planning.plan(small(), topology='v3:2x2', devices=4)
  assert found['time']['xla_device_hours'] == pytest.approx(
      0.5 * 4 * 1200 / 3600)
  assert 'xla_device_hours' not in planning.plan(small())['time']
  assert [asked.plan.mesh.size for asked in compiled] == [4, 1]


@pytest.mark.parametrize('topology,seconds,said', [
    # 94 million cycles at the clock, and on v3 times the correction.
    ('v3:2x2', .1 * cycles.CORRECTION['v3'],
     'corrected by 1.3: a measured float32 step of Mixer-B/16 on v3 takes'),
    ('v4:2x2x1', .094 / 2.1, 'not corrected: no measured step on v4'),
    ('v6e:2x2', None, 'the clock of v6e is not known')])
def test_a_compiled_plan_has_the_time_of_its_cycles(
    topology, seconds, said, compiled, capsys):
  time = planning.plan(small(), topology=topology)['time']
  if seconds is None:
    assert time['utilisation'] == accelerators.USUAL_UTILISATION
  else:
    assert time['hours'] == pytest.approx(1200 * seconds / 3600)
    assert time['utilisation'] == pytest.approx(
        time['flops'] / (8 * 1200 * seconds * time['peak_flops_per_second']))
  assert time['assumed'] == (seconds is None)
  tables.show(tables.make(plan._time(time, dict(seconds=.5))[1]))
  printed = ' '.join(capsys.readouterr().out.split())
  assert '94.0 million per step' in printed and said in printed
  assert ('assumed utilisation' in printed) == (seconds is None)


def test_a_utilisation_that_is_given_counts_beside_cycles(compiled):
  time = planning.plan(small(), topology='v3:2x2', utilisation=.5)['time']
  assert time['utilisation'] == pytest.approx(.5) and time['assumed']


@pytest.mark.parametrize('accelerator,precision', (
    (None, 'bfloat16'), ('T4', 'float32')))
def test_the_run_has_the_precision_whose_peak_is_assumed(
    accelerator, precision, compiled):
  found = planning.plan(small(), accelerator=accelerator)
  assert found['run']['precision'] == precision
  assert found['time']['peak_precision'] == precision


@pytest.mark.parametrize('accelerator,precision,known', (
    ('H100', 'float32', False), ('T4', 'bfloat16', False),
    ('H100', 'bfloat16', True), ('v3', 'float32', True)))
def test_hours_are_unknown_if_the_precision_has_no_peak(
    accelerator, precision, known, compiled, capsys):
  config = small()
  config.run.precision = precision
  time = planning.plan(config, accelerator=accelerator)['time']
  for key in ('hours', 'device_hours', 'utilisation', 'images_per_second'):
    assert (time[key] is not None) == known
  tables.show(tables.make(plan._time(time, {})[1]))
  printed = ' '.join(capsys.readouterr().out.split())
  assert (f'unknown: the run is in {precision}, and the peak of {accelerator} '
          f'is known in {time["peak_precision"]} only' in printed) != known


@pytest.mark.parametrize('section,key,value', (
    ('data', 'crop', 'bitt'), ('data', 'crop', 'none'),
    ('data', 'interpolation', 'cubic'),
    ('data', 'balance', 'class'), ('data', 'min_area', 2.0),
    ('data', 'window', 0), ('data', 'access', 'sequental'),
    ('evals.test', 'crop', 'inception'), ('data', 'name', 'foldr:photos')))
def test_a_value_that_a_run_refuses_is_refused(section, key, value, compiled):
  config = small()
  (config.evals.test if section == 'evals.test' else config.data)[key] = value
  with pytest.raises(errors.UserError, match=f'{section}.{key}.*{value}'):
    planning.plan(config)
  assert not compiled


def test_the_check_of_values_says_nothing(compiled, caplog):
  config = small()
  config.data.crop = 'inception'
  planning.plan(config)
  assert 'crop' not in caplog.text


def test_a_set_in_sequence_that_is_not_here_is_missing(compiled):
  config = small()
  config.data.update(name='cifar10', access='sequential', dir='/nowhere')
  assert planning.plan(config)['run']['examples'] == 50_000


def test_missing_data_is_a_row_of_the_report(tmp_path, compiled):
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
  assert compiled[0].resident is None


def test_few_shot_sets_and_arrays_are_checked_too(tmp_path):
  config = small()
  config.data.name = f'arrays:{tmp_path}/gone.npz'
  config.fewshot.pets = dict(name='oxford_iiit_pet', dir=str(tmp_path))
  data, rows = planning._look(config)
  assert data.decoded and data.missing   # arrays live on the device
  assert [row['what'] for row in rows] == [
      'data', 'evals.test', 'fewshot.pets.train', 'fewshot.pets.test']
  assert '3,680 images' in rows[2]['value'] and str(tmp_path) in (
      rows[2]['remedy'])


def test_labels_are_looked_for_where_a_run_reads_them(tmp_path, monkeypatch):
  """A file of labels may be in the home folder, '~', or in a bucket, which the
  plan does not open."""
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'real.json').write_text('[]')
  config = small().to_dict()
  for labels, found in (('~/real.json', True), ('gs://b/real.json', True),
                        ('~/gone.json', False)):
    config['evals']['test']['labels'] = labels
    row, = (row for row in planning._look(config)[1]
            if row['what'] == 'evals.test.labels')
    assert row['found'] == found


def test_released_weights_are_found_only_in_the_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  config = finetune.get_config('b16,cifar10')
  row, = planning._weights(config.start.weights)
  assert not row['found'] and 'storage.googleapis.com' in row['remedy']
  assert planning._weights(None) == []


def test_the_papers_time_is_for_pre_training_from_scratch_only(compiled):
  for module, argument, days in ((finetune, 'b16,imagenet2012', None),
                                 (mixer_b16, 'imagenet2012', 10)):
    found = planning.plan(module.get_config(argument))
    assert found['time']['paper_core_days'] == days
  assert len(compiled) == 2


def test_larger_images_enlarge_the_network_as_the_run_does(compiled):
  """Twice the side has four times the tokens, and the paper's form of D_S."""
  config = finetune.get_config('b16,cifar10')
  config.run.image_size = 448
  for method, width in ((None, 4 * 384), ('resample', 384)):
    config.start.method = method
    planning.plan(config)
    assert compiled[-1].model.tokens_mlp_dim == width


def test_a_plan_is_for_the_network_of_the_weights_that_are_here(
    tmp_path, compiled):
  theirs, _ = release(tmp_path / 'w.npz')
  config = finetune.get_config('b16,cifar10')
  config.start.weights = str(tmp_path / 'w.npz')
  config.run.image_size = 16
  found = planning.plan(config)
  assert found['model']['name'] == 'Mixer-S/4'
  assert (compiled[-1].model.hidden_dim, compiled[-1].model.tokens_mlp_dim) == (
      theirs.hidden_dim, 4 * theirs.tokens_mlp_dim)


def test_epochs_of_data_of_unknown_size_are_refused(compiled):
  config = small()
  config.data.update(name='my_own_set', dir='/nowhere')
  config.run.update(total_steps=None, total_epochs=3.0)
  with pytest.raises(errors.UserError, match='run.total_epochs.*total_steps'):
    planning.plan(config)
  assert not compiled


@pytest.mark.parametrize('arguments,words', [
    (dict(topology='v3:2x2', accelerator='H100'), '--accelerator.*H100.*v3'),
    (dict(topology='v3:2x2', devices=9), '--devices.*8.*9'),
])
def test_contradicting_arguments_are_refused(arguments, words, compiled):
  with pytest.raises(errors.UserError, match=words):
    planning.plan(small(), **arguments)
  assert not compiled


# ---- The command.


def test_the_command_prints_tables_and_writes_json(tmp_path):
  out = command('--config=configs/digits.py', '--devices=2',
                *('--config.' + key for key in (
                    'model.num_blocks=1', 'augment.rotate=0', 'augment.zoom=0',
                    'augment.shift=0')), f'--json={tmp_path}/plan.json',
                '--accelerator=H100', '--workdir=~/runs/a', HOME=str(tmp_path))
  assert (out.returncode, out.stderr) == (0, '')
  for words in ('Mixer-S/2', 'memory of one of 2 devices', 'time on H100',
                'activations unknown', 'H100: fits, if the activations do',
                'digits train, 1,437 images: found',
                f'workdir {tmp_path}/runs/a: found'):
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
    (('--workdir=',), ['--workdir', 'an empty text']),
])
def test_a_mistake_is_told_in_one_line(args, words):
  config = ('--config=configs/digits.py',) if args else ()
  out = command(*config, *args)
  assert out.returncode == 2 and out.stderr.count('\n') == 1
  assert out.stderr.startswith('error: ')
  for word in words:
    assert word in out.stderr


# Runs mixer.plan; its last line has the largest memory that it held, in KiB,
# and the CPU seconds that it took. Both are of this process alone, so they do
# not depend on what else the machine does.
MEASURED = """
import atexit, pathlib, re, resource, runpy
def report():
  status = pathlib.Path('/proc/self/status').read_text()
  used = resource.getrusage(resource.RUSAGE_SELF)
  print(re.search(r'VmHWM:\\s*(\\d+)', status)[1],
        used.ru_utime + used.ru_stime)
atexit.register(report)
runpy.run_module('mixer.plan', run_name='__main__')
"""


@pytest.mark.slow   # compiles H/14
def test_the_largest_network_is_planned_without_its_parameters(tmp_path):
  path = tmp_path / 'plan.json'
  out = subprocess.run(
      [sys.executable, '-c', MEASURED, '--config=configs/mixer_h14.py:jft',
       '--devices=8', f'--json={path}'], cwd=ROOT, text=True,
      capture_output=True, timeout=1800)
  assert out.returncode == 0, out.stderr
  found = json.loads(path.read_text())
  kib, seconds = map(float, out.stdout.splitlines()[-1].split())
  assert kib * 1024 < 0.7 * found['memory']['parameters'], kib
  assert seconds < 120   # it takes a quarter of a minute
  assert found['model']['parameters'] == 431_069_952 + 1281 * 18_291
  assert found['time']['paper_core_days'] == 1010
  assert found['run']['steps'] == int(14 * 297_000_000 / 4096)
