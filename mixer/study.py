"""Runs one of the paper's experiments and prints its tables.

  python -m mixer.study EXPERIMENT --config=configs/FILE.py [--workdir=DIR]
  python -m mixer.study sizes --config=configs/digits.py --sizes=6,12
  python -m mixer.study table --runs=runs/digits

An experiment trains the networks that it compares, each as a run in a folder of
WORKDIR; complexity, table, frontier and filters train none. It writes what it
found to WORKDIR/result.json, and draws it in WORKDIR/EXPERIMENT.png and .svg
(table has no figure). To continue an experiment that was stopped, give the same
command again: runs that are finished are not started again.

Exit codes: 0 finished, 1 failed, 2 wrong usage or config, 42 stopped after
saving.
"""
from collections.abc import Sequence
import dataclasses
import importlib
import os
import re

from absl import flags
from etils import epath
from ml_collections import config_flags

from mixer.core import command
from mixer.core import errors
from mixer.core import outputs

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'A file in configs/, with its argument after a colon. '
    '--config.SECTION.KEY=VALUE changes a setting.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Directory of the experiment. The default is runs/ and '
    'the names of the experiment, the config and its argument.')
_TUNING_STEPS = flags.DEFINE_integer(
    'tuning_steps', 150, 'left_out, sizes: steps of fine-tuning.', 1)
_CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'filters: a run, a file of weights or the name of a '
    'release.')
_NETWORKS = flags.DEFINE_list(
    'networks', ['Mixer', 'ViT', 'BiT'], 'permutation, invariance, scaling: '
    "networks to compare, of about the cost of the config's Mixer. table: "
    'families to compile.')
_SEEDS = flags.DEFINE_integer(
    'seeds', None, 'Runs of each kind, from seeds that count up from run.seed. '
    'permutation, invariance, variants: 2 by default, the others 1.', 1)
_OF_RUNS = (
    flags.DEFINE_list('runs', [], 'table, frontier: workdirs of your runs.'),
    flags.DEFINE_string(
        'metric', None, 'table, frontier: what to compare runs by, a key of '
        'metrics.jsonl. The default is the accuracy of their first '
        'evaluation.'))
_SIZES = flags.DEFINE_list(
    'sizes', [], 'sizes, complexity: image sizes in pixels.')
_PATCH = flags.DEFINE_integer(
    'patch', None, 'permutation, invariance: side in pixels of patches that '
    "are permuted. The default is the Mixer's.", 2)
_TOPOLOGY = flags.DEFINE_string(
    'topology', None, 'table: TPU slice, such as v3:2x2. The networks of table '
    '3 are compiled for it, and their estimated speeds stand beside those of '
    'the paper. Needs libtpu.')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One row of the table of experiments.

  Attributes:
    module: a module of `mixer.experiments`. It has `run(config, path,
      **flags)`, which returns a dict for JSON; `show(found)`, which prints that
      dict as tables; and, if there is something to draw, `draw(found)`, which
      returns a figure of `analysis.figures`.
    question: what it answers, in one line of --help.
    reads: its flags. Their names are the keyword arguments of `run`.
    needs_config: whether it reads a config. If not, --config is refused and
      `config` is None.
  """
  module: str
  question: str
  reads: tuple[flags.FlagHolder, ...] = ()
  needs_config: bool = True


EXPERIMENTS = {
    'sweep': Experiment(
        'sweep', 'Which learning rate, or other setting, is best on held-out '
        'images?', (flags.DEFINE_multi_string(
            'grid', [], 'sweep: KEY=V1,V2,... to try instead of the learning '
            'rates of the config, such as schedule.learning_rate=0.01,0.1. May '
            'be repeated: all combinations are tried.'),)),
    'left_out': Experiment(
        'left_out', 'What is pre-training worth for classes that it never saw?',
        (flags.DEFINE_integer(
            'classes', 4, 'left_out: number of classes left out.', 2),
         flags.DEFINE_integer(
             'examples', 250, 'left_out: training images of each class that is '
             'left out.', 2),
         _TUNING_STEPS)),
    'sizes': Experiment(
        'image_sizes', 'What does a network lose at another image size, and '
        'regain by fine-tuning?',
        (_SIZES,
         flags.DEFINE_list('methods', ['resample'], 'sizes: ways to resize the '
                           'network: block, resample, or both.'),
         _TUNING_STEPS)),
    'scaling': Experiment(
        'scaling', 'What does more training data do for each network? (figure '
        '2, right)',
        (flags.DEFINE_list('fractions', ['0.03', '0.1', '0.3', '1'],
                           'scaling: shares of the training images.'),
         _NETWORKS, _SEEDS)),
    'optimizers': Experiment(
        'optimizers', 'SGD or Adam, tuned alike at equal budget?',
        (flags.DEFINE_multi_string(
            'rates', [], 'optimizers: sgd=R1,R2,... or adam=R1,R2,..., '
            'learning rates to try; equally many for each.'), _SEEDS)),
    'complexity': Experiment(
        'complexity', 'How does the cost grow with the number of patches?',
        (_SIZES,)),
    'table': Experiment(
        'table', "How do this code's networks, and your runs, compare with the "
        "paper's tables?", (*_OF_RUNS, _TOPOLOGY, _NETWORKS),
        needs_config=False),
    'frontier': Experiment(
        'frontier', 'Which runs are the most accurate for their cost and '
        'speed?', _OF_RUNS, needs_config=False),
    'filters': Experiment(
        'filters', 'What do the token-mixing units and the stem look at?',
        (_CHECKPOINT,
         flags.DEFINE_list('layers', None, 'filters: blocks, counted from 0; '
                           'by default the first three.'),
         flags.DEFINE_integer('units', 64, 'filters: units to draw of each '
                              'layer.', 2)),
        needs_config=False),
    'variants': Experiment(
        'variants', 'Which way of mixing tokens is best under one recipe? '
        '(appendix A.1)',
        (flags.DEFINE_list('variants', None, 'variants: ways of mixing tokens, '
                           'such as tied,grouped:2; by default all.'), _SEEDS)),
    'permutation': Experiment(
        'permutation', 'Does a network learn as well if the pixels of all '
        'images change places? (figure 4)', (_NETWORKS, _SEEDS, _PATCH)),
    'invariance': Experiment(
        'invariance', 'Which network keeps its accuracy when pixels change '
        'places, trained so or not?', (_NETWORKS, _SEEDS, _PATCH)),
}
__doc__ = f'{__doc__}\nExperiments:\n' + ''.join(
    f'  {name:12} {row.question}\n' for name, row in EXPERIMENTS.items())


def main(argv: Sequence[str]) -> None:
  """Runs one experiment."""
  name = argv[1] if len(argv) == 2 else None
  if name not in EXPERIMENTS:
    raise errors.UserError(
        f'expected one experiment, {" or ".join(EXPERIMENTS)}, got '
        f'{" ".join(argv[1:]) or "none"}')
  experiment, config = EXPERIMENTS[name], _CONFIG.value
  if config is None and experiment.needs_config:
    like = 'finetune.py:b16,cifar10' if name == 'sweep' else 'digits.py'
    raise errors.UserError(
        f'--config is required, such as --config=configs/{like}')
  if config is not None and not experiment.needs_config:
    raise errors.UserError(
        f'--config: {name} reads --{experiment.reads[0].name} instead; '
        'leave it out')
  _check_flags(name)
  path = command.folder(
      os.path.join('runs', '-'.join(filter(None, (name, _subject()))))
      if _WORKDIR.value is None else _WORKDIR.value)
  outputs.check_folder('workdir', path)
  # Imported here, so that --help and mistakes in flags do not wait for JAX.
  from mixer.core import workdir
  workdir.check_path(path)
  if config is not None:
    command.one_length(config.run)
    # Most of what one run compiles, the next run needs too.
    workdir.keep_compiled(path)
  if _TOPOLOGY.value is not None:   # compiling for a slice needs no device
    import jax
    jax.config.update('jax_platforms', 'cpu')
  module = importlib.import_module(f'mixer.experiments.{experiment.module}')
  found = module.run(config, path, **{
      flag.name: flag.value for flag in experiment.reads
      if flag.value is not None})
  epath.Path(path).mkdir(parents=True, exist_ok=True)
  written = [os.path.join(path, 'result.json')]
  workdir.write_json(written[0], found)
  module.show(found)
  if hasattr(module, 'draw'):
    from mixer.analysis import figures
    with figures.style():
      written += figures.save(module.draw(found), path, name)
  print('Written:', *written, sep='\n  ')


def _subject() -> str:
  """Returns what an experiment is about, as a part of its workdir's name."""
  if _CONFIG.value is not None:
    return command.config_name()
  text = (_CHECKPOINT.value or '').removeprefix('runs/')
  return re.sub(r'[^\w.]+', '-', text).strip('-')


def _check_flags(name: str) -> None:
  """Refuses flags that the experiment does not read."""
  readers: dict[str, list[str]] = {}
  for other, experiment in EXPERIMENTS.items():
    for flag in experiment.reads:
      readers.setdefault(flag.name, []).append(other)
  for flag_name, names in readers.items():
    if flags.FLAGS[flag_name].present and name not in names:
      raise errors.UserError(f'--{flag_name}: is only for {", ".join(names)}, '
                             f'not for {name}; leave it out')


if __name__ == '__main__':
  command.run(main, positional=1)
