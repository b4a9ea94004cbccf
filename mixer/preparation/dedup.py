"""Removes from a data set what looks like an image of a test set, with Beam.

The hashes of the test images are a side input: each record is compared with all
of them. A stored shard is an element and becomes a shard of the new set; what
stays in it is copied byte for byte.
"""
import collections
import functools
import json
import os
import re
import shutil
import tempfile

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.preparation import beam_runner
from mixer.preparation import contact_sheet
from mixer.preparation import dedup_worker
from mixer.preparation import shard_files

_PART = 4096   # records of an element where there are no shards
_SHOWN = 300   # pairs in the report


def dedup(source, *, data_dir, split, against, against_dir, distance, flips,
          name, out, dry_run, runner, options):
  """Writes the set `name` to out, and beside it what was removed, and why.

  Args:
    source: as data.name in a config; unless dry_run, of a TFDS set.
    data_dir: of TFDS.
    split: what is searched; all else is copied.
    against: 'NAME:SPLIT' of each test set.
    against_dir: data_dir of these, or None for the same.
    distance: most bits of 128 in which the hashes of duplicates differ.
    flips: whether mirror images are duplicates.
    name: of the new set.
    out: its data_dir.
    dry_run: whether to write only removed.jsonl and report.html.
    runner, options: of Beam.

  Returns:
    (path of report.html, {split: {'records', 'searched', 'unreadable',
    'removed', 'kept'}}, {'NAME:SPLIT': records removed for it}).
  """
  beam_runner.load()
  train = dedup_worker.Images('--source', source, split, data_dir)
  tests = tuple(
      dedup_worker.Images('--against', *parse(test), against_dir or data_dir,
                    '--against_dir' if against_dir else '--data_dir')
      for test in against)
  stored = None
  if dedup_worker.is_stored(source):
    stored = shard_files.open_stored(source, data_dir)
  elif not dry_run:
    raise errors.UserError(
        f'--source: {source!r} is no TFDS set; make it one with mixer.prepare '
        'build, or give --dry_run for the list and the report only')
  jobs = list(_jobs(train, stored))
  parts = [(i, first, first + _PART) for i, test in enumerate(tests)
           for first in range(0, len(test.open()[1]), _PART)]
  root = os.path.join(shard_files.local(out, '--out'), name)
  with _place(root, stored, dry_run) as place:
    work = os.path.join(place, 'work')
    os.mkdir(work)
    beam_runner.run(
        functools.partial(
            _pipeline, jobs=jobs, parts=parts,
            hash_tests=functools.partial(
                dedup_worker.hash_tests, tests=tests, flips=flips),
            search_job=functools.partial(
                dedup_worker.search, train=train, distance=distance, work=work,
                write=not dry_run)),
        runner=runner, options=options, work=work, shards=len(jobs))
    found = beam_runner.reports(work)
    table = _count(found, jobs)
    removed = [_line(r, tests) for part in found for r in part['removed']]
    files.write(os.path.join(root, 'removed.jsonl'),
                ''.join(json.dumps(r) + '\n' for r in removed))
    report = os.path.join(root, 'report.html')
    files.write(report, contact_sheet.page(
        source, removed, distance=distance, show=_SHOWN,
        searched=sum(row['searched'] for row in table.values()),
        thumbnails=functools.partial(_thumbnails, train=train, tests=tests)))
    if not dry_run:
      _install(stored, place, work, found, name)
      files.write(os.path.join(place, shard_files.NOTE), json.dumps(dict(
          source=stored.full_name, split=split, against=against, flips=flips,
          distance=distance, splits=table), indent=2))
  counts = collections.Counter(r['against'] for r in removed)
  return report, table, {str(test): counts[str(test)] for test in tests}


def parse(test):
  """(NAME, SPLIT) of 'NAME:SPLIT', both of which may hold colons."""
  hidden = re.sub(r'\[[^]]*\]', lambda m: '_' * len(m[0]), test)
  at = hidden.rfind(':')
  if not 0 < at < len(test) - 1:
    raise errors.UserError('--against: expected NAME:SPLIT, such as '
                           f'cifar10:test, got {test!r}')
  return test[:at], test[at + 1:]


def _jobs(train, stored):
  """Yields a `search.Job` a shard, or for every few thousand records."""
  _, numbers = train.open()
  if stored is None:
    shards = [('', i, None, _PART) for i in range(numbers.max() // _PART + 1)]
  else:
    shards = [(split, i, path, count) for split, mine in stored.splits.items()
              for i, (path, count) in enumerate(mine)]
  wanted = np.zeros(sum(count for *_, count in shards), bool)
  wanted[numbers] = True
  first = 0
  for split, i, path, count in shards:
    yield dedup_worker.Job(
        split or train.split, i, first, wanted[first:first + count], path,
        stored and stored.form)
    first += count


def _place(root, stored, dry_run):
  """A context with the directory to write into."""
  if dry_run:
    os.makedirs(root, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=root)
  version = stored.full_name.split('/')[1:]
  return shard_files.new_directory(os.path.join(root, *version))


def _pipeline(pipeline, *, jobs, parts, hash_tests, search_job):
  beam = beam_runner.load()
  hashed = (pipeline | 'Tests' >> beam.Create(parts)
            | 'Spread' >> beam.Reshuffle() | 'Hash' >> beam.FlatMap(hash_tests))
  return (pipeline | beam.Create(jobs) | beam.Reshuffle()
          | 'Search' >> beam.Map(search_job, beam.pvalue.AsList(hashed)))


def _count(found, jobs):
  """{split: counts}; raises RunError if they do not agree."""
  table = {job.split: collections.Counter() for job in jobs}
  for part in found:
    table[part['split']].update(
        records=part['before'], searched=part['searched'],
        unreadable=part['unreadable'], removed=len(part['removed']),
        kept=part['records'])
  for split, row in table.items():
    if row['records'] != row['kept'] + row['removed'] or len(found) < len(jobs):
      raise errors.RunError(
          f'{split}: of {row["records"]} records {row["kept"]} were kept and '
          f'{row["removed"]} removed, in {len(found)} of {len(jobs)} shards')
  return table


def _install(stored, place, work, found, name):
  """Makes a TFDS set of what was kept."""
  shards = {}
  for split in stored.splits:
    mine = [part for part in found if part['split'] == split]
    shards[split] = shard_files.install(work, mine, place, name, split, stored.form)
  shutil.rmtree(work)
  shard_files.describe(stored, place, name=name, form=stored.form, shards=shards)


def _line(removed, tests):
  """A line of removed.jsonl."""
  test = tests[removed.pop('test')]
  return dict(removed, against=str(test),
              match_name=test.name_of(removed['match']))


def _thumbnails(line, *, train, tests):
  test = next(t for t in tests if str(t) == line['against'])
  return (contact_sheet.thumbnail(train.pixels_of(line['record'])),
          contact_sheet.thumbnail(test.pixels_of(line['match'])))
