"""Several real processes: their run is the run of one, however it is stopped,
killed, or spread over other devices.

They meet over loopback, and JAX's collectives for CPUs go between them. What
another number of devices changes is the order of sums, so losses are compared
to float rounding; with as many devices as before it is bits.
"""
import collections
import contextlib
import functools
import json
import math
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import launching
import numpy as np
import psutil
import pytest
import test_sources

from mixer import models
from mixer.core import checkpoint
from mixer.core import trees
from mixer.models.mixer import MlpMixer
from mixer.training import optimizers
from mixer.training import sharding
from mixer.training import step as steps

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, PAIRED = 60, 160
EXAMPLES = 1437   # of the digits to train on
HEARTBEAT = 10   # seconds
MAIN = ('-m', 'mixer.main')


def flags_of(workdir, total):
  """Of a small network; every step is logged, every 20th saved."""
  return ['--config=configs/digits.py', f'--workdir={workdir}',
          '--config.model.num_blocks=2', '--config.model.hidden_dim=16',
          '--config.model.dropout_rate=0.1', '--config.run.log_every=1',
          f'--config.run.total_steps={total}', '--config.run.eval_every=20',
          '--config.checkpoint.every=20',
          f'--config.run.heartbeat_timeout_seconds={HEARTBEAT}']


class Run(contextlib.AbstractContextManager):
  """The processes of one run; what is left of them at the end is killed."""

  def __init__(self, workdir, processes=1, devices=1, *, total=STEPS, flags=(),
               only=None, program=MAIN, xla='', cache=None):
    self.workdir, self.started = pathlib.Path(workdir), time.time()
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    env = dict(
        os.environ, JAX_PLATFORMS='cpu', no_grpc_proxy='127.0.0.1', XLA_FLAGS=(
            f'--xla_force_host_platform_device_count={devices} {xla}'))
    if cache:
      env['JAX_COMPILATION_CACHE_DIR'] = str(cache)
    self.logs, self.members = [], []
    for i in range(processes):
      meeting = [f'--coordinator=127.0.0.1:{port}', f'--process_id={i}',
                 f'--num_processes={processes}'] if processes > 1 else []
      self.logs.append(self.workdir.parent / f'{self.workdir.name}.{i}.log')
      with open(self.logs[-1], 'w') as log:
        self.members.append(subprocess.Popen(
            [sys.executable, *program, *flags_of(workdir, total), *flags,
             *meeting, *((only or {}).get(i, ()))],
            cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT))

  def __exit__(self, *exc):
    for member in self.members:
      member.kill()
      member.wait()

  def said(self, i=0):
    return self.logs[i].read_text()

  def everything(self):
    return '\n'.join(f'--- {i}\n{self.said(i)}'
                     for i in range(len(self.members)))

  def codes(self, timeout=300):
    end = time.monotonic() + timeout
    try:
      return [m.wait(max(end - time.monotonic(), 0.1)) for m in self.members]
    except subprocess.TimeoutExpired:
      pytest.fail(f'after {timeout} s: {self.everything()}')

  def until(self, there, timeout=200):
    end = time.monotonic() + timeout
    while not there():
      assert all(m.poll() is None for m in self.members), self.everything()
      assert time.monotonic() < end, self.everything()
      time.sleep(0.005)

  def until_step(self, step):
    self.until(lambda: max(rows(self.workdir), default=0) >= step)

  def until_said(self, words):
    self.until(lambda: words in self.said())


def finish(workdir, *args, **kwargs):
  with Run(workdir, *args, **kwargs) as run:
    assert set(run.codes()) == {0}, run.everything()
  return run


def rows(workdir):
  """The lines of metrics.jsonl by step; no step is there twice."""
  out = {}
  path = pathlib.Path(workdir, 'metrics.jsonl')
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
    except ValueError:   # the line being written
      continue
    assert row['step'] not in out
    out[row['step']] = row
  return out


def saved(workdir):
  return sorted(int(p.name) for p in (workdir / 'checkpoints').iterdir()
                if p.name.isdigit())


def losses(workdir, total=STEPS):
  """Of every step, which are all there once."""
  found = rows(workdir)
  assert sorted(found) == list(range(1, total + 1))
  return np.array([found[t]['train/loss'] for t in sorted(found)])


def parameters(workdir, total=STEPS):
  return trees.flatten(checkpoint.load_params(
      str(workdir / 'checkpoints' / str(total))))


def evaluations(workdir):
  """{step: (accuracy, examples)}"""
  return {step: (row['eval/test/accuracy'], row['eval/test/examples'])
          for step, row in rows(workdir).items() if 'eval/test/loss' in row}


def alike(a, b, total=STEPS, rounding=1e-5):
  """Losses and parameters to float rounding; evaluations count the same."""
  ours, theirs = losses(a, total), losses(b, total)
  print(f'losses differ by up to {np.abs(ours / theirs - 1).max():.1g}')
  np.testing.assert_allclose(ours, theirs, rtol=rounding)
  evaluated_a, evaluated_b = evaluations(a), evaluations(b)
  assert total in evaluated_a
  for step in evaluated_a.keys() & evaluated_b.keys():
    assert evaluated_a[step] == evaluated_b[step]
  assert {n for _, n in evaluated_a.values()} == {360}
  theirs = parameters(b, total)
  for name, value in parameters(a, total).items():
    most = np.abs(theirs[name]).max()
    np.testing.assert_allclose(value, theirs[name], rtol=0,
                               atol=10 * rounding * most, err_msg=name)


def stopped_at(run):
  """The one step at which all processes say that they stopped."""
  assert set(run.codes()) == {42}, run.everything()
  found = {re.search(r'^stopped: SIGTERM at step (\d+), which is saved', text,
                     re.MULTILINE).group(1)
           for text in map(run.said, range(len(run.members)))}
  assert len(found) == 1 and 'Traceback' not in run.everything(), found
  return int(found.pop())


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """What is compiled once, in any number of processes, is for all tests."""
  return tmp_path_factory.mktemp('compiled')


@pytest.fixture(scope='module')
def alone(tmp_path_factory, cache):
  """The run of one process with one device."""
  return finish(tmp_path_factory.mktemp('alone') / 'run', cache=cache).workdir


@pytest.mark.slow   # whole runs
def test_two_stopped_by_one_signal_are_gone_on_with_alone(tmp_path):
  quickly = dict(total=24, cache=tmp_path / 'compiled',
                 xla='--xla_backend_optimization_level=0',
                 flags=('--config.augment.rotate=0', '--config.augment.zoom=0',
                        '--config.augment.shift=0'))
  with Run(tmp_path / 'cut', 2, **quickly) as two:
    with Run(tmp_path / 'whole', **quickly) as one:
      two.until_said('process  1')   # JAX will compile for seconds
      two.members[1].send_signal(signal.SIGTERM)
      step = stopped_at(two)
      assert one.codes() == [0], one.everything()
  assert 0 < step < 24 and saved(two.workdir) == [step]
  assert sorted(rows(two.workdir)) == list(range(1, step + 1))
  with Run(two.workdir, **quickly) as rest:
    assert rest.codes() == [0], rest.everything()
  assert f'resuming at step {step}' in rest.said()
  alike(two.workdir, one.workdir, 24)


@pytest.mark.slow   # two processes that compile, for half a minute each
@pytest.mark.parametrize('processes, devices, mesh, flags', [
    (2, 2, 'data 4', ()),
    (4, 1, 'data 4', ()),
    (2, 2, 'fsdp 4', ('--config.sharding.strategy=fsdp',)),
    (2, 2, 'data 2 x fsdp 2', ('--config.sharding.strategy=fsdp',
                               '--config.sharding.fsdp=2')),
    (2, 2, 'data 2 x model 2', ('--config.sharding.model=2',)),
])
def test_any_number_of_processes_trains_as_one(
    alone, cache, tmp_path, processes, devices, mesh, flags):
  run = finish(tmp_path / 'run', processes, devices, flags=flags, cache=cache)
  assert f'({mesh})' in run.said()
  assert f'process  {processes - 1} on ' in run.said()
  for i in range(1, processes):   # process 0 speaks for all
    assert 'step' not in run.said(i) and 'Traceback' not in run.said(i)
  alike(run.workdir, alone)


# Prints a digest of the global batches of several steps, as the step gets them.
BATCHES = """
import hashlib, json, sys
import numpy as np
from mixer.core import processes
coordinator, number, index, sets = sys.argv[1:]
if int(number) > 1:
  processes.join(coordinator=coordinator, num_processes=int(number),
                 process_id=int(index))
import jax
from jax.experimental import multihost_utils
from mixer.data import pipeline
from mixer.training import sharding
plan = sharding.plan()
for kind, settings in json.loads(sets).items():
  data = pipeline.open_data(**settings)
  digest = hashlib.sha256()
  for batch in map(plan.put_batch, data.train_batches(
      seed=0, batch_size=8, first=6, last=9, slots=plan.slots(8))):
    whole = multihost_utils.process_allgather(batch, tiled=True)
    assert len(whole['record']) == 8
    for key in sorted(whole):
      digest.update(key.encode() + np.asarray(whole[key]).tobytes())
  print(kind, sorted(batch), digest.hexdigest())
"""


@pytest.mark.slow   # seven processes that decode
def test_the_global_batch_has_the_bits_of_one_process(tmp_path):
  """Its rows on the host are tested in test_sources; here it is put together
  on the devices."""
  pictures = test_sources.draw_pictures()
  folder, _ = test_sources.write_files(tmp_path / 'files', pictures)
  sets = dict(
      arrays=test_sources.write_arrays(tmp_path / 'arrays.npz', pictures),
      folder=folder, array_record=test_sources.prepare(
          str(tmp_path / 'array_record'), 'array_record', pictures))
  sets = json.dumps({kind: dict(one, split='train', crop='bit',
                                image_size=test_sources.SIDE)
                     for kind, one in sets.items()})

  def digests(number):
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    env = dict(os.environ, JAX_PLATFORMS='cpu', no_grpc_proxy='127.0.0.1',
               XLA_FLAGS='--xla_force_host_platform_device_count=1',
               TF_USE_LEGACY_KERAS='1')   # which is not there: Keras takes 1 s
    members = [subprocess.Popen(
        [sys.executable, '-c', BATCHES, f'127.0.0.1:{port}', str(number),
         str(i), sets], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE)
        for i in range(number)]
    out = [m.communicate(timeout=200)[0] for m in members]
    assert [m.returncode for m in members] == [0] * number
    found = [[line for line in text.splitlines() if line.split()[0] in (
        'arrays', 'folder', 'array_record')] for text in out]
    assert all(len(lines) == 3 for lines in found), out
    assert all(lines == found[0] for lines in found)
    return found[0]

  one = digests(1)
  assert "'position'" in one[0] and "'image'" in one[1]   # resident and not
  assert digests(2) == digests(4) == one


# mixer.main, which also notes what it trains on: a line for each batch.
NOTING = """
import json, os, runpy, sys
import numpy as np
from mixer.training import sharding
put = sharding.Plan.put_batch
file = None
def noting(plan, batch):
  global file
  if 'record' in batch:
    import jax
    file = file or open(os.environ['NOTES'] + str(jax.process_index()), 'a')
    print(json.dumps([batch['epoch'].tolist(), batch['record'].tolist()]),
          file=file, flush=True)
  return put(plan, batch)
sharding.Plan.put_batch = noting
sys.argv = ['mixer/main.py', *sys.argv[1:]]
runpy.run_module('mixer.main', run_name='__main__')
"""


def trained_on(path, processes):
  """[(epochs, records)] of each batch that processes noted, put together."""
  parts = [[json.loads(line) for line in pathlib.Path(
      f'{path}{i}').read_text().splitlines()] for i in range(processes)]
  assert len({len(part) for part in parts}) == 1
  return [tuple(np.concatenate(column) for column in zip(*of_step))
          for of_step in zip(*parts)]


@pytest.mark.slow   # three starts, on other devices each
def test_stopped_twice_and_gone_on_with_on_fewer_devices(
    tmp_path, cache, monkeypatch):
  total, workdir, batches = 600, tmp_path / 'run', []
  finish(tmp_path / 'whole', total=total, cache=cache)
  for processes, devices in ((2, 2), (2, 1)):
    notes = str(tmp_path / f'notes-{devices}-')
    monkeypatch.setenv('NOTES', notes)
    begin = len(batches)
    with Run(workdir, processes, devices, total=total, cache=cache,
             program=('-c', NOTING)) as run:
      run.until_step(begin + 20)
      run.members[devices % 2].send_signal(signal.SIGTERM)
      step = stopped_at(run)
    batches += trained_on(notes, processes)
    assert begin < step < total and len(batches) == step
    assert saved(workdir)[-1] == step
  monkeypatch.setenv('NOTES', str(tmp_path / 'notes-last-'))
  run = finish(workdir, total=total, cache=cache, program=('-c', NOTING))
  assert f'resuming at step {step}' in run.said()
  batches += trained_on(tmp_path / 'notes-last-', 1)
  # Rounding grows: after 600 steps losses were 6e-6 apart.
  alike(workdir, tmp_path / 'whole', total, rounding=5e-5)

  assert len(batches) == total
  epochs, records = (np.concatenate(column) for column in zip(*batches))
  assert (np.diff(epochs) >= 0).all()
  full = total * 128 // EXAMPLES
  for epoch in range(full):   # each example once
    seen = records[epochs == epoch]
    assert len(seen) == len(set(seen)) == EXAMPLES
  last = records[epochs == full]
  assert len(last) == len(set(last)) == total * 128 % EXAMPLES


@pytest.fixture(scope='module')
def pair(tmp_path_factory, cache):
  """The run of two processes with a device each."""
  return finish(tmp_path_factory.mktemp('pair') / 'run', 2, total=PAIRED,
                cache=cache).workdir


def end_of_the_other(run, survivor):
  """When one is gone, the other ends by itself so that a launcher starts both
  again."""
  began = time.monotonic()
  while run.members[survivor].poll() is None:
    assert time.monotonic() < began + 60, run.everything()
    time.sleep(0.01)
  code = run.members[survivor].returncode
  print(f'it took {time.monotonic() - began:.1f} s, code {code}:'
        f'\n{run.said(survivor)}')
  # Of an end by a signal Popen tells a negative number; a shell, one above 126.
  assert code == 42 or code > 126 or code == -signal.SIGABRT, run.everything()
  if code == 134:   # by our own hand, not by JAX's
    assert re.search('^error: another process of this run is gone; start all '
                     'of them again', run.said(survivor), re.MULTILINE)
    assert 'Traceback' not in run.said(survivor)


@pytest.mark.slow   # two starts of two processes
@pytest.mark.parametrize('killed', [0, 1])
def test_one_is_killed_the_other_ends_and_nothing_saved_is_lost(
    pair, cache, tmp_path, killed):
  workdir = tmp_path / 'run'
  with Run(workdir, 2, total=PAIRED, cache=cache) as run:
    run.until_step(50)
    run.members[killed].kill()
    end_of_the_other(run, 1 - killed)
  kept = saved(workdir)
  assert kept and kept[-1] >= 20
  again = finish(workdir, 2, total=PAIRED, cache=cache)
  assert f'resuming at step {kept[-1]}' in again.said()
  np.testing.assert_array_equal(losses(workdir, PAIRED), losses(pair, PAIRED))
  assert evaluations(workdir) == evaluations(pair)


def two(program, *args):
  """Two processes of a program, begun; it gets HOST:PORT and its number."""
  with socket.socket() as s:
    s.bind(('127.0.0.1', 0))
    port = s.getsockname()[1]
  return [subprocess.Popen(
      [sys.executable, '-c', program, f'127.0.0.1:{port}', str(i), *args],
      cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
      env=dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS='',
               no_grpc_proxy='127.0.0.1')) for i in range(2)]


WAITING = """
import sys, time
from mixer.core import processes
coordinator, number = sys.argv[1:]
processes.join(coordinator=coordinator, num_processes=2, process_id=int(number))
print('there', flush=True)
time.sleep(100)
"""


@pytest.mark.slow   # two processes that meet
def test_what_saves_nothing_ends_at_once_when_told_to():
  """As `mixer.evaluate`, which asks no guard."""
  begun = two(WAITING)
  try:
    for process in begun:   # both, as the first takes the second along
      assert 'there\n' in iter(process.stdout.readline, '')
    for process in begun:
      process.terminate()
    assert [p.wait(timeout=20) for p in begun] == [-signal.SIGTERM] * 2
  finally:
    for process in begun:
      process.kill()


LONELY = """
import sys
from mixer.core import log, processes
log.setup()
processes._MEETING_SECONDS = 3
processes.join(coordinator=sys.argv[1], num_processes=2,
               process_id=int(sys.argv[2]))
"""


@pytest.mark.slow   # two processes that wait
def test_who_meets_nobody_ends_in_time_so_that_it_is_started_again():
  """JAX ends it by itself, so what it waits for is said before."""
  first, second = two(LONELY)
  try:
    second.kill()
    out, _ = first.communicate(timeout=60)
    assert first.returncode == -signal.SIGABRT, out
    assert re.match(r'waiting  for the other processes at 127\.0\.0\.1:\d+, '
                    'up to 3 s', out)
  finally:
    first.kill()
    second.wait()


PARTS = """
import sys
import jax, jax.numpy as jnp
from mixer.core import checkpoint, processes
from mixer.models.mixer import MlpMixer
from mixer.training import sharding
coordinator, number, directory, save = sys.argv[1:]
processes.join(coordinator=coordinator, num_processes=2, process_id=int(number))
plan = sharding.plan(strategy='fsdp')
shapes = {'kernel': jax.ShapeDtypeStruct((128, 64), jnp.float32)}
there = plan.state(shapes, MlpMixer.SHARDING_RULES)
number_of = jax.ShapeDtypeStruct((), jnp.int32, sharding=plan.replicated)
checkpoints = checkpoint.Checkpoints(directory)
if save == 'save':
  for step in (1, 2):
    params, rest = jax.jit(
        lambda: ({'kernel': step + jax.random.uniform(
            jax.random.key(0), (128, 64))}, {'step': jnp.int32(step)}),
        out_shardings=(there, {'step': plan.replicated}))()
    checkpoints.save(step, params, rest, {})
else:
  wanted = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(
      x.shape, x.dtype, sharding=s), shapes, there)
  params, _, meta = checkpoints.restore(wanted, {'step': number_of})
  parts = params['kernel'].addressable_shards
  print('restored', meta['step'], {int(p.data.mean()) for p in parts})
checkpoints.close()
processes.leave()
"""


@pytest.mark.slow   # two processes, started twice
def test_a_part_that_only_one_process_reads_is_damaged(tmp_path):
  """All take the checkpoint before it."""
  def both(save):
    begun = two(PARTS, str(tmp_path / 'c'), save)
    try:
      out = [process.communicate(timeout=120)[0] for process in begun]
    finally:
      for process in begun:
        process.kill()
    assert [process.returncode for process in begun] == [0, 0], out
    return out

  both('save')
  parts = [path for path in (tmp_path / 'c' / '2' / 'params').glob(
      'ocdbt.process_1/d/*') if path.stat().st_size]
  assert parts
  for path in parts:
    os.truncate(path, path.stat().st_size // 2)
  out = both('restore')
  assert all('restored 1 {1}' in said for said in out), out
  assert '2 cannot be used' in out[0]


@pytest.mark.slow   # it takes a heartbeat until the other knows
@pytest.mark.parametrize('mistaken', [0, 1])
def test_one_with_an_error_of_its_own_does_not_hang_the_other(
    cache, tmp_path, mistaken):
  with Run(tmp_path / 'run', 2, cache=cache, only={mistaken: [
      '--config.data.name=arrays:/nowhere.npz']}) as run:
    assert run.members[mistaken].wait(timeout=200) == 2
    assert 'error: data.name' in run.said(mistaken)
    assert 'Traceback' not in run.said(mistaken)
    end_of_the_other(run, 1 - mistaken)


@pytest.mark.slow   # two processes that compile
def test_a_run_that_diverges_has_failed_for_all(tmp_path, cache):
  """Whoever is first must not have the others think that one is lost: then all
  would be started again."""
  with Run(tmp_path / 'run', 2, cache=cache, flags=(
      '--config.schedule.learning_rate=1e30',
      '--config.optimizer.clip_norm=0.0')) as run:
    assert run.codes() == [1, 1], run.everything()
  for i in range(2):
    assert 'error: step' in run.said(i) and 'Traceback' not in run.said(i)


@pytest.mark.slow   # two processes that open data
def test_a_mistake_of_all_is_told_by_all(tmp_path, cache):
  with Run(tmp_path / 'run', 2, cache=cache, flags=(
      '--config.data.name=arrays:/nowhere.npz',)) as run:
    assert run.codes() == [2, 2], run.everything()
  for i in range(2):
    assert 'error: data.name' in run.said(i), run.everything()


@pytest.mark.slow   # two processes that meet
def test_a_workdir_that_not_all_share_is_refused(tmp_path, cache):
  """Also one that has been a run's before; else they would hang at the first
  checkpoint."""
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / '.lock').write_text('process 1 on earth')
  with Run(tmp_path / 'run', 2, cache=cache, only={
      1: [f'--workdir={tmp_path / "other"}']}) as run:
    assert run.codes(timeout=100) == [2, 2], run.everything()
  for i in range(2):
    assert 'error: --workdir' in run.said(i) and 'share' in run.said(i)


@pytest.mark.slow   # two processes, started twice
def test_the_launcher_starts_both_again_when_one_is_killed(
    pair, cache, tmp_path):
  copy, workdir = launching.copy(tmp_path / 'copy'), tmp_path / 'run'
  for name in ('mixer', 'configs'):
    (copy / name).symlink_to(ROOT / name)
  launching.script(copy / '.venv' / 'bin' / 'python',
                   f'exec {shlex.quote(sys.executable)} "$@"')
  done = launching.run(   # so that nothing is installed
      'bash', '-c', 'source launch/venv.sh && stamp_of .venv/bin/python '
      'requirements.txt >.venv/installed', cwd=copy)
  assert done.returncode == 0, done.stderr
  env = dict(os.environ, JAX_PLATFORMS='cpu', RESTART_SECONDS='1',
             XLA_FLAGS='--xla_force_host_platform_device_count=1',
             JAX_COMPILATION_CACHE_DIR=str(cache), TMPDIR=str(tmp_path))
  with open(tmp_path / 'log', 'w') as log:
    launcher = subprocess.Popen(
        [copy / 'launch' / 'gpu_local.sh', '--processes=2', '--',
         *flags_of(workdir, PAIRED)], env=env, stdout=log,
        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
  said = (tmp_path / 'log').read_text

  def members(*more):
    wanted = {f'--workdir={workdir}', *more}
    return [p for p in psutil.process_iter(['cmdline'])
            if wanted <= set(p.info['cmdline'] or ())]

  try:
    end = time.monotonic() + 300
    while max(rows(workdir), default=0) < 50:
      assert launcher.poll() is None and time.monotonic() < end, said()
      time.sleep(0.01)
    victim, = members('mixer.main', '--process_id=1')
    victim.kill()
    assert launcher.wait(timeout=300) == 0, said()
  finally:
    launcher.kill()
    for process in members():
      process.kill()
    launcher.wait()
  assert re.search('exited with .*: starting all 2 again', said()), said()
  assert 'resuming at step' in said()
  np.testing.assert_array_equal(losses(workdir, PAIRED), losses(pair, PAIRED))


# What a device holds, by shapes and by arrays.


def state_of(model, name, side):
  tx = optimizers.make(schedule=lambda step: 0.1, name=name)
  return functools.partial(steps.init_state, model, tx, seed=0,
                           image_shape=(side, side, 3))


def bytes_of(shape, dtype):
  return math.prod(shape) * jnp.dtype(dtype).itemsize


@pytest.mark.parametrize('name, copies', [('sgd', 2), ('adam', 3)])
@pytest.mark.parametrize('settings, over', [
    ({}, 1.02),   # what is too small to cut is a 700th
    # 'model' does not cut the stem and the head, a 45th.
    (dict(model=2), 1.1), (dict(fsdp=2, model=4), 1.1)])
def test_by_fsdp_an_eighth_of_the_state_of_b16_is_on_each_device(
    name, copies, settings, over):
  shapes = jax.eval_shape(state_of(models.create('Mixer-B/16'), name, 224))
  shardings = sharding.plan(strategy='fsdp', **settings).state(shapes, MlpMixer.SHARDING_RULES)
  whole = sum(bytes_of(x.shape, x.dtype) for x in jax.tree.leaves(shapes))
  assert whole > copies * 4 * 59.8e6
  share = sum(bytes_of(s.shard_shape(x.shape), x.dtype) for x, s in zip(
      jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True))
  assert whole / 8 <= share < over * whole / 8, share / whole


def test_by_fsdp_no_device_holds_more_when_it_is_made():
  plan = sharding.plan(strategy='fsdp')
  make = state_of(models.create('Mixer-S/16', num_classes=8, hidden_dim=128,
                                num_blocks=1), 'sgd', 32)
  shapes = jax.eval_shape(make)
  shardings = plan.state(shapes, MlpMixer.SHARDING_RULES)
  state = jax.jit(make, out_shardings=shardings)()
  held = collections.Counter()
  for x, s in zip(jax.tree.leaves(state), jax.tree.leaves(shardings)):
    for shard in x.addressable_shards:
      held[shard.device] += shard.data.nbytes
      assert shard.data.shape == s.shard_shape(x.shape)
  whole = sum(x.nbytes for x in jax.tree.leaves(state))
  assert len(held) == 8 and len(set(held.values())) == 1
  small = 2 * 4 * 6000   # bytes of parameters, and momentum, that are not cut
  assert max(held.values()) < whole / 8 + small
