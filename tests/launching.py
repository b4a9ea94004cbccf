"""What the tests of the launch scripts share."""
import os
import pathlib
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden'


def run(*command, cwd=ROOT, timeout=60, **env):
  return subprocess.run(
      [str(c) for c in command], cwd=cwd, env={**os.environ, **env}, text=True,
      stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)


def script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f'#!/bin/bash\n{text}\n')
  path.chmod(0o755)
  return path


def copy(path):
  """A checkout with nothing but the launch scripts."""
  shutil.copytree(ROOT / 'launch', path / 'launch')
  (path / 'requirements.txt').write_text('a==1\n')
  (path / 'launch' / 'requirements-cuda.txt').write_text(
      '-r ../requirements.txt\nb==1\n')
  return path


def dry_run(path, name, *command):
  """Compares what a dry run prints with the file of that name in golden/, and
  sees that no tool was called.

  How to accept a wanted change: run the command of the case, with --dry-run,
  and put what it prints into the file.
  """
  tools = ['gcloud', 'kubectl', 'sbatch', 'srun', 'nvidia-smi']
  for tool in tools:
    script(path / tool, f'echo "$@" >>{path}/called')
  done = run(*command, PATH=f'{path}:{os.environ["PATH"]}')
  assert done.returncode == 0, done.stderr
  assert done.stdout == (GOLDEN / f'{name}.txt').read_text()
  assert sorted(os.listdir(path)) == sorted(tools)
  return done


def usage_error(path, message, *command, **env):
  """Sees that a command ends with 2 and one line, and calls no tool."""
  for tool in ['gcloud', 'kubectl', 'sbatch', 'nvidia-smi']:
    script(path / tool, f'echo "$@" >>{path}/called')
  done = run(*command, PATH=f'{path}:{os.environ["PATH"]}', **env)
  assert done.returncode == 2, done
  assert done.stderr.startswith('error: ') and message in done.stderr
  assert done.stderr.count('\n') == 1
  assert not (path / 'called').exists()


def until(condition, seconds=20):
  """Waits until `condition()` is true."""
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'it takes too long'
    time.sleep(0.02)


def lines(path):
  """A file's lines; none if it is not there."""
  return path.read_text().splitlines() if path.exists() else []
