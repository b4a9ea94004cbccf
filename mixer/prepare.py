"""Makes data sets: builds, converts, removes what a test set has too.

  python -m mixer.prepare build --source=folder:PHOTOS --name=my_set \\
    --data_dir=DIR
  python -m mixer.prepare build --source=manifest:LIST.jsonl --name=my_set \\
    --data_dir=DIR -- --direct_running_mode=multi_processing
  python -m mixer.prepare build --source=tars:TARS --data_dir=DIR
  python -m mixer.prepare convert --name=imagenet2012 --data_dir=DIR --out=DIR2
  python -m mixer.prepare dedup --source=imagenet21k --data_dir=DIR \\
    --against=imagenet2012:validation,cifar10:test --name=clean --out=DIR2

Then --config.data.name=my_set --config.data.dir=DIR trains on the result, and
TFDS reads it.

build decodes every image once, and leaves out and lists in bad.jsonl those that
cannot be. Plain 8-bit RGB or grey JPEG and PNG files are stored byte for byte,
others upright as RGB. tars is ImageNet-21k as it is handed out, nXXXXXXXX.tar a
synset, in TARS, TARS/winter21_whole or TARS/fall11_whole. Its labels are places
in the list of the 21,841 synsets of fall 2011 by WordNet id, whichever tars are
there; the released checkpoints' heads have two columns more (see
mixer/preparation/imagenet21k.py). All is in the split 'train', in the order of a hash,
so that train[:51200] is a random sample to hold out.

convert turns TFRecord into ArrayRecord, which can be read in any order.

dedup removes the records that look like an image of --against, and writes
removed.jsonl and report.html with the pairs.

build and dedup run on Apache Beam, which has an environment of its own:
launch/requirements-prepare.txt. What follows a lone -- goes to Beam's
PipelineOptions, such as --flink_master=HOST:8081 for --runner=FlinkRunner; its
workers need this package and the same paths. Exit codes: 0 done, 1 failed, 2
bad usage.
"""
import os
import re
import sys

from absl import flags
from rich import console as consoles
from rich import table as tables

from mixer.core import command
from mixer.core import errors

_SOURCE = flags.DEFINE_string(
    'source', None, 'build: folder:PATH, manifest:PATH or tars:DIR; dedup: the '
    'name of a data set, as data.name in a config.')
_NAME = flags.DEFINE_string(
    'name', None, 'Of the new set; convert: of the set. tars: imagenet21k.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, "TFDS's directory: build writes it, the others read it.")
_OUT = flags.DEFINE_string(
    'out', None, "convert, dedup: the new set's TFDS directory.")
_FORMAT = flags.DEFINE_enum(
    'format', 'array_record', ['array_record', 'tfrecord'], 'build: of files.')
_SHARDS = flags.DEFINE_integer(
    'shards', None, 'build: files of a split, by default by size.', 1)
_MAX_PIXELS = flags.DEFINE_integer(
    'max_pixels', 2**27, 'build: larger images are bad.', 1)
_MAX_BAD = flags.DEFINE_float(
    'max_bad_fraction', 0.001, 'build: fails if a larger share is bad.', 0, 1)
_WORKERS = flags.DEFINE_integer(
    'workers', os.cpu_count(), 'convert: processes.', 1)
_SPLIT = flags.DEFINE_string(
    'split', 'train', 'dedup: what is searched; the other splits are copied.')
_AGAINST = flags.DEFINE_list(
    'against', None, 'dedup: NAME:SPLIT of test sets.')
_AGAINST_DIR = flags.DEFINE_string(
    'against_dir', None, 'dedup: their TFDS directory, by default --data_dir.')
_DISTANCE = flags.DEFINE_integer(
    'distance', 16, 'dedup: most bits of 128 in which the hashes of duplicates '
    'differ.', 0, 128)
_FLIPS = flags.DEFINE_boolean('flips', False, 'dedup: mirror images as well.')
_DRY_RUN = flags.DEFINE_boolean(
    'dry_run', False, 'dedup: writes only removed.jsonl and report.html.')
_RUNNER = flags.DEFINE_string(
    'runner', 'DirectRunner', 'build, dedup: of Beam; DirectRunner is this '
    'process, which decodes with a thread a core.')

_BEAM = ('source', 'name', 'data_dir', 'runner')
_TAKES = {   # what each mode must be given, and may be
    'build': (('source', 'data_dir'), (
        *_BEAM, 'format', 'shards', 'max_pixels', 'max_bad_fraction')),
    'convert': (('name', 'data_dir', 'out'), (
        'name', 'data_dir', 'out', 'workers')),
    'dedup': (('source', 'against', 'name', 'out'), (
        *_BEAM, 'out', 'split', 'against', 'against_dir', 'distance', 'flips',
        'dry_run')),
}


def main(argv, beam_options):
  modes = argv[1:]
  if len(modes) != 1 or modes[0] not in _TAKES:
    raise errors.UserError(f'expected one mode, {", ".join(_TAKES)}, got '
                           f'{" ".join(modes) or "none"}')
  mode, = modes
  required, known = _TAKES[mode]
  ours = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
  for flag in ours:
    if flag.present and flag.name not in known:
      raise errors.UserError(f'--{flag.name} is not for {mode}; it takes '
                             + ', '.join(f'--{name}' for name in known))
  for name in required:
    if not flags.FLAGS[name].value:
      raise errors.UserError(f'{mode} needs --{name}; see --help')
  if beam_options and 'runner' not in known:
    raise errors.UserError(f'{mode} runs without Beam: nothing may follow --, '
                           f'got {" ".join(beam_options)}')
  modes = dict(build=_build, convert=_convert, dedup=_dedup)
  try:
    modes[mode](beam_options)
  except errors.UserError as e:   # of code that reads a config's data section
    raise errors.UserError(str(e).replace('data.name', '--source')) from e


def _build(beam_options):
  from mixer.preparation import build
  name = _NAME.value
  if name is None and _SOURCE.value.startswith('tars:'):
    name = 'imagenet21k'
  _check_name(name)
  path, table = build.build(
      _SOURCE.value, name=name, data_dir=_DATA_DIR.value, form=_FORMAT.value,
      shards=_SHARDS.value, max_pixels=_MAX_PIXELS.value,
      max_bad_fraction=_MAX_BAD.value, runner=_RUNNER.value,
      options=beam_options)
  _show(path, {split: (row['in'], row['records'], row['bad'], row['shards'],
                       row['bytes']) for split, row in table.items()},
        'images', 'records', 'bad', 'shards', 'MB')
  if any(row['bad'] for row in table.values()):
    print(f'the bad ones: {os.path.join(os.path.dirname(path), "bad.jsonl")}')


def _convert(beam_options):
  del beam_options
  from mixer.preparation import convert
  path, shards = convert.convert(
      _NAME.value, data_dir=_DATA_DIR.value, out=_OUT.value,
      workers=_WORKERS.value)
  _show(path, {split: (sum(n for n, _ in mine), len(mine),
                       sum(size for _, size in mine))
               for split, mine in shards.items()}, 'records', 'shards', 'MB')


def _dedup(beam_options):
  from mixer.preparation import dedup
  _check_name(_NAME.value)
  report, table, removed = dedup.dedup(
      _SOURCE.value, data_dir=_DATA_DIR.value, split=_SPLIT.value,
      against=_AGAINST.value, against_dir=_AGAINST_DIR.value,
      distance=_DISTANCE.value, flips=_FLIPS.value, name=_NAME.value,
      out=_OUT.value, dry_run=_DRY_RUN.value, runner=_RUNNER.value,
      options=beam_options)
  columns = 'records', 'searched', 'unreadable', 'removed', 'kept'
  _show(_SOURCE.value, {split: [row[c] for c in columns]
                        for split, row in table.items()}, *columns)
  for test, count in removed.items():
    print(f'{count:,} look like an image of {test}')
  print(f'the pairs: {report}')


def _check_name(name):
  if not re.fullmatch('[a-z][a-z0-9_]*', name or ''):
    raise errors.UserError('--name: expected small letters, digits and _, such '
                           f'as my_set, got {name or "none"}')


def _show(title, rows, *columns):
  """A row of numbers a split; bytes are shown as MB."""
  table = tables.Table(title=title)
  table.add_column('split')
  for column in columns:
    table.add_column(column, justify='right')
  for split, numbers in rows.items():
    table.add_row(split, *(
        f'{n / 1e6:,.1f}' if column == 'MB' else f'{n:,}'
        for column, n in zip(columns, numbers)))
  consoles.Console(file=sys.stdout).print(table)


def _before_dashes():
  """Takes what follows a lone -- off the command line, and returns it."""
  at = sys.argv.index('--') if '--' in sys.argv else len(sys.argv)
  rest = sys.argv[at + 1:]
  del sys.argv[at:]
  return rest


if __name__ == '__main__':
  options = _before_dashes()
  command.run(lambda argv: main(argv, options), positional=1)
