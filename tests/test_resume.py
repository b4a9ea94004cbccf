"""A run that was killed or stopped ends with the same bits as one that was not.
"""
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pictures
from PIL import Image
import pytest

from mixer.core import checkpoint
from mixer.core import checkpoint_reader
from mixer.core import trees
from mixer.training import resume
from mixer.training import watchdog

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STEPS = 120


def start(workdir, devices=1, *extra):
  """Starts `mixer.main` in a process of its own."""
  command = [
      sys.executable, '-m', 'mixer.main', '--noreport', '--config=configs/digits.py',
      f'--workdir={workdir}', '--config.model.num_blocks=2',
      '--config.model.hidden_dim=16', '--config.model.dropout_rate=0.1',
      f'--config.run.total_steps={STEPS}', '--config.run.log_every=1',
      '--config.run.eval_every=1', '--config.checkpoint.every=20', *extra]
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=(
      f'--xla_force_host_platform_device_count={devices}'))
  return subprocess.Popen(command, cwd=ROOT, env=env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(workdir, *args):
  """Runs to the end; returns what the command printed."""
  process = start(workdir, *args)
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out
  return out


def rows(workdir):
  """Returns {step: metrics}, without those that depend on time."""
  out = {}
  with open(os.path.join(workdir, 'metrics.jsonl')) as f:
    for line in f:
      try:
        row = json.loads(line)
      except ValueError:   # a line that is being written
        continue
      assert row['step'] not in out
      out[row['step']] = {k: v for k, v in row.items()
                          if 'second' not in k and 'utilisation' not in k}
  return out


def signal_at(workdir, step, number, devices=1, *extra):
  """Starts a run and sends a signal once `step` is logged.

  Returns:
    (exit code, what the command printed).
  """
  process = start(workdir, devices, *extra)
  end = time.monotonic() + 200
  while process.poll() is None and time.monotonic() < end:
    try:
      if max(rows(workdir), default=0) >= step:
        process.send_signal(number)
        break
    except FileNotFoundError:
      pass
    time.sleep(0.002)
  out, _ = process.communicate(timeout=60)
  return process.returncode, out


def final(workdir):
  """Returns (parameters, digests) of the last checkpoint."""
  path = os.path.join(workdir, 'checkpoints', str(STEPS))
  assert os.path.isdir(path)
  with open(os.path.join(path, 'meta', 'metadata')) as f:
    return trees.flatten(checkpoint_reader.load_params(path)), json.load(f)['digest']


def assert_equal(a, b):
  """The runs in two workdirs have the same state and metrics."""
  (params_a, digest_a), (params_b, digest_b) = final(a), final(b)
  assert digest_a == digest_b   # of the optimizer state and the step as well
  for name, value in params_a.items():
    np.testing.assert_array_equal(value, params_b[name], err_msg=name)
  assert rows(a) == rows(b)
  assert sorted(rows(a)) == list(range(1, STEPS + 1))


def photo_folder(path):
  """Writes 90 photos of three classes, and two files that are no images."""
  rng = np.random.default_rng(0)
  photos = pictures.photos()
  for i in range(90):
    height, width = rng.integers(30, 90, 2)
    y, x = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
    where = path / 'abc'[i % 3]
    where.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photos[i % 2][y:y + height, x:x + width]).save(
        where / f'{i}.jpg')
  (path / 'a' / 'empty.jpg').touch()
  whole = (path / 'b' / '1.jpg').read_bytes()
  (path / 'b' / 'cut.jpg').write_bytes(whole[:len(whole) // 2])
  return path


@pytest.fixture(scope='module', autouse=True)
def compiled_once(tmp_path_factory):
  """All runs share what they compile."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('JAX_COMPILATION_CACHE_DIR',
                 str(tmp_path_factory.mktemp('compiled')))
    yield


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  """A function: number of devices -> workdir of a run that was not stopped."""
  made = {}

  def get(devices):
    if devices not in made:
      made[devices] = str(tmp_path_factory.mktemp(f'run{devices}'))
      finish(made[devices], devices)
    return made[devices]

  return get


@pytest.mark.slow   # whole runs, five of them
@pytest.mark.parametrize('devices', [1, 8])
def test_a_run_killed_at_random_steps_ends_with_the_same_bits(
    undisturbed, tmp_path, devices):
  draw = random.Random(devices)
  for _ in range(2):
    at = draw.randint(45, STEPS - 30)   # step 20 is saved by then
    code, out = signal_at(tmp_path, at, signal.SIGKILL, devices)
    assert code == -signal.SIGKILL, out
  out = finish(tmp_path, devices)
  assert 'resuming at step' in out
  assert_equal(undisturbed(devices), tmp_path)


@pytest.mark.slow   # tests/random_kills.py takes many more
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
  out = subprocess.run(
      [sys.executable, 'tests/random_kills.py', '--kills=3',
       f'--dir={tmp_path}'], cwd=ROOT, capture_output=True, text=True,
      timeout=600)
  assert out.returncode == 0, out.stdout + out.stderr
  assert '3 kills; ' in out.stdout and 'all with the same bits' in out.stdout


@pytest.mark.slow   # whole runs
@pytest.mark.parametrize('devices, number', [
    (1, signal.SIGTERM), (1, signal.SIGINT), (8, signal.SIGTERM)])
def test_a_run_asked_to_stop_saves_and_exits_with_42(
    undisturbed, tmp_path, devices, number):
  code, out = signal_at(tmp_path, 31, number, devices)
  assert code == 42 and 'stopped' in out and 'Traceback' not in out, out
  saved = max(int(n) for n in os.listdir(tmp_path / 'checkpoints')
              if n.isdigit())
  assert saved >= 31 and saved == max(rows(tmp_path))   # nothing is lost
  assert f'resuming at step {saved}' in finish(tmp_path, devices)
  assert_equal(undisturbed(devices), tmp_path)


@pytest.mark.parametrize('saved, metric, made_up', [
    (4, None, True), (3, None, False), (3, 'eval/test/accuracy', True),
    (5, 'eval/test/accuracy', False), (8, None, False), (12, None, False)])
def test_an_evaluation_is_made_up_only_if_it_was_due_and_is_missing(
    tmp_path, saved, metric, made_up):
  """Every fourth step is due, and with a best metric every third; step 8 was
  evaluated, and step 12 is the last one."""
  path = tmp_path / 'metrics.jsonl'
  path.write_text(''.join(
      json.dumps({'step': n, 'train/loss': n / 7} | (
          {'eval/test/loss': 'nan'} if n == 8 else {})) + '\n'
      for n in range(1, 13) if n != 3) + '{"step": 13, "tr')
  before = rows(tmp_path)
  with contextlib.closing(checkpoint.Checkpoints(
      tmp_path / 'checkpoints', every=3, best=metric)) as checkpoints:
    tree = {'kernel': np.arange(3, dtype=np.float32)}
    checkpoints.save(saved, tree, {'step': np.int32(saved)}, {})
    checkpoints.wait()
    found = {'eval/test/accuracy': 0.5, 'eval/test/loss': float('inf')}
    resume.make_up(str(tmp_path), checkpoints, types.SimpleNamespace(step=saved),
                   lambda state: found, total_steps=12,
                   settings=types.SimpleNamespace(eval_every=4),
                   stall=watchdog.Watch(60))
    assert checkpoints.improves(found) == bool(metric and not made_up)
  if metric:
    with contextlib.closing(checkpoint.Checkpoints(
        tmp_path / 'checkpoints', best=metric)) as checkpoints:
      assert checkpoints.improves(found) != made_up   # after a restart too
  if made_up:
    before.setdefault(saved, dict(step=saved)).update(
        found | {'eval/test/loss': 'inf'})
  assert rows(tmp_path) == before
  assert list(rows(tmp_path)) == sorted(before)


@pytest.mark.slow
def test_a_run_that_decodes_images_ends_with_the_same_bits_if_killed(tmp_path):
  """The same crops, augmentation and replacements of two bad files come again.
  """
  flags = (f'--config.data.name=folder:{photo_folder(tmp_path / "photos")}',
           '--config.data.crop=inception', '--config.data.max_bad_fraction=0.1',
           '--config.evals.test.split=validation',
           '--config.run.image_size=16', '--config.run.batch_size=24')
  finish(tmp_path / 'whole', 1, *flags)
  cut = tmp_path / 'cut'
  for at, number in ((45, signal.SIGKILL), (90, signal.SIGTERM)):
    code, out = signal_at(cut, at, number, 1, *flags)
    assert code == (42 if number == signal.SIGTERM else -number), out
  finish(cut, 1, *flags)
  assert_equal(tmp_path / 'whole', cut)
  assert rows(cut)[STEPS]['train/bad'] > 10
  with open(cut / 'bad_images.jsonl') as f:
    names = [os.path.basename(json.loads(line)['image']) for line in f]
  assert sorted(names) == ['cut.jpg', 'empty.jpg']   # each is listed once


@pytest.mark.slow   # a whole run
def test_a_finished_run_that_is_started_again_is_evaluated(undisturbed):
  before = rows(undisturbed(1))
  out = finish(undisturbed(1), 1)
  assert 'already finished' in out
  accuracy = before[STEPS]['eval/test/accuracy']
  assert f'{accuracy:.2%}' in out and rows(undisturbed(1)) == before


@pytest.mark.slow   # whole runs
def test_a_diverged_run_exits_with_1_and_names_the_metric(tmp_path):
  process = start(tmp_path, 1, '--config.schedule.learning_rate=2e9',
                  '--config.optimizer.clip_norm=0.0')
  out, _ = process.communicate(timeout=120)
  assert process.returncode == 1, out
  assert 'error: step' in out and 'learning_rate' in out
  assert 'Traceback' not in out
