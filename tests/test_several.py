"""Runs of several real processes train like a run of one process, also if they
are stopped, killed or resumed on other devices.

The processes connect over loopback and use JAX's collectives for CPUs. Another
number of devices changes the order of sums, so losses are then compared up to
float rounding; with the same number of devices every bit is equal.
"""
import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import subprocess
import sys
import time

import launching
import numpy as np
import pictures
import psutil
import pytest
import tfds_sets

from mixer.core import checkpoint_reader
from mixer.core import trees

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, PAIRED = 60, 160
EXAMPLES = 1437   # in the training split of the digits
HEARTBEAT = 20   # seconds after which a silent process counts as dead
# What a test waits for at most. Nothing is expected to take so long; the tests
# wait for conditions, so that other load on the machine does not fail them.
TIMEOUT = 600   # seconds
MAIN = ('-m', 'mixer.main', '--noreport')


def flags_of(workdir, total):
  """The flags of a small network; every step is logged, every 20th saved."""
  return ['--config=configs/digits.py', f'--workdir={workdir}',
          '--config.model.num_blocks=2', '--config.model.hidden_dim=16',
          '--config.model.dropout_rate=0.1', '--config.run.log_every=1',
          f'--config.run.total_steps={total}', '--config.run.eval_every=20',
          '--config.checkpoint.every=20',
          f'--config.run.heartbeat_timeout_seconds={HEARTBEAT}']


class Run(contextlib.AbstractContextManager):
  """The processes of one run; on exit, those that still run are killed."""

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

  def codes(self):
    """The exit codes of all processes, when they have ended."""
    end = time.monotonic() + TIMEOUT
    try:
      return [m.wait(max(end - time.monotonic(), 0.1)) for m in self.members]
    except subprocess.TimeoutExpired:
      pytest.fail(f'after {TIMEOUT} s: {self.everything()}')

  def until(self, there):
    end = time.monotonic() + TIMEOUT
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
  """The lines of metrics.jsonl, by step; no step may be there twice."""
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
  """The loss of every step."""
  found = rows(workdir)
  assert sorted(found) == list(range(1, total + 1))
  return np.array([found[t]['train/loss'] for t in sorted(found)])


def parameters(workdir, total=STEPS):
  return trees.flatten(checkpoint_reader.load_params(
      str(workdir / 'checkpoints' / str(total))))


def evaluations(workdir):
  """{step: (accuracy, examples)}"""
  return {step: (row['eval/test/accuracy'], row['eval/test/examples'])
          for step, row in rows(workdir).items() if 'eval/test/loss' in row}


def assert_alike(a, b, total=STEPS, rounding=1e-5):
  """Losses and parameters are equal up to rounding, evaluations exactly."""
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
  """The step at which all processes say that they stopped."""
  assert set(run.codes()) == {42}, run.everything()
  found = {re.search(r'^stopped: SIGTERM at step (\d+), which is saved', text,
                     re.MULTILINE).group(1)
           for text in map(run.said, range(len(run.members)))}
  assert len(found) == 1 and 'Traceback' not in run.everything(), found
  return int(found.pop())


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """What one process compiles, the others and all tests reuse."""
  return tmp_path_factory.mktemp('compiled')


@pytest.fixture(scope='module')
def alone(tmp_path_factory, cache):
  """The workdir of a run of one process with one device."""
  return finish(tmp_path_factory.mktemp('alone') / 'run', cache=cache).workdir


@pytest.mark.slow   # whole runs
def test_a_signal_to_one_process_stops_both_and_one_process_resumes(tmp_path):
  quickly = dict(total=24, cache=tmp_path / 'compiled',
                 xla='--xla_backend_optimization_level=0',
                 flags=('--config.augment.rotate=0', '--config.augment.zoom=0',
                        '--config.augment.shift=0'))
  with Run(tmp_path / 'cut', 2, **quickly) as two:
    with Run(tmp_path / 'whole', **quickly) as one:
      two.until_said('process  1')   # then it compiles for seconds
      two.members[1].send_signal(signal.SIGTERM)
      step = stopped_at(two)
      assert one.codes() == [0], one.everything()
  assert 0 < step < 24 and saved(two.workdir) == [step]
  assert sorted(rows(two.workdir)) == list(range(1, step + 1))
  with Run(two.workdir, **quickly) as rest:
    assert rest.codes() == [0], rest.everything()
  assert f'resuming at step {step}' in rest.said()
  assert_alike(two.workdir, one.workdir, 24)


@pytest.mark.slow   # two processes that compile, for half a minute each
@pytest.mark.parametrize('processes, devices, mesh, flags', [
    (2, 2, 'data 4', ()),
    (4, 1, 'data 4', ()),
    (2, 2, 'data 2 x fsdp 2', ('--config.sharding.strategy=fsdp',
                               '--config.sharding.fsdp=2')),
    (2, 2, 'data 2 x model 2', ('--config.sharding.model=2',)),
])
def test_any_number_of_processes_trains_like_one(
    alone, cache, tmp_path, processes, devices, mesh, flags):
  run = finish(tmp_path / 'run', processes, devices, flags=flags, cache=cache)
  assert f'({mesh})' in run.said()
  assert f'process  {processes - 1} on ' in run.said()
  for i in range(1, processes):   # process 0 logs for all
    assert 'step' not in run.said(i) and 'Traceback' not in run.said(i)
  assert_alike(run.workdir, alone)


# Prints a hash of the global batches that several training steps get.
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
def test_the_global_batch_of_several_processes_equals_that_of_one(tmp_path):
  """test_sources tests the rows that each host reads; here they are put
  together on the devices."""
  crops = tfds_sets.draw_crops()
  folder, _ = pictures.write_folder(tmp_path / 'files', crops)
  sets = dict(
      arrays=pictures.write_arrays(tmp_path / 'arrays.npz', crops, 12),
      folder=folder, array_record=tfds_sets.prepare_crops(
          str(tmp_path / 'array_record'), 'array_record', crops))
  sets = json.dumps({kind: dict(one, split='train', crop='bit', image_size=12)
                     for kind, one in sets.items()})

  def digests(number):
    with socket.socket() as s:
      s.bind(('127.0.0.1', 0))
      port = s.getsockname()[1]
    env = dict(os.environ, JAX_PLATFORMS='cpu', no_grpc_proxy='127.0.0.1',
               XLA_FLAGS='--xla_force_host_platform_device_count=1',
               # Saves a second: TensorFlow then looks for an old Keras, which
               # is not installed, instead of importing the new one.
               TF_USE_LEGACY_KERAS='1')
    members = [subprocess.Popen(
        [sys.executable, '-c', BATCHES, f'127.0.0.1:{port}', str(number),
         str(i), sets], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE)
        for i in range(number)]
    out = [m.communicate(timeout=TIMEOUT)[0] for m in members]
    assert [m.returncode for m in members] == [0] * number
    found = [[line for line in text.splitlines() if line.split()[0] in (
        'arrays', 'folder', 'array_record')] for text in out]
    assert all(len(lines) == 3 for lines in found), out
    assert all(lines == found[0] for lines in found)
    return found[0]

  one = digests(1)
  # The arrays live on the device, the folder does not.
  assert "'position'" in one[0] and "'image'" in one[1]
  assert digests(2) == digests(4) == one


# mixer.main that also writes the epochs and records of each batch to a file.
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
sys.argv = ['mixer/main.py', '--noreport', *sys.argv[1:]]
runpy.run_module('mixer.main', run_name='__main__')
"""


def trained_on(path, processes):
  """[(epochs, records)] of each global batch that the processes wrote down."""
  parts = [[json.loads(line) for line in pathlib.Path(
      f'{path}{i}').read_text().splitlines()] for i in range(processes)]
  assert len({len(part) for part in parts}) == 1
  return [tuple(np.concatenate(column) for column in zip(*of_step))
          for of_step in zip(*parts)]


@pytest.mark.slow   # three starts, on other devices each
def test_a_run_resumed_twice_on_fewer_devices_sees_each_example_once(
    tmp_path, cache, monkeypatch):
  """Losses and parameters are those of a run that was never stopped."""
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
  # Rounding errors grow: after 600 steps, losses differed by 6e-6.
  assert_alike(workdir, tmp_path / 'whole', total, rounding=5e-5)

  assert len(batches) == total
  epochs, records = (np.concatenate(column) for column in zip(*batches))
  assert (np.diff(epochs) >= 0).all()
  full = total * 128 // EXAMPLES
  for epoch in range(full):
    seen = records[epochs == epoch]
    assert len(seen) == len(set(seen)) == EXAMPLES
  last = records[epochs == full]
  assert len(last) == len(set(last)) == total * 128 % EXAMPLES


@pytest.fixture(scope='module')
def pair(tmp_path_factory, cache):
  """The workdir of a run of two processes with one device each."""
  return finish(tmp_path_factory.mktemp('pair') / 'run', 2, total=PAIRED,
                cache=cache).workdir


def assert_ends_for_a_restart(run, survivor):
  """A process whose peer is gone ends with a code that is restarted."""
  code = run.members[survivor].wait(TIMEOUT)
  print(f'exit code {code}:\n{run.said(survivor)}')
  # Popen gives a negative number if a signal ended the process, a shell one
  # above 126.
  assert code == 42 or code > 126 or code == -signal.SIGABRT, run.everything()
  if code == 134:   # the project's own error, not JAX's
    assert re.search('^error: another process of this run is gone; start all '
                     'of them again', run.said(survivor), re.MULTILINE)
    assert 'Traceback' not in run.said(survivor)


@pytest.mark.slow   # two starts of two processes
@pytest.mark.parametrize('killed', [0, 1])
def test_if_one_process_is_killed_the_other_ends_and_both_can_resume(
    pair, cache, tmp_path, killed):
  workdir = tmp_path / 'run'
  with Run(workdir, 2, total=PAIRED, cache=cache) as run:
    run.until_step(50)
    run.members[killed].kill()
    assert_ends_for_a_restart(run, 1 - killed)
  kept = saved(workdir)
  assert kept and kept[-1] >= 20
  again = finish(workdir, 2, total=PAIRED, cache=cache)
  assert f'resuming at step {kept[-1]}' in again.said()
  np.testing.assert_array_equal(losses(workdir, PAIRED), losses(pair, PAIRED))
  assert evaluations(workdir) == evaluations(pair)


def two(program, *args):
  """Starts two processes of a program that gets HOST:PORT and its index."""
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
time.sleep(3600)
"""


@pytest.mark.slow   # two processes that connect
def test_sigterm_ends_a_command_that_saves_nothing():
  """Such as `mixer.evaluate`, which has no checkpoint to save first."""
  begun = two(WAITING)
  try:
    for process in begun:   # before the first ends, which ends the second too
      assert 'there\n' in iter(process.stdout.readline, '')
    for process in begun:
      process.terminate()
    assert [p.wait(TIMEOUT) for p in begun] == [-signal.SIGTERM] * 2
  finally:
    for process in begun:
      process.kill()


LONELY = """
import sys
from mixer.core import log, processes
log.setup()
processes._JOIN_SECONDS = 3
processes.join(coordinator=sys.argv[1], num_processes=2,
               process_id=int(sys.argv[2]))
"""


@pytest.mark.slow   # two processes that wait
def test_a_process_that_nobody_joins_ends_after_the_time_it_announced():
  """JAX itself ends it, so the log says before what it waits for."""
  first, second = two(LONELY)
  try:
    second.kill()
    out, _ = first.communicate(timeout=TIMEOUT)
    assert first.returncode == -signal.SIGABRT, out
    assert re.match(r'waiting  for the other processes at 127\.0\.0\.1:\d+, '
                    'up to 3 s', out)
  finally:
    first.kill()
    second.wait()


PARTS = """
import sys
import jax, jax.numpy as jnp
from mixer.core import checkpoint, checkpoint_reader, processes
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
  params, _, meta = checkpoint_reader.restore(
      checkpoints, wanted, {'step': number_of})
  parts = params['kernel'].addressable_shards
  print('restored', meta['step'], {int(p.data.mean()) for p in parts})
checkpoints.close()
processes.leave()
"""


@pytest.mark.slow   # two processes, started twice
def test_if_one_process_cannot_read_its_part_all_restore_the_step_before(
    tmp_path):
  def both(save):
    begun = two(PARTS, str(tmp_path / 'c'), save)
    try:
      out = [process.communicate(timeout=TIMEOUT)[0] for process in begun]
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


@pytest.mark.slow   # the other process ends when a heartbeat is missed
@pytest.mark.parametrize('mistaken', [0, 1])
def test_an_error_of_one_process_does_not_hang_the_other(
    cache, tmp_path, mistaken):
  with Run(tmp_path / 'run', 2, cache=cache, only={mistaken: [
      '--config.data.name=arrays:/nowhere.npz']}) as run:
    assert run.members[mistaken].wait(TIMEOUT) == 2
    assert 'error: data.name' in run.said(mistaken)
    assert 'Traceback' not in run.said(mistaken)
    assert_ends_for_a_restart(run, 1 - mistaken)


@pytest.mark.slow   # two processes that compile
def test_if_a_run_diverges_all_processes_fail(tmp_path, cache):
  """The first to end must not look like a lost peer to the others: then the
  launcher would start all of them again."""
  with Run(tmp_path / 'run', 2, cache=cache, flags=(
      '--config.schedule.learning_rate=2e9',
      '--config.optimizer.clip_norm=0.0')) as run:
    assert run.codes() == [1, 1], run.everything()
  for i in range(2):
    assert 'error: step' in run.said(i) and 'Traceback' not in run.said(i)


@pytest.mark.slow   # two processes that open data
def test_a_mistake_in_the_command_is_reported_by_all_processes(
    tmp_path, cache):
  with Run(tmp_path / 'run', 2, cache=cache, flags=(
      '--config.data.name=arrays:/nowhere.npz',)) as run:
    assert run.codes() == [2, 2], run.everything()
  for i in range(2):
    assert 'error: data.name' in run.said(i), run.everything()


@pytest.mark.slow   # two processes that connect
def test_a_workdir_that_not_all_processes_share_is_refused(tmp_path, cache):
  """Even if it has the lock file of an older run. Otherwise the processes would
  hang at the first checkpoint."""
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / '.lock').write_text('process 1 on earth')
  with Run(tmp_path / 'run', 2, cache=cache, only={
      1: [f'--workdir={tmp_path / "other"}']}) as run:
    assert run.codes() == [2, 2], run.everything()
  for i in range(2):
    assert 'error: --workdir' in run.said(i) and 'share' in run.said(i)


@pytest.mark.slow   # two processes, started twice
def test_the_launcher_restarts_both_processes_when_one_is_killed(
    pair, cache, tmp_path):
  copy, workdir = launching.copy(tmp_path / 'copy'), tmp_path / 'run'
  for name in ('mixer', 'configs'):
    (copy / name).symlink_to(ROOT / name)
  launching.script(copy / '.venv' / 'bin' / 'python',
                   f'exec {shlex.quote(sys.executable)} "$@"')
  done = launching.run(   # so that the launcher installs nothing
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
    end = time.monotonic() + TIMEOUT
    while max(rows(workdir), default=0) < 50:
      assert launcher.poll() is None and time.monotonic() < end, said()
      time.sleep(0.01)
    victim, = members('mixer.main', '--process_id=1')
    victim.kill()
    assert launcher.wait(TIMEOUT) == 0, said()
  finally:
    launcher.kill()
    for process in members():
      process.kill()
    launcher.wait()
  assert re.search('exited with .*: starting all 2 again', said()), said()
  assert 'resuming at step' in said()
  np.testing.assert_array_equal(losses(workdir, PAIRED), losses(pair, PAIRED))
