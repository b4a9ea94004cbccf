"""Trains, evaluates, checkpoints and resumes a network.

  python -m mixer.main --config=configs/digits.py
  python -m mixer.main --config=configs/mixer_b16.py:imagenet2012,adam \\
    --config.data.dir=/data/tfds --workdir=/data/runs/b16

The same command goes on with a run that was stopped or killed. Exit codes: 0
done, 1 failed, 2 bad usage or config, 42 told to stop and saved, 134 another
process of the run is gone. Several processes meet by themselves under Slurm,
Open MPI 4, on TPU slices and in GKE's jobs; elsewhere each gets three flags:
--coordinator, --num_processes and --process_id.
"""
import os
import re
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from mixer.core import command
from mixer.core import errors
from mixer.core import processes

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file in configs/, and after a colon its argument; '
    '--config.SECTION.KEY=VALUE changes a setting.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the run lies; by default runs/, then the name of '
    'the config and its argument.')


def main(argv):
  del argv
  if _CONFIG.value is None:
    raise errors.UserError('--config is required, such as '
                           '--config=configs/digits.py')
  command.one_length(_CONFIG.value.run)
  from mixer.training import assembly  # after the flags: a typo is told at once
  from mixer.training import run
  workdir = _WORKDIR.value or os.path.join(
      'runs', command.config_name())
  settings = assembly.check(_CONFIG.value)
  command.join(heartbeat_timeout_seconds=settings.heartbeat_timeout_seconds,
               stoppable=True)
  run.keep_compiled(workdir)
  scores = run.train(_CONFIG.value, workdir)
  if processes.first():
    _report(scores, workdir)


def _report(scores, workdir):
  from mixer.training import loop
  python = os.path.relpath(sys.executable)
  python = 'python' if python.startswith('..') else python
  same, args = [], iter(sys.argv[1:])
  for arg in args:
    if re.match('-+(workdir|coordinator|num_processes|process_id)', arg):
      if '=' not in arg:
        next(args, None)   # its value
    else:
      same.append(arg)
  print(f"""
done: {loop.summary(scores)}
the run lies in {workdir}: metrics.jsonl, checkpoints/, model.json
next:
  {python} -m tensorboard.main --logdir={workdir}
  {python} -m mixer.evaluate --checkpoint={workdir}
  {python} -m mixer.predict --checkpoint={workdir} IMAGE...
  {python} -m mixer.export --checkpoint={workdir} --format=onnx --out=FILE.onnx
  {python} -m mixer.main {shlex.join(same)} \\
    --config.run.seed=1 --workdir={workdir}-seed1""")


if __name__ == '__main__':
  command.run(main, several=True)
