"""Prepares data sets: builds, converts and de-duplicates them.

  python -m mixer.prepare build --source=folder:PHOTOS --name=my_set \\
    --data_dir=DIR
  python -m mixer.prepare build --source=manifest:LIST.jsonl --name=my_set \\
    --data_dir=DIR -- --direct_running_mode=multi_processing
  python -m mixer.prepare build --source=tars:TARS --data_dir=DIR
  python -m mixer.prepare convert --name=imagenet2012 --data_dir=DIR --out=DIR2
  python -m mixer.prepare dedup --source=imagenet21k --data_dir=DIR \\
    --against=imagenet2012:validation,cifar10:test --name=clean --out=DIR2

The results are TFDS data sets. Train on one with --config.data.name=my_set
--config.data.dir=DIR.

build makes a data set from image files: a folder with a folder for each class,
a manifest (a CSV or JSONL file of paths and labels), or ImageNet-21k's tars.
It decodes every image in full. Images that cannot be decoded are left out and
listed in bad.jsonl. Upright 8-bit RGB or grey JPEG and PNG files are stored
byte for byte; all others are stored upright as RGB. With --shorter_side=512,
larger photos are resized before they are stored, which saves decoding in every
epoch. The
records are in random order, by a hash of the file name, so that train[:51200]
is a random sample to hold out.

For tars:DIR, the files n00004475.tar and so on, one for each synset, are in
DIR, DIR/winter21_whole or DIR/fall11_whole. The labels are indices into the
21,841 synsets of the fall 2011 release, ordered by WordNet id, whichever tars
are present. The heads of the released checkpoints have two more columns, see
mixer/preparation/imagenet21k.py. All images go to the split 'train'.

convert turns a data set from TFRecord into ArrayRecord files, which can be read
in any order.

dedup removes the images that look like an image of the test sets in --against.
It lists the pairs in removed.jsonl and shows them in report.html.

build and dedup run on Apache Beam, which needs an environment of its own: see
launch/requirements-prepare.txt. The arguments after a lone -- go to Beam's
PipelineOptions, for example --flink_master=HOST:8081 with --runner=FlinkRunner.
Beam's workers need this package, and the same paths.

Exit codes: 0 done, 1 failed, 2 bad usage.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import os
import re
import sys
from typing import TypeVar

from absl import flags

from mixer.core import command
from mixer.core import errors
from mixer.core import tables

_SOURCE = flags.DEFINE_string(
    'source', None, '[build] folder:PATH, manifest:PATH or tars:DIR. [dedup] '
    'Name of the data set to search, as in data.name of a config.')
_NAME = flags.DEFINE_string(
    'name', None, 'Name of the new data set (default for tars: imagenet21k). '
    '[convert] Name of the data set to convert; the new one keeps it.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', None, 'TFDS directory that build writes to and the other '
    "modes read from (dedup's default: $TFDS_DATA_DIR or "
    '~/tensorflow_datasets).')
_OUT = flags.DEFINE_string(
    'out', None, '[convert, dedup] TFDS directory to write to.')
_FORMAT = flags.DEFINE_enum(
    'format', 'array_record', ['array_record', 'tfrecord'],
    '[build] File format of the new data set.')
_SHARDS = flags.DEFINE_integer(
    'shards', None, '[build] Number of files for each split (default: as many '
    'as TFDS would make, by the size of the data).', 1)
_MAX_PIXELS = flags.DEFINE_integer(
    'max_pixels', 2**27, '[build] Largest height times width of an image, less '
    'for WebP, AVIF and transparency; larger images count as bad.', 1)
_SHORTER_SIDE = flags.DEFINE_integer(
    'shorter_side', None, '[build] Images whose shorter side has more pixels '
    'than this are stored resized to it, with antialiasing: JPEG and WebP as '
    "JPEG of quality 95, others as PNG. The set's version is then 1.0.N.", 16,
    65_500)
_MAX_BAD = flags.DEFINE_float(
    'max_bad_fraction', 0.001, '[build] Largest share of bad images; with '
    'more, the command fails and makes no data set.', 0, 1)
_WORKERS = flags.DEFINE_integer(
    'workers', os.cpu_count() or 1, '[convert] Number of processes.', 1)
_SPLIT = flags.DEFINE_string(
    'split', 'train', '[dedup] Split to search; the others are copied.')
_AGAINST = flags.DEFINE_list(
    'against', None, '[dedup] Test sets to compare with, as NAME:SPLIT, with '
    'commas between them.')
_AGAINST_DIR = flags.DEFINE_string(
    'against_dir', None, '[dedup] TFDS directory of the test sets (default: '
    '--data_dir).')
_DISTANCE = flags.DEFINE_integer(
    'distance', 16, '[dedup] Two images are duplicates if their 128-bit hashes '
    'differ in at most this many bits.', 0, 128)
_FLIPS = flags.DEFINE_boolean(
    'flips', False, '[dedup] Treat mirror images as duplicates too.')
_DRY_RUN = flags.DEFINE_boolean(
    'dry_run', False, '[dedup] Only write removed.jsonl and report.html.')
_RUNNER = flags.DEFINE_string(
    'runner', 'DirectRunner', "[build, dedup] Beam's runner. DirectRunner runs "
    'in this process and decodes images with one thread per core.')

_BEAM_FLAGS = ('source', 'name', 'data_dir', 'runner')
_FLAGS_OF = {   # the flags that each mode takes
    'build': (*_BEAM_FLAGS, 'format', 'shards', 'max_pixels',
              'max_bad_fraction', 'shorter_side'),
    'convert': ('name', 'data_dir', 'out', 'workers'),
    'dedup': (*_BEAM_FLAGS, 'out', 'split', 'against', 'against_dir',
              'distance', 'flips', 'dry_run'),
}
_Value = TypeVar('_Value')


def main(argv: Sequence[str], beam_options: Sequence[str]) -> None:
  """Runs one mode.

  Args:
    argv: the program and the mode.
    beam_options: the arguments after a lone --.

  Raises:
    UserError: if the mode or a flag is wrong.
  """
  mode = _checked_mode(argv[1:], beam_options)
  try:
    if mode == 'build':
      _build(beam_options)
    elif mode == 'convert':
      _convert()
    else:
      _dedup(beam_options)
  except errors.UserError as e:
    # The code that opens data sets names the key of a training config.
    flag = '--name' if mode == 'convert' else '--source'
    raise errors.UserError(str(e).replace('data.name', flag)) from e


def _checked_mode(modes: Sequence[str], beam_options: Sequence[str]) -> str:
  """Returns the mode, after checking that every flag applies to it."""
  if len(modes) != 1 or modes[0] not in _FLAGS_OF:
    raise errors.UserError(f'expected one mode ({", ".join(_FLAGS_OF)}), got '
                           f'{" ".join(modes) or "none"}')
  mode, = modes
  for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0]):
    if flag.present and flag.name not in _FLAGS_OF[mode]:
      raise errors.UserError(
          f'--{flag.name} does not apply to {mode}, which takes '
          + ', '.join(f'--{name}' for name in _FLAGS_OF[mode]))
  if beam_options and 'runner' not in _FLAGS_OF[mode]:
    raise errors.UserError(
        f'{mode} does not use Beam: remove -- and the arguments after it '
        f'({" ".join(beam_options)})')
  return mode


def _required(mode: str, flag: flags.FlagHolder[_Value | None]) -> _Value:
  """Returns the value of a flag that the mode cannot do without."""
  if not flag.value:
    raise errors.UserError(f'{mode} needs --{flag.name}; see --help')
  return flag.value


def _build(beam_options: Sequence[str]) -> None:
  from mixer.preparation import build
  source = _required('build', _SOURCE)
  data_dir = _required('build', _DATA_DIR)
  name = _NAME.value
  if name is None and source.startswith('tars:'):
    name = 'imagenet21k'
  path, counts = build.build(
      source, name=_checked_name(name), data_dir=data_dir,
      file_format=_FORMAT.value, shards=_SHARDS.value,
      max_pixels=_MAX_PIXELS.value, max_bad_fraction=_MAX_BAD.value,
      runner=_RUNNER.value, options=beam_options,
      shorter_side=_SHORTER_SIDE.value)
  _show({split: (row['in'], row['records'], row['bad'], row['shards'],
                 row['bytes']) for split, row in counts.items()},
        'images', 'records', 'bad', 'shards', 'MB')
  if _SHORTER_SIDE.value:
    resized, before, after = (
        sum(row[key] for row in counts.values())
        for key in ('resized', 'resized_from', 'resized_to'))
    print(f'resized {resized:,} images, from {before / 1e6:,.1f} to '
          f'{after / 1e6:,.1f} MB')
  print(f'wrote {path}')
  if any(row['bad'] for row in counts.values()):
    print('bad images are listed in '
          + build.bad_list(path))


def _convert() -> None:
  from mixer.preparation import convert
  path, splits = convert.convert(
      _required('convert', _NAME), data_dir=_required('convert', _DATA_DIR),
      out=_required('convert', _OUT), workers=_WORKERS.value)
  _show({split: (sum(count for count, _ in shards), len(shards),
                 sum(size for _, size in shards))
         for split, shards in splits.items()}, 'records', 'shards', 'MB')
  print(f'wrote {path}')


def _dedup(beam_options: Sequence[str]) -> None:
  from mixer.preparation import dedup
  report, counts, removed = dedup.dedup(
      _required('dedup', _SOURCE), data_dir=_DATA_DIR.value,
      split=_SPLIT.value, against=_required('dedup', _AGAINST),
      against_dir=_AGAINST_DIR.value, distance=_DISTANCE.value,
      flips=_FLIPS.value, name=_checked_name(_required('dedup', _NAME)),
      out=_required('dedup', _OUT), dry_run=_DRY_RUN.value,
      runner=_RUNNER.value, options=beam_options)
  columns = 'records', 'searched', 'unreadable', 'removed', 'kept'
  _show({split: [row[column] for column in columns]
         for split, row in counts.items()}, *columns)
  for test, count in removed.items():
    print(f'{count:,} look like an image of {test}')
  print(f'the pairs are shown in {report}')


def _checked_name(name: str | None) -> str:
  """Returns the name of a new data set, if TFDS accepts it."""
  if name is None or not re.fullmatch('[a-z][a-z0-9_]*', name):
    raise errors.UserError('--name: expected small letters, digits and _, such '
                           f'as my_set, got {name or "none"}')
  return name


def _show(rows: Mapping[str, Sequence[int]], *columns: str) -> None:
  """Prints a table with a row for each split; the column MB is given bytes."""
  tables.show(tables.make(
      [(split, *(f'{number / 1e6:,.1f}' if column == 'MB' else f'{number:,}'
                 for column, number in zip(columns, numbers)))
       for split, numbers in rows.items()], ('split', *columns)))


def _pop_beam_options() -> list[str]:
  """Removes the arguments after a lone -- from sys.argv, and returns them.

  absl would take them for arguments of the command.
  """
  end = sys.argv.index('--') if '--' in sys.argv else len(sys.argv)
  beam_options = sys.argv[end + 1:]
  del sys.argv[end:]
  return beam_options


if __name__ == '__main__':
  options = _pop_beam_options()
  command.run(lambda argv: main(argv, options), positional=1)
