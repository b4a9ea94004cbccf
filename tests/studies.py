"""Runs an experiment of `mixer.study` on digits, twice by the same command."""
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run_twice(folder, name, *flags, runs):
  """Returns result.json of an experiment with a Mixer of one block.

  Args:
    folder: its workdir.
    name: of the experiment.
    *flags: more flags.
    runs: how many runs the first command starts; the second starts none, and
      finds the same.
  """
  command = [sys.executable, '-m', 'mixer.study', name,
             '--config=configs/digits.py', '--config.model.num_blocks=1',
             '--config.model.stochastic_depth=0', f'--workdir={folder}', *flags]
  found = []
  for started in (runs, 0):
    out = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=600,
        env=dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=''))
    assert out.returncode == 0, out.stderr
    assert out.stdout.count('study    run') == started
    found.append(json.loads((folder / 'result.json').read_text()))
  assert found[0] == found[1]
  return found[0]
