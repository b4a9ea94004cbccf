"""The paper's experiments.

  python -m mixer.study sweep --config=configs/finetune.py:b16,cifar10 \\
    --config.data.dir=DIR [--grid=KEY=V1,V2,...]

sweep: trains once for each of the config's sweep.learning_rates, or for each
value of --grid (several: all combinations), on a part of the training images;
chooses by the rest; trains on all with the best value and evaluates that. The
same command goes on with a sweep that was stopped. WORKDIR/sweep.json has all
scores, WORKDIR/final the run to use.

  python -m mixer.study left_out --config=configs/cifar10.py \\
    --config.data.dir=DIR --config.run.total_steps=600

left_out: what pre-training is worth for classes that it never saw: few-shot and
fine-tuned accuracies on the last --classes of the data, beside an untrained
network and training from scratch.

  python -m mixer.study sizes --config=configs/digits.py --sizes=6,12

sizes: a network at other image sizes: resized, fine-tuned, and trained there
from scratch.

Exit codes: 0 done, 1 failed, 2 bad usage or config, 42 told to stop and saved.
"""
import os
import sys

from absl import flags
from ml_collections import config_flags
from rich import console as consoles

from mixer.core import command
from mixer.core import errors

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file in configs/, and after a colon its argument; '
    '--config.SECTION.KEY=VALUE changes a setting.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where the experiment lies; by default runs/, then its '
    'name and that of the config and its argument.')
_GRID = flags.DEFINE_multi_string(
    'grid', [], 'Of sweep: KEY=V1,V2,... to try instead of the learning rates '
    'of the config, such as schedule.learning_rate=0.01,0.1. Repeatable.')
_CLASSES = flags.DEFINE_integer('classes', 4, 'Of left_out: how many.', 2)
_EXAMPLES = flags.DEFINE_integer('examples', 250, 'Of left_out: training '
                                 'images of each class left out.', 2)
_SIZES = flags.DEFINE_list('sizes', [], 'Of sizes: image sizes in pixels.')
_METHODS = flags.DEFINE_list('methods', ['resample'], 'Of sizes: block, '
                             'resample, or both.')
_STEPS = flags.DEFINE_integer('tuning_steps', 150, 'Of left_out and sizes: of '
                              'fine-tuning.', 1)


def main(argv):
  if len(argv) != 2 or argv[1] not in EXPERIMENTS:
    raise errors.UserError(
        f'expected one experiment, {" or ".join(EXPERIMENTS)}, got '
        f'{" ".join(argv[1:]) or "none"}')
  if _CONFIG.value is None:
    raise errors.UserError('--config is required, such as '
                           '--config=configs/finetune.py:b16,cifar10')
  command.one_length(_CONFIG.value.run)
  EXPERIMENTS[argv[1]](_CONFIG.value, _WORKDIR.value or os.path.join(
      'runs', f'{argv[1]}-{command.config_name()}'))


def _sweep(config, workdir):
  import jax

  from mixer.experiments import sweep
  if 'sweep' not in config:
    raise errors.UserError('config: it has no section `sweep`, which says how '
                           'to choose; configs/finetune.py has')
  # Most of what a run compiles, the next one needs too, and so does the same
  # command started again.
  jax.config.update('jax_compilation_cache_dir',
                    os.path.join(workdir, 'compiled'))
  found = sweep.sweep(config, workdir, **config.sweep,
                      grid=sweep.parse_grid(_GRID.value, config))
  consoles.Console(file=sys.stdout).print(sweep.table(found))
  print(f'all scores are in {workdir}/sweep.json, the run to use is '
        f'{workdir}/final')


def _left_out(config, workdir):
  from mixer.experiments import left_out
  found = left_out.left_out(config, workdir, classes=_CLASSES.value,
                            examples=_EXAMPLES.value,
                            tuning_steps=_STEPS.value)
  _show(workdir, found, *left_out.left_out_table(found))


def _sizes(config, workdir):
  from mixer.experiments import left_out
  if not _SIZES.value or not all(x.isdigit() for x in _SIZES.value):
    raise errors.UserError('--sizes: expected image sizes in pixels, such as '
                           f'--sizes=20,48, got {",".join(_SIZES.value)!r}')
  found = left_out.sizes(
      config, workdir, image_sizes=[int(x) for x in _SIZES.value],
      methods=_METHODS.value, tuning_steps=_STEPS.value)
  _show(workdir, found, left_out.sizes_table(found))


def _show(workdir, found, *tables):
  from mixer.core import workdir as workdirs
  path = os.path.join(workdir, 'result.json')
  workdirs.write_json(path, found)
  for table in tables:
    consoles.Console(file=sys.stdout).print(table)
  print(f'the figures are in {path}')


# (config, workdir) -> None, each prints what it found.
EXPERIMENTS = {'sweep': _sweep, 'left_out': _left_out, 'sizes': _sizes}


if __name__ == '__main__':
  command.run(main, positional=1)
