"""Errors are for people: a user's mistake is one line and exit code 2."""
import os
import pathlib
import re
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
SECONDS = 30   # a mistake takes a few, nearly all of them imports

# What is wrong, the flags ({dir} is an empty directory, {file} a file), and
# what the line must name: key, value, and what to do.
MISTAKES = {
    'no config': ((), ('--config', 'configs/digits.py')),
    'missing config': (
        ('--config=configs/nope.py',), ('--config', 'configs/nope.py')),
    'misspelled key': (
        (DIGITS, '--config.run.batchsize=8'),
        ('--config.run.batchsize=8', 'batch_size')),
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
        (*TINY, '--config.run.seed=-1'), ('run.seed', '-1', '0 <= seed')),
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
    'workdir that is a file': (
        (DIGITS, '--workdir={file}'), ('--workdir', '{file}', 'another')),
}


def main(*flags, devices=8):
  """`python -m mixer.main` in a process of its own."""
  env = dict(os.environ, JAX_PLATFORMS='cpu',
             XLA_FLAGS=f'--xla_force_host_platform_device_count={devices}')
  return subprocess.run(
      [sys.executable, '-m', 'mixer.main', *flags], cwd=ROOT, env=env,
      capture_output=True, text=True, timeout=4 * SECONDS)


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
def test_a_mistake_is_one_line(mistake, tmp_path, record_property):
  """It names the key, the value and the remedy; exit code 2; soon; and
  nothing is left in the working directory."""
  flags, parts = MISTAKES[mistake]
  file = tmp_path / 'file'
  file.write_text('not a directory\n')
  fill = lambda text: text.replace('{dir}', str(tmp_path)).replace(
      '{file}', str(file))
  flags = [fill(flag) for flag in flags]
  if not any(flag.startswith('--workdir') for flag in flags):
    flags.append(f'--workdir={tmp_path}/run')
  began = os.times().elapsed
  out = main(*flags)
  record_property('seconds', os.times().elapsed - began)
  assert_one_line(out, *map(fill, parts))
  assert os.times().elapsed - began < SECONDS
  assert file.read_text() == 'not a directory\n'


@pytest.mark.slow   # whole runs
def test_a_workdir_of_another_config_is_refused_by_key(tmp_path):
  """With the old and the new value; the run stays as it was. A command that
  was refused before it trained claims no workdir: corrected, it runs."""
  workdir = f'--workdir={tmp_path}/run'
  assert_one_line(main(*TINY, workdir, '--config.model.patch_size=3',
                       devices=1), '3x3')
  out = main(*TINY, workdir, devices=1)
  assert out.returncode == 0, out.stderr + out.stdout
  metrics = (tmp_path / 'run' / 'metrics.jsonl').read_bytes()

  began = os.times().elapsed
  out = main(*TINY, workdir, '--config.augment.mixup=0.5',
             '--config.augment.flip=true', devices=1)
  assert os.times().elapsed - began < SECONDS
  assert_one_line(out, '--workdir', f'{tmp_path}/run', 'another',
                  'augment.mixup was 0.0, is 0.5', 'augment.flip')
  assert (tmp_path / 'run' / 'metrics.jsonl').read_bytes() == metrics
  assert [p.name for p in (tmp_path / 'run' / 'checkpoints').iterdir()
          if p.is_dir()] == ['2']


@pytest.mark.slow   # whole runs
def test_a_run_that_failed_is_one_line(tmp_path):
  """Exit code 1 for what a restart would not mend: a loss that is no number,
  with the step and what to try."""
  np.savez(tmp_path / 'a.npz', labels=np.arange(64) % 2, images=np.random
           .default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8))
  out = main(*TINY, f'--workdir={tmp_path}/run', '--config.run.log_every=1',
             '--config.run.total_steps=40', '--config.optimizer.clip_norm=0',
             f'--config.data.name=arrays:{tmp_path}/a.npz',
             '--config.schedule.learning_rate=1e38', devices=1)
  assert out.returncode == 1, out.stderr
  lines = [line for line in out.stderr.splitlines()
           if line.startswith('error: ')]
  assert len(lines) == 1 and 'Traceback' not in out.stderr
  assert re.search(r'step \d+', lines[0])
  assert 'schedule.learning_rate' in lines[0]


def test_help_is_worth_reading():
  """The command, an example, the exit codes and the flags; exit code 0."""
  out = main('--help')
  assert out.returncode == 0 and not out.stderr
  for part in ('python -m mixer.main', '--config', '--workdir', '42',
               '--coordinator: HOST:PORT'):
    assert part in out.stdout


def test_a_key_that_nobody_reads_is_one_line(tmp_path):
  """In a config of one's own, where no override could have caught it."""
  (tmp_path / 'mine.py').write_text(
      'from configs import digits\n'
      'def get_config():\n'
      '  c = digits.get_config()\n'
      '  c.augment.flop = True\n'
      '  return c\n')
  out = main(f'--config={tmp_path}/mine.py', f'--workdir={tmp_path}/run')
  assert_one_line(out, 'config.augment', "'flop'", "'flip'")
  assert not (tmp_path / 'run').exists()


def test_ctrl_c_before_there_is_a_run(tmp_path):
  """While data is listed, say: one line, no traceback, 130."""
  code = ('import os, signal, sys; from mixer.core import command; '
          'command.run(lambda argv: os.kill(os.getpid(), signal.SIGINT) or '
          'signal.pause())')
  out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, text=True,
                       capture_output=True, timeout=SECONDS)
  assert (out.returncode, out.stderr) == (130, 'stopped: by Ctrl-C\n')
