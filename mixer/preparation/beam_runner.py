"""Runs Apache Beam pipelines: the runner, its options, progress and errors."""
import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import concurrent.futures
import contextlib
import importlib
import json
import logging
import os
import re
import threading
import types
from typing import Any
from typing import TYPE_CHECKING
from typing import TypeVar

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.images import decode_pillow

if TYPE_CHECKING:
  import apache_beam

_Item = TypeVar('_Item')
_Result = TypeVar('_Result')

# Measured with Beam 2.77, two threads and 100,000 elements: one run of 18 lost
# 1% of the elements without an error, and others failed to decode elements.
# Steps that want threads use `map_in_threads` instead.
_UNSAFE_OPTION = '--direct_running_mode=multi_threading'
_PROGRESS_SECONDS = 30
_REPORT_SUFFIX = '.report'


def import_beam() -> types.ModuleType:
  """Returns the module apache_beam, with its own logging silenced.

  Raises:
    UserError: if Beam is not installed, with the commands that install it.
  """
  try:
    import apache_beam
  except ImportError as e:
    raise errors.UserError(
        'this command needs Apache Beam, in an environment of its own: run '
        'python -m venv .venv-prepare && .venv-prepare/bin/pip install -r '
        'launch/requirements-prepare.txt, then repeat the command with '
        '.venv-prepare/bin/python') from e
  # Beam logs each error with a traceback and raises it too; `run` reports it.
  logging.getLogger('apache_beam').setLevel(logging.CRITICAL)
  logging.getLogger('apache_beam.options').setLevel(logging.WARNING)
  return apache_beam


def run(add_steps: Callable[['apache_beam.Pipeline'], None], *, runner: str,
        options: Sequence[str], work: str, shards: int) -> None:
  """Runs a pipeline to its end, logging progress.

  Args:
    add_steps: adds the steps to the pipeline that it is given.
    runner: Beam's name of a runner, such as 'DirectRunner', which runs in this
      process.
    options: arguments for Beam's PipelineOptions.
    work: directory in which the steps call `write_report`.
    shards: how many reports to expect.

  Raises:
    UserError: if the options or the runner are wrong, or a step raised it.
    RunError: if a step failed for any other reason.
  """
  if _UNSAFE_OPTION in options:
    raise errors.UserError(
        f'{_UNSAFE_OPTION}: Beam can lose elements in this mode; use '
        '--direct_running_mode=multi_processing, or leave the option out')
  beam = import_beam()
  from apache_beam.options import pipeline_options
  used_runner: Any = runner
  if runner == 'DirectRunner':
    # By this name Beam would first look for a runner binary to download.
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    used_runner = fn_runner.FnApiRunner()
  try:
    pipeline = beam.Pipeline(
        runner=used_runner,
        options=pipeline_options.PipelineOptions(list(options)))
  except ValueError as e:
    raise errors.UserError(f'--runner: {decode_pillow.one_line(e)}') from e
  try:
    with _progress_logged(work, shards):
      add_steps(pipeline)
      pipeline.run().wait_until_finish()
  except Exception as e:
    raise _without_beam_wrapping(e) from e


def write_report(path: str, report: Mapping[str, Any]) -> None:
  """Writes what a worker has to report about a shard, beside the shard.

  Workers may be other processes or machines, and Beam's runners give the main
  process no elements back, so results travel through files.

  Args:
    path: the shard's file; the report's file adds a suffix to its name.
    report: JSON values, among them 'split' and 'shard'.
  """
  files.write(path + _REPORT_SUFFIX, json.dumps(report))


def read_reports(work: str) -> list[dict[str, Any]]:
  """Returns all reports in a directory, ordered by split and shard."""
  reports = [json.loads(files.read(os.path.join(work, name)) or '')
             for name in _report_names(work)]
  return sorted(reports, key=lambda r: (r['split'], r['shard']))


def _report_names(work: str) -> list[str]:
  return [n for n in os.listdir(work) if n.endswith(_REPORT_SUFFIX)]


def map_in_threads(function: Callable[[_Item], _Result],
                   items: Iterable[_Item]) -> Iterator[_Result]:
  """Yields function(item) of each item, in order, with one thread per core.

  At most four results per thread wait to be consumed, so that the decoded
  images of a shard never fill the memory.
  """
  # Import TFDS before starting threads: while it loads, it replaces Python's
  # import function (etils.epy.lazy_imports), which breaks imports in other
  # threads, and Pillow imports its codecs while it decodes.
  importlib.import_module('tensorflow_datasets.proto')
  threads = os.cpu_count() or 1
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    waiting: collections.deque[concurrent.futures.Future[_Result]] = (
        collections.deque())
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > 4 * threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


@contextlib.contextmanager
def _progress_logged(work: str, shards: int) -> Iterator[None]:
  """Logs every half minute how many shards are done, if there are more."""
  finished = threading.Event()

  def watch():
    before = 0
    while not finished.wait(_PROGRESS_SECONDS):
      now = len(_report_names(work))
      if now > before:
        log.info('%d of %d shards are done', now, shards)
      before = now

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield
  finally:
    finished.set()
    thread.join()


def _without_beam_wrapping(error: Exception) -> Exception:
  """Returns the project's own error inside of one from Beam.

  Beam re-raises an error of a step as its own class, with the traceback and
  the step's name in its text. Other errors become a RunError of one line.
  """
  text = re.sub(r" \[while running '.*?'\]", '', str(error)).strip()
  for kind in (errors.UserError, errors.RunError):
    if isinstance(error, kind):
      return kind(text)
    found = re.search(rf'{kind.__module__}\.{kind.__name__}: (.*)', text)
    if found:
      return kind(found[1])
  last_line = text.splitlines()[-1] if text else ''
  return errors.RunError(f'Beam: {type(error).__name__}: {last_line}')
