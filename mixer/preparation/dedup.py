"""Removes from a data set the images that look like test images, on Beam.

The hashes of the test images are a side input: each record is compared with all
of them. Each stored shard is one element of the pipeline and becomes one shard
of the new set; the records that stay are copied byte for byte.
"""
import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import functools
import glob
import json
import os
import re
import shutil
import tempfile
from typing import Any
from typing import TYPE_CHECKING

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.images import decode_pillow
from mixer.images import thumbnails
from mixer.preparation import beam_runner
from mixer.preparation import contact_sheet
from mixer.preparation import dedup_worker
from mixer.preparation import set_directory

if TYPE_CHECKING:
  import apache_beam

_RECORDS_PER_JOB = 4096   # of a source that has no shards
_PAIRS_SHOWN = 300   # in report.html
_Counts = dict[str, collections.Counter[str]]


def dedup(source: str, *, data_dir: str | None, split: str,
          against: Sequence[str], against_dir: str | None, distance: int,
          flips: bool, name: str, out: str, dry_run: bool, runner: str,
          options: Sequence[str]) -> tuple[str, _Counts, dict[str, int]]:
  """Writes the set `name` without near-duplicates, and a report beside it.

  Args:
    source: the set to search, as data.name in a config; unless dry_run, a set
      that TFDS prepared.
    data_dir: the TFDS directory that holds it; None for TFDS's default.
    split: the split to search; the other splits are copied.
    against: 'NAME:SPLIT' of each test set.
    against_dir: the TFDS directory of the test sets; None for data_dir.
    distance: the largest number of bits, of 128, in which the hashes of
      duplicates differ.
    flips: whether mirror images are duplicates too.
    name: the name of the new set.
    out: the TFDS directory to write to.
    dry_run: whether to write only removed.jsonl and report.html.
    runner: Beam's name of a runner.
    options: arguments for Beam's PipelineOptions.

  Returns:
    (path of report.html, {split: {'records', 'searched', 'unreadable',
    'removed', 'kept'}}, {'NAME:SPLIT': number of records removed for it}).

  Raises:
    UserError: if a set is missing, or the new one exists.
    RunError: if a record is damaged or missing.
  """
  beam_runner.import_beam()   # fails before any set is opened
  train = dedup_worker.Images('--source', source, split, data_dir)
  tests = tuple(_test_images(test, data_dir, against_dir) for test in against)
  stored = None
  if dedup_worker.is_stored(source):
    stored = set_directory.open_stored(source, data_dir)
  elif not dry_run:
    raise errors.UserError(
        f'--source: {source!r} is not a TFDS set; make it one with '
        'mixer.prepare build, or add --dry_run to get only the list and the '
        'report')
  # Both open the sets, so that what is missing fails before files are written.
  jobs, parts = list(_jobs(train, stored)), _test_parts(tests)
  root = os.path.join(set_directory.local_path(out, '--out'), name)
  with _output_directory(root, stored, dry_run) as target:
    work = os.path.join(target, 'work')
    os.mkdir(work)
    hash_tests = functools.partial(
        dedup_worker.hash_tests, tests=tests, flips=flips)
    search = functools.partial(
        dedup_worker.search, train=train, distance=distance, work=work,
        write=not dry_run)
    beam_runner.run(
        functools.partial(_add_steps, parts=parts, hash_tests=hash_tests,
                          jobs=jobs, search=search),
        runner=runner, options=options, work=work, shards=len(jobs))
    reports = beam_runner.read_reports(work)
    counts = _checked_counts(reports, jobs)
    removed = [_removed_line(line, tests) for report in reports
               for line in report['removed']]
    page = _write_report(root, removed, train=train, tests=tests,
                         distance=distance, counts=counts, version=(
                             os.path.basename(stored.path) if stored else ''))
    if stored is not None and not dry_run:
      _install(stored, target, work, reports, name)
      set_directory.write_provenance(
          target, dict(source=stored.full_name, split=split, against=against,
                       flips=flips, distance=distance, splits=counts),
          contents=(
              files.read(os.path.join(stored.path, set_directory.PROVENANCE)),
              removed))
  totals = collections.Counter(line['against'] for line in removed)
  return page, counts, {str(test): totals[str(test)] for test in tests}


def parse_test_set(text: str) -> tuple[str, str]:
  """Returns (NAME, SPLIT) of 'NAME:SPLIT', both of which may contain colons.

  Raises:
    UserError: if one of them is missing.
  """
  # Colons inside brackets belong to the split: 'cifar10:test[:50%]'.
  masked = re.sub(r'\[[^]]*\]', lambda m: '_' * len(m[0]), text)
  colon = masked.rfind(':')
  if not 0 < colon < len(text) - 1:
    raise errors.UserError('--against: expected NAME:SPLIT, such as '
                           f'cifar10:test, got {text!r}')
  return text[:colon], text[colon + 1:]


def _test_images(text: str, data_dir: str | None, against_dir: str | None
                 ) -> dedup_worker.Images:
  """Returns the images of a test set 'NAME:SPLIT'."""
  name, split = parse_test_set(text)
  return dedup_worker.Images(
      '--against', name, split, against_dir or data_dir,
      '--against_dir' if against_dir else '--data_dir')


def _jobs(train: dedup_worker.Images, stored: set_directory.StoredSet | None
          ) -> Iterator[dedup_worker.Job]:
  """Yields a job for each shard, or for each few thousand records."""
  shards: list[tuple[str, int, str | None, int]]
  if stored is None:
    shards = [(train.split, i, None, _RECORDS_PER_JOB)
              for i in range(train.records.max() // _RECORDS_PER_JOB + 1)]
  else:
    shards = [(split, i, path, count) for split, mine in stored.splits.items()
              for i, (path, count) in enumerate(mine)]
  wanted = np.zeros(sum(count for *_, count in shards), bool)
  wanted[train.records] = True
  first = 0
  for split, i, path, count in shards:
    yield dedup_worker.Job(
        split, i, first, wanted[first:first + count], path,
        stored.file_format if stored else None)
    first += count


def _test_parts(tests: Sequence[dedup_worker.Images]
                ) -> list[tuple[int, int, int]]:
  """Returns (index of the test set, first, last) of ranges of test images."""
  return [(i, first, first + _RECORDS_PER_JOB) for i, test in enumerate(tests)
          for first in range(0, len(test.records), _RECORDS_PER_JOB)]


def _output_directory(root: str, stored: set_directory.StoredSet | None,
                      dry_run: bool) -> contextlib.AbstractContextManager[str]:
  """Returns a context that gives the directory to write into."""
  if stored is None or dry_run:
    if found := _versions(root):
      raise errors.UserError(
          f'--dry_run: {os.path.dirname(found[0])!r} holds a data set, whose '
          'removed.jsonl would be replaced; give another --name or --out')
    os.makedirs(root, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=root)
  _, *config_and_version = stored.full_name.split('/')
  return set_directory.create(os.path.join(root, *config_and_version))


def _versions(root: str) -> list[str]:
  """Returns the files that describe the versions of a set."""
  return glob.glob(f'{glob.escape(root)}/**/dataset_info.json', recursive=True)


def _add_steps(pipeline: 'apache_beam.Pipeline', *,
               parts: Sequence[tuple[int, int, int]],
               hash_tests: Callable[..., Iterable[dedup_worker.TestHashes]],
               jobs: Sequence[dedup_worker.Job],
               search: Callable[..., None]) -> None:
  """Adds to a pipeline: hash the test images, then search every job."""
  beam = beam_runner.import_beam()
  # Reshuffle lets Beam spread the elements over workers; without it, it would
  # fuse creating and using them into one step of one worker.
  hashes = (pipeline | 'Tests' >> beam.Create(parts)
            | 'Spread' >> beam.Reshuffle()
            | 'Hash' >> beam.FlatMap(hash_tests))
  (pipeline | beam.Create(jobs) | beam.Reshuffle()
   | 'Search' >> beam.Map(search, beam.pvalue.AsList(hashes)))


def _checked_counts(reports: Sequence[Mapping[str, Any]],
                    jobs: Sequence[dedup_worker.Job]) -> _Counts:
  """Returns {split: counts}; raises RunError if records were lost."""
  counts: _Counts = {job.split: collections.Counter() for job in jobs}
  for report in reports:
    counts[report['split']].update(
        records=report['before'], searched=report['searched'],
        unreadable=report['unreadable'], removed=len(report['removed']),
        kept=report['records'])
  for split, row in counts.items():
    if (row['records'] != row['kept'] + row['removed']
        or len(reports) < len(jobs)):
      raise errors.RunError(
          f'{split}: of {row["records"]} records {row["kept"]} were kept and '
          f'{row["removed"]} removed, in {len(reports)} of {len(jobs)} shards; '
          'these numbers must agree. Run the command again')
  return counts


def _install(stored: set_directory.StoredSet, target: str, work: str,
             reports: Iterable[Mapping[str, Any]], name: str) -> None:
  """Turns the written shards into a TFDS set."""
  by_split = {split: [report for report in reports if report['split'] == split]
              for split in stored.splits}
  shards = {split: set_directory.move_shards(
      work, mine, target, name, split, stored.file_format)
      for split, mine in by_split.items()}
  shutil.rmtree(work)
  set_directory.copy_metadata(stored, target, name=name,
                              file_format=stored.file_format, shards=shards)


def _removed_line(line: Mapping[str, Any],
                  tests: Sequence[dedup_worker.Images]) -> dict[str, Any]:
  """Returns a line of removed.jsonl: names instead of the test set's index."""
  test = tests[line['test']]
  rest = {key: value for key, value in line.items() if key != 'test'}
  return dict(rest, against=str(test), match_name=test.name_of(line['match']))


def _write_report(root: str, removed: Sequence[Mapping[str, Any]], *,
                  train: dedup_worker.Images,
                  tests: Sequence[dedup_worker.Images], distance: int,
                  counts: _Counts, version: str) -> str:
  """Writes removed.jsonl and report.html; returns the path of the latter.

  If another version is there already, the names have this version in them.
  """
  mark = f'-{version}' if _versions(root) else ''
  listed = f'removed{mark}.jsonl'
  by_name = {str(test): test for test in tests}

  def thumbnails(line):
    return (_thumbnail(train, line['record']),
            _thumbnail(by_name[line['against']], line['match']))

  files.write(os.path.join(root, listed),
              ''.join(json.dumps(line) + '\n' for line in removed))
  path = os.path.join(root, f'report{mark}.html')
  files.write(path, contact_sheet.make_page(
      train.name, removed, listed=listed, distance=distance,
      most_pairs=_PAIRS_SHOWN,
      searched=sum(row['searched'] for row in counts.values()),
      thumbnails=thumbnails))
  return path


def _thumbnail(images: dedup_worker.Images, record: int) -> str:
  pixels = images.pixels_of(record)
  if isinstance(pixels, decode_pillow.BadImage):
    raise errors.RunError(f'{images.name_of(record)} cannot be read again: '
                          f'{pixels}; did it change meanwhile?')
  return thumbnails.of_pixels(pixels)
