"""The files that a run leaves behind, by the command that people use."""
import json
import pathlib
import subprocess
import sys

import pytest

from mixer.core import command
from mixer.core import processes

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of a short run with the sigmoid loss."""
  workdir = tmp_path_factory.mktemp('run') / 'digits'
  out = subprocess.run(
      [sys.executable, '-m', 'mixer.main', '--noreport', '--config=configs/digits.py',
       '--config.run.total_steps=4', '--config.run.log_every=2',
       '--config.loss.name=sigmoid', '--config.model.hidden_dim=8',
       '--config.model.num_blocks=1', '--config.augment.rotate=0',
       '--config.augment.zoom=0', '--config.augment.shift=0',
       f'--workdir={workdir}'],
      cwd=ROOT, capture_output=True, text=True, timeout=600)
  assert out.returncode == 0, out.stderr
  return workdir


def test_the_card_has_the_loss_of_the_run(run):
  assert json.loads((run / 'model.json').read_text())['loss'] == 'sigmoid'


def test_parameters_are_listed_by_name_and_shape(run):
  text = (run / 'parameters.txt').read_text()
  assert 'MixerBlock_0/token_mixing/Dense_0/kernel' in text
  assert 'Total:' in text


def test_programs_are_kept_for_the_next_start(run):
  assert any((run / 'compiled').iterdir())


def test_tensorboard_gets_the_metrics(run):
  path, = run.glob('events.out.tfevents.*')
  text = path.read_bytes()
  assert b'train/loss' in text and b'eval/test/accuracy' in text


def test_metrics_have_one_line_a_step(run):
  rows = [json.loads(line)
          for line in (run / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in rows] == [2, 4]
  assert 'eval/test/accuracy' in rows[-1] and 'train/loss' in rows[0]


def test_the_heartbeat_of_the_config_reaches_jax(monkeypatch):
  """How long a silent process is waited for."""
  import jax
  given = {}
  monkeypatch.setattr(jax.distributed, 'initialize',
                      lambda **settings: given.update(settings))
  monkeypatch.setattr(processes, 'log', command.log.log)
  processes.join(coordinator='localhost:1', num_processes=2, process_id=0,
                 heartbeat_timeout_seconds=77)
  assert given['heartbeat_timeout_seconds'] == 77


def test_the_command_hands_the_heartbeat_on(tmp_path, monkeypatch):
  """From run.heartbeat_timeout_seconds to the start of several processes."""
  code = (
      'import sys; from mixer.core import command, processes; '
      'from mixer import main\n'
      'def join(**settings):\n'
      '  print("given", settings["heartbeat_timeout_seconds"]); sys.exit(0)\n'
      'processes.join = join\n'
      'command.run(main.main, several=True)')
  out = subprocess.run(
      [sys.executable, '-c', code, '--config=configs/digits.py',
       '--config.run.heartbeat_timeout_seconds=77', f'--workdir={tmp_path}/r'],
      cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert 'given 77' in out.stdout, out.stderr
