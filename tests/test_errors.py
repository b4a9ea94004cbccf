"""A user's mistake is reported in one line, with exit code 2."""
import os
import pathlib
import re
import resource
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIGITS = '--config=configs/digits.py'
TINY = (DIGITS, '--config.run.total_steps=2', '--config.run.batch_size=16',
        '--config.model.num_blocks=1', '--config.model.hidden_dim=8',
        '--config.augment.rotate=0', '--config.augment.zoom=0',
        '--config.augment.shift=0', '--config.augment.mixup=0')
# A mistake is reported before anything is compiled: after a few seconds, nearly
# all of them for imports. It is CPU time that is limited, because other load on
# the machine does not change it.
CPU_SECONDS = 30
TIMEOUT = 600

# Mistakes: the flags ({dir} is an empty directory, {file} a file), and what the
# line must name: the key, the value and the remedy.
MISTAKES = {
    'no config': ((), ('--config', 'configs/digits.py')),
    'missing config': (
        ('--config=configs/nope.py',), ('--config', 'configs/nope.py')),
    'misspelled key': (
        (DIGITS, '--config.run.batchsize=8'),
        ('--config.run.batchsize=8', 'batch_size')),
    'misspelled key, and a config without =': (
        (*DIGITS.split('='), '--config.run.batchsize=8'),
        ('--config.run.batchsize=8', 'known: ')),
    'misspelled section': (
        (DIGITS, '--config.rum.batch_size=8'),
        ('--config.rum.batch_size=8', 'run')),
    'new evaluation': (
        (DIGITS, '--config.evals.new.split=test'),
        ('--config.evals.new.split=test', 'known: test')),
    'wrong type': (
        (DIGITS, '--config.run.batch_size=many'),
        ('--config.run.batch_size', 'many', 'int')),
    'wrong type of an unset key': (
        (DIGITS, '--config.model.hidden_dim=wide'),
        ('--config.model.hidden_dim', 'wide', 'int')),
    'key before its config': (
        ('--config.run.seed=3', DIGITS), ('--config.run.seed=3', '--config')),
    'misspelled flag': ((DIGITS, '--workdri=x'), ('workdri', 'workdir')),
    'unknown flag': ((DIGITS, '--foo=x'), ('foo', '--help')),
    'extra argument': ((DIGITS, 'extra'), ("'extra'", '--config.')),
    'two lengths': (
        (DIGITS, '--config.run.total_steps=3', '--config.run.total_epochs=2'),
        ('total_steps', 'total_epochs', 'one')),
    'no length': (
        (DIGITS, '--config.run.total_steps=0'),
        ('total_steps', '0', 'above 0')),
    'batch that 8 devices do not divide': (
        (DIGITS, '--config.run.batch_size=100'),
        ('run.batch_size', '100', '8 devices', '96')),
    'no image size': (
        (DIGITS, '--config.run.image_size=0'), ('run.image_size', '0')),
    'negative seed': (
        (*TINY, '--config.run.seed=-1'), ('run.seed', '-1', 'from 0 to')),
    'missing data set': (
        ('--config=configs/mixer_b16.py', '--config.data.dir={dir}/none'),
        ('data.name', 'imagenet2012', '{dir}/none', '--config.data.dir')),
    'unknown kind of data': (
        (DIGITS, '--config.data.name=folders:x'),
        ('data.name', 'folders:x', 'digits')),
    'misspelled split': (
        (DIGITS, '--config.data.split=trian'),
        ('data.split', 'trian', "'train'")),
    'unknown crop': (
        (*TINY, '--config.data.crop=middle'),
        ('data.crop', 'middle', 'inception')),
    'unknown model': (
        (DIGITS, '--config.model.name=Mixr-B/16'),
        ('model.name', 'Mixr-B/16', "'Mixer-B/16'")),
    'image that patches do not fill': (
        (DIGITS, '--config.model.patch_size=3'), ('8x8', '3x3', '6 or 9')),
    'unknown optimizer': (
        (*TINY, '--config.optimizer.name=lion'),
        ('optimizer.name', 'lion', 'adam')),
    'unknown metric': (
        (*TINY, '--config.checkpoint.best=eval/test/acuracy'),
        ('checkpoint.best', 'eval/test/acuracy', 'eval/test/accuracy')),
    'missing weights': (
        (*TINY, '--config.start.weights={dir}/none'),
        ('start.weights', '{dir}/none', 'Mixer-B/16-imagenet21k')),
    'start without weights': (
        (*TINY, '--config.start.best=True'),
        ('start.best', 'True', 'start.weights is not set')),
    'no workdir': ((DIGITS, '--workdir='), ('--workdir', 'unset')),
    'home of the user': (
        ('--report', '--workdir=~/gone'),
        (os.path.expanduser('~/gone'), 'config.json')),
    'config without get_config': (
        ('--config=configs/recipe.py',),
        ('--config=configs/recipe.py', 'no function get_config')),
    'config file with a mistake': (
        ('--config={dir}/own.py',), ('{dir}/own.py', "'modle'", '"model"')),
    'config that is none': (
        ('--config={dir}/other.py',), ('--config', 'expected a ConfigDict, got 3')),
    'workdir that is a file': (
        (DIGITS, '--workdir={file}'), ('--workdir', '{file}', 'another')),
}


def main(*flags, devices=8):
  """Runs `python -m mixer.main` in a process of its own."""
  env = dict(os.environ, JAX_PLATFORMS='cpu',
             XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}')
  return subprocess.run(
      [sys.executable, '-m', 'mixer.main', '--noreport', *flags], cwd=ROOT, env=env,
      capture_output=True, text=True, timeout=TIMEOUT)


def cpu_seconds():
  """CPU time of all child processes that have ended."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def assert_one_line(out, *parts):
  lines = out.stderr.splitlines()
  assert len(lines) == 1, out.stderr
  assert lines[0].startswith('error: ')
  assert 'Traceback' not in out.stderr + out.stdout
  assert len(lines[0]) < 600 and '\\n' not in lines[0]
  for part in parts:
    assert part in lines[0]
  assert out.returncode == 2


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_reported_in_one_line(mistake, tmp_path, record_property):
  """The line names the key, the value and the remedy, and comes before anything
  is compiled. The exit code is 2."""
  flags, parts = MISTAKES[mistake]
  file = tmp_path / 'file'
  file.write_text('not a directory\n')
  (tmp_path / 'own.py').write_text('''
from configs import recipe
def get_config():
  c = recipe.base()
  c.modle.name = 'Mixer-S/4'
  return c''')
  (tmp_path / 'other.py').write_text('get_config = lambda: 3')
  fill = lambda text: text.replace('{dir}', str(tmp_path)).replace(
      '{file}', str(file))
  flags = [fill(flag) for flag in flags]
  if not any(flag.startswith('--workdir') for flag in flags):
    flags.append(f'--workdir={tmp_path}/run')
  began = cpu_seconds()
  out = main(*flags)
  record_property('cpu_seconds', cpu_seconds() - began)
  assert_one_line(out, *map(fill, parts))
  assert cpu_seconds() - began < CPU_SECONDS
  assert file.read_text() == 'not a directory\n'


@pytest.mark.slow   # whole runs
def test_a_workdir_of_another_config_is_refused(tmp_path):
  """The error names each key with the old and the new value, and the run in the
  workdir stays as it was. A command that is refused before it trains leaves no
  config behind: with its mistake corrected, it can use the same workdir."""
  workdir = f'--workdir={tmp_path}/run'
  assert_one_line(main(*TINY, workdir, '--config.model.patch_size=3',
                       devices=1), '3x3')
  out = main(*TINY, workdir, devices=1)
  assert out.returncode == 0, out.stderr + out.stdout
  metrics = (tmp_path / 'run' / 'metrics.jsonl').read_bytes()

  began = cpu_seconds()
  out = main(*TINY, workdir, '--config.augment.mixup=0.5',
             '--config.augment.flip=true', devices=1)
  assert cpu_seconds() - began < CPU_SECONDS
  assert_one_line(out, '--workdir', f'{tmp_path}/run', 'another',
                  'augment.mixup was 0.0, is 0.5', 'augment.flip')
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == metrics
  assert [p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir()
          if p.is_dir()] == ['2']


@pytest.mark.slow   # whole runs
def test_a_run_that_diverges_ends_with_one_line(tmp_path):
  """The line names the step and what to try. The exit code is 1: the run would
  diverge again if it were restarted."""
  np.savez(tmp_path / 'a.npz', labels=np.arange(64) % 2, images=np.random
           .default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8))
  out = main(*TINY, f'--workdir={tmp_path}/run', '--config.run.log_every=1',
             '--config.run.total_steps=40', '--config.optimizer.clip_norm=0',
             f'--config.data.name=arrays:{tmp_path}/a.npz',
             '--config.schedule.learning_rate=2e9', devices=1)
  assert out.returncode == 1, out.stderr
  lines = [line for line in out.stderr.splitlines()
           if line.startswith('error: ')]
  assert len(lines) == 1 and 'Traceback' not in out.stderr
  assert re.search(r'step \d+', lines[0])
  assert 'schedule.learning_rate' in lines[0]


def test_help_shows_an_example_the_exit_codes_and_the_flags():
  out = main('--help')
  assert out.returncode == 0 and not out.stderr
  for part in ('python -m mixer.main', '--config', '--workdir', '42',
               '--coordinator: HOST:PORT'):
    assert part in out.stdout


def test_an_unknown_key_in_a_config_file_is_reported_in_one_line(tmp_path):
  """ml_collections checks only the keys of flags such as --config.run.seed."""
  (tmp_path / 'mine.py').write_text(
      'from configs import digits\n'
      'def get_config():\n'
      '  c = digits.get_config()\n'
      '  c.augment.flop = True\n'
      '  return c\n')
  out = main(f'--config={tmp_path}/mine.py', f'--workdir={tmp_path}/run')
  assert_one_line(out, 'config.augment', "'flop'", "'flip'")
  assert not (tmp_path / 'run').exists()


def test_ctrl_c_before_training_ends_with_one_line_and_code_130():
  """For example while images are listed; a training run saves instead."""
  code = ('import os, signal, sys; from mixer.core import command; '
          'command.run(lambda argv: os.kill(os.getpid(), signal.SIGINT) or '
          'signal.pause())')
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True,
                       capture_output=True, timeout=TIMEOUT)
  assert (out.returncode, out.stderr) == (130, 'stopped: by Ctrl-C\n')


def test_windows_without_wsl_is_refused_in_one_line():
  code = ('import sys; sys.platform = "win32"; from mixer.core import command; '
          'command.run(print)')
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True,
                       capture_output=True, timeout=TIMEOUT)
  assert_one_line(out, 'Linux and macOS', 'WSL')
