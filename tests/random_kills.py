"""Kills a training run at random moments until it ends; compares the bits.

The run saves every two steps, so many kills fall into a save. A run that was
killed again and again must end with the same bits as one that was not, and must
never lose a checkpoint that was complete. Then the next run begins.

  python tests/random_kills.py --kills=200 --dir=/tmp/kills

The same command goes on where it was stopped; `kills.jsonl` in the directory
holds a line for each kill. A kill takes a few seconds on two cores.
"""
import argparse
import json
import multiprocessing
import os
import pathlib
import random
import signal
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = 80
FLAGS = (
    '--config=configs/digits.py', '--config.model.num_blocks=2',
    '--config.model.hidden_dim=16', '--config.model.dropout_rate=0.1',
    f'--config.run.total_steps={STEPS}', '--config.run.log_every=1',
    '--config.run.eval_every=20', '--config.checkpoint.every=2')
# A killed run starts from a process that has imported these, which halves the
# time of a start. None of them starts JAX's backend.
PRELOAD = ('mixer.main', 'mixer.training.run', 'mixer.training.resume',
           'orbax.checkpoint')


def train(workdir: str, log: str) -> None:
  """Runs `mixer.main` in this process, with its output in a file."""
  from mixer import main
  from mixer.core import command
  out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(out, 1)
  os.dup2(out, 2)
  sys.argv = ['mixer.main', '--noreport', *FLAGS, f'--workdir={workdir}']
  command.run(main.main, several=True)


def complete(workdir: pathlib.Path) -> int:
  """Returns the newest step with a complete checkpoint; 0 without any.

  Orbax writes into a directory of another name and renames it at the end.
  """
  return max((int(path.name) for path in (workdir / 'checkpoints').glob('*')
              if path.name.isdigit()), default=0)


def outcome(workdir: pathlib.Path) -> tuple[dict, str, list]:
  """Returns (parameters, digest, metrics without times) of a finished run."""
  from mixer.core import checkpoint_reader
  from mixer.core import trees
  path = workdir / 'checkpoints' / str(STEPS)
  digest = json.loads((path / 'meta' / 'metadata').read_text())['digest']
  rows = [{k: v for k, v in json.loads(line).items()
           if 'second' not in k and 'utilisation' not in k}
          for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  return trees.flatten(checkpoint_reader.load_params(str(path))), digest, rows


class Harness:
  """Runs that are killed, in one directory.

  Args:
    root: directory of the runs; may hold earlier ones.
  """

  def __init__(self, root: pathlib.Path):
    self.root, self.list = root, root / 'kills.jsonl'
    root.mkdir(parents=True, exist_ok=True)
    os.environ.update(JAX_PLATFORMS='cpu', JAX_COMPILATION_CACHE_DIR=str(
        root.resolve() / 'compiled'))
    os.chdir(ROOT)
    self.processes = multiprocessing.get_context('forkserver')
    self.processes.set_forkserver_preload(list(PRELOAD))
    self.undisturbed = root / 'undisturbed'
    if complete(self.undisturbed) < STEPS:
      code, log = self.start(self.undisturbed, None)
      assert code == 0, log

  def done(self) -> int:
    """Returns the number of kills so far."""
    return len(self.list.read_text().splitlines()) if self.list.exists() else 0

  def start(self, workdir: pathlib.Path, draw: random.Random | None
            ) -> tuple[int | None, str]:
    """Starts the run and kills it; returns (exit code, its output).

    Args:
      workdir: of the run.
      draw: draws the moment; None lets the run end.
    """
    log = self.root / 'log'
    log.unlink(missing_ok=True)
    process = self.processes.Process(target=train, args=(str(workdir), str(log)))
    process.start()
    if draw is not None:
      # One kill of four at any moment of the start, the others while it trains.
      if draw.random() < 0.75:
        saves = workdir / 'checkpoints'
        before = saves.stat().st_mtime_ns if saves.exists() else 0
        while process.is_alive() and (
            not saves.exists() or saves.stat().st_mtime_ns == before or
            not any(saves.iterdir())):
          time.sleep(0.002)   # until the first save begins
        process.join(draw.uniform(0, 2))
      else:
        process.join(draw.uniform(0, 8))
      if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join(300)
    return process.exitcode, log.read_text() if log.exists() else ''

  def kill(self, draw: random.Random) -> None:
    """Kills the current run once, or lets it end and compares it."""
    ended = len(list(self.root.glob('ended*')))
    workdir = self.root / 'current'
    before = complete(workdir)
    code, log = self.start(workdir, draw)
    assert code in (0, -signal.SIGKILL), f'exit {code}\n{log}'
    resumed = [int(line.split('resuming at step ')[1].split()[0])
               for line in log.splitlines() if 'resuming at step ' in line]
    assert all(step >= before for step in resumed), (
        f'step {before} was complete, and the run resumed at {resumed}\n{log}')
    if code == 0:
      self.compare(workdir)
      workdir.rename(self.root / f'ended{ended}')
      return
    with self.list.open('a') as file:
      file.write(json.dumps(dict(run=ended, resumed_at=resumed,
                                 newest=complete(workdir))) + '\n')

  def compare(self, workdir: pathlib.Path) -> None:
    """Raises an AssertionError if the run differs from the undisturbed one."""
    params, digest, rows = outcome(workdir)
    wanted, wanted_digest, wanted_rows = outcome(self.undisturbed)
    assert params.keys() == wanted.keys()
    for name, value in params.items():
      np.testing.assert_array_equal(value, wanted[name], err_msg=name)
    assert digest == wanted_digest and rows == wanted_rows


def kill(root: pathlib.Path, kills: int) -> int:
  """Kills until there are `kills` in all and the last run has ended.

  Returns:
    The number of runs that ended with the bits of the undisturbed one.
  """
  harness = Harness(root)
  while harness.done() < kills:
    harness.kill(random.Random(harness.done()))
    print(f'\r{harness.done()} of {kills} kills', end='', flush=True)
  if (root / 'current').exists():
    code, log = harness.start(root / 'current', None)
    assert code == 0, log
    harness.compare(root / 'current')
    (root / 'current').rename(
        root / f'ended{len(list(root.glob("ended*")))}')
  return len(list(root.glob('ended*')))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--kills', type=int, default=200)
  parser.add_argument('--dir', type=pathlib.Path, required=True)
  args = parser.parse_args()
  runs = kill(args.dir.absolute(), args.kills)
  print(f'\n{args.kills} kills; {runs} runs ended, all with the same bits')


if __name__ == '__main__':
  sys.path.insert(0, str(ROOT))
  main()
