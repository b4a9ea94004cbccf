"""Running Beam: threads, reports and errors; all of it without Beam."""
import pathlib
import subprocess
import sys

import pytest

from mixer.core import errors
from mixer.preparation import beam_runner

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_results_of_threads_come_in_order():
  squares = beam_runner.map_in_threads(lambda i: i * i, iter(range(200)))
  assert list(squares) == [i * i for i in range(200)]


def test_tfds_is_loaded_before_threads_start():
  """Loading TFDS replaces Python's import function; threads must not see it.

  In a process of its own, as TFDS does so only when it is first imported.
  """
  done = subprocess.run([sys.executable, '-c', """
from etils.epy import lazy_imports_utils
from mixer.core import errors
from mixer.preparation import beam_runner
from mixer.preparation import set_directory

def find(name):
  lazy_imports_utils._lazy_import = None   # what would use it now fails
  try:
    set_directory.open_stored(name, '/nowhere')
  except errors.UserError as e:
    return type(e.__cause__).__name__

print(*beam_runner.map_in_threads(find, ['none']))"""],
      cwd=ROOT, text=True, capture_output=True)
  assert done.stdout == 'DatasetNotFoundError\n', done.stderr


def test_reports_are_read_by_split_and_shard(tmp_path):
  reports = [dict(split=split, shard=shard, bad=['x'])
             for split in ('test', 'train') for shard in (0, 2, 10)]
  for report in reversed(reports):
    beam_runner.write_report(
        str(tmp_path / f'{report["split"]}-{report["shard"]}'), report)
  (tmp_path / 'train-0').write_text('a shard')
  assert beam_runner.read_reports(str(tmp_path)) == reports


def test_our_errors_inside_of_beams_stay_one_line():
  wrapped = RuntimeError(
      'Traceback (most recent call last):\n  ...\nmixer.core.errors.RunError: '
      "'x' is damaged [while running 'Write-ptransform-12']\n\n")
  error = beam_runner._without_beam_wrapping(wrapped)
  assert type(error) is errors.RunError and str(error) == "'x' is damaged"
  error = beam_runner._without_beam_wrapping(
      errors.UserError("why [while running 'List']"))
  assert type(error) is errors.UserError and str(error) == 'why'
  error = beam_runner._without_beam_wrapping(OSError('first\nlast'))
  assert type(error) is errors.RunError
  assert str(error) == 'Beam: OSError: last'


def test_without_beam_the_error_says_how_to_install_it(monkeypatch):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(errors.UserError, match='launch/requirements-prepare.txt'):
    beam_runner.import_beam()


def test_beams_own_threads_are_refused():
  with pytest.raises(errors.UserError, match='multi_threading.*processing'):
    beam_runner.run(
        lambda pipeline: None, runner='DirectRunner', work='', shards=1,
        options=['--x', '--direct_running_mode=multi_threading'])
