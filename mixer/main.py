"""Trains, evaluates and saves a network, and resumes a run.

  python -m mixer.main --config=configs/digits.py
  python -m mixer.main --config=configs/mixer_b16.py:imagenet2012,adam \\
    --config.data.dir=/data/tfds --workdir=/data/runs/b16

To resume a run that was stopped or killed, start the same command again. The
report of a run, WORKDIR/report.html, is written at its end, and by

  python -m mixer.main --report --workdir=runs/digits

Exit codes: 0 the run is complete; 1 it failed, and would fail again; 2 wrong
usage or config; 42 it was asked to stop and has saved, start it again; 130 or
143 a signal stopped it with nothing to save; 134 another process of the run is
gone, start all of them again.

To use several hosts, start the command on each. Under Slurm, Open MPI 4, GKE
jobs and on TPU slices the processes find each other; elsewhere give each of
them --coordinator, --num_processes and --process_id.
"""
from collections.abc import Iterator
from collections.abc import Mapping
import os
import re
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from mixer.core import command
from mixer.core import errors
from mixer.core import processes
from mixer.core.log import log

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Config file, such as configs/digits.py; some take an '
    'argument after a colon. --config.SECTION.KEY=VALUE changes a setting.',
    lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory for checkpoints, metrics and all else that the '
    'run writes. Default: runs/ and the name of the config with its argument.')
_REPORT = flags.DEFINE_bool(
    'report', None, 'Only write the report of the run in --workdir, and train '
    'nothing; no --config is needed. --noreport trains without writing one.')


def main(argv: list[str]) -> None:
  """Trains as --config says, or writes the report of a run."""
  del argv
  if _REPORT.value:
    _report_only()
    return
  if _CONFIG.value is None:
    raise errors.UserError('--config is required, such as '
                           '--config=configs/digits.py')
  if 'run' in _CONFIG.value:
    command.one_length(_CONFIG.value.run)
  # Imported only now, so that a mistake in the flags is reported at once.
  from mixer.core import workdir
  from mixer.training import assembly
  from mixer.training import run
  path = command.folder(
      os.path.join('runs', command.config_name()) if _WORKDIR.value is None
      else _WORKDIR.value)
  settings = assembly.check(_CONFIG.value)
  command.join(heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
               stoppable=True)
  workdir.keep_compiled(path)
  scores = run.train(_CONFIG.value, path)
  if processes.first():
    reported = _REPORT.value is None and _report(path)
    _summarise(scores, path, 'report.html, ' if reported else '')


def _report_only() -> None:
  """Writes the report of the run in --workdir."""
  if _WORKDIR.value is None or _CONFIG.value is not None:
    raise errors.UserError(
        '--report: expected --workdir=DIR, the folder of a run, and no '
        '--config, which is read from DIR/config.json')
  from mixer.analysis import report
  print(f'Written: {report.write(command.folder(_WORKDIR.value))}')


def _report(workdir: str) -> bool:
  """Writes the report of a finished run, and returns whether it succeeded.

  A report that fails does not fail the run.
  """
  log.info('writing report.html')
  try:
    # Imported only now: a training step needs none of it.
    from mixer.analysis import report
    report.write(workdir)
    return True
  except (Exception, KeyboardInterrupt) as e:
    why = 'Ctrl-C' if isinstance(e, KeyboardInterrupt) else (
        str(e) if isinstance(e, errors.UserError) else f'{type(e).__name__}: '
        f'{" ".join(str(e).split())}')
    log.warning('report.html is left out: %s; to write it: python -m '
                'mixer.main --report --workdir=%s', why, shlex.quote(workdir))
    return False


def _summarise(scores: Mapping[str, float], workdir: str,
               report: str) -> None:
  """Prints the final accuracies, and commands to go on with."""
  from mixer.training import loop
  python = os.path.relpath(sys.executable)
  python = 'python' if python.startswith('..') else python
  checkpoint = f'--checkpoint={shlex.quote(workdir)}'
  seed = _CONFIG.value.run.get('seed', 0) + 1
  beside = re.sub(r'(-seed\d+)?/*$', f'-seed{seed}', workdir, count=1)
  again = ' \\\n    '.join([
      f'{python} -m mixer.main', *map(shlex.quote, _settings(sys.argv[1:])),
      f'--config.run.seed={seed}', f'--workdir={shlex.quote(beside)}'])
  print(f"""
Done: {loop.accuracies(scores) or 'training is complete'}.
Files in {workdir}: {report}metrics.jsonl, checkpoints/, model.json

Show the training curves in TensorBoard:
  {python} -m tensorboard.main --logdir={shlex.quote(workdir)}
Evaluate the network again, or classify images:
  {python} -m mixer.evaluate {checkpoint}
  {python} -m mixer.predict {checkpoint} IMAGE...
Convert it to ONNX:
  {python} -m mixer.export {checkpoint} --format=onnx --out=FILE.onnx
Train again with another seed:
  {again}""")


def _settings(args: list[str]) -> Iterator[str]:
  """Yields the flags other than the workdir and the process flags."""
  rest = iter(args)
  for arg in rest:
    if not re.match('-+(workdir|coordinator|num_processes|process_id)', arg):
      yield arg
    elif '=' not in arg:
      next(rest, None)   # the flag's value


if __name__ == '__main__':
  command.run(main, several=True)
