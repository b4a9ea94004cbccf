"""Runs Apache Beam pipelines: on which runner, with what options and errors.

Steps use threads of their own for images, since those of Beam cannot be used:
see _LOSES.
"""
import collections
import concurrent.futures
import contextlib
import importlib
import json
import logging
import os
import re
import threading

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.images import decode_pillow

# With two threads and 100,000 elements Beam 2.77 lost 1% of them in one run of
# 18, unseen, and could not decode them in others.
_LOSES = '--direct_running_mode=multi_threading'
_NOTICE_SECONDS = 30
_REPORT = '.report'


def load():
  """Apache Beam, if it is installed."""
  try:
    import apache_beam
  except ImportError as e:
    raise errors.UserError(
        'this needs Apache Beam, which has an environment of its own: python '
        '-m venv .venv-prepare && .venv-prepare/bin/pip install -r '
        'launch/requirements-prepare.txt, then run this with '
        '.venv-prepare/bin/python') from e
  # Its errors are raised as well, and are told once.
  logging.getLogger('apache_beam').setLevel(logging.CRITICAL)
  logging.getLogger('apache_beam.options').setLevel(logging.WARNING)
  return apache_beam


def run(construct, *, runner, options, work, shards):
  """Runs the pipeline that `construct(pipeline)` builds, to its end.

  Args:
    construct: adds the steps.
    runner: Beam's name of one. 'DirectRunner' is this process: Beam's own
      looks for a program to download first.
    options: arguments for Beam's PipelineOptions.
    work: where its steps report.
    shards: how many reports there may be.
  """
  if _LOSES in options:
    raise errors.UserError(f'{_LOSES}: Beam loses elements then; use '
                           'multi_processing, or nothing')
  beam = load()
  from apache_beam.options import pipeline_options
  if runner == 'DirectRunner':
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    runner = fn_runner.FnApiRunner()
  try:
    pipeline = beam.Pipeline(
        runner=runner, options=pipeline_options.PipelineOptions(list(options)))
  except ValueError as e:
    raise errors.UserError(f'--runner: {decode_pillow.one_line(e)}') from e
  try:
    with _notices(work, shards):
      construct(pipeline)
      pipeline.run().wait_until_finish()
  except Exception as e:
    raise _plain(e) from e


def report(path, result):
  """Leaves what a worker has to tell, a dict, beside the file it wrote."""
  files.write(path + _REPORT, json.dumps(result))


def reports(work):
  """All that was told there, by split and shard."""
  told = [json.loads(files.read(os.path.join(work, name)))
          for name in _reported(work)]
  return sorted(told, key=lambda r: (r['split'], r['shard']))


def _reported(work):
  return [name for name in os.listdir(work) if name.endswith(_REPORT)]


def in_threads(function, items):
  """Like map, in order, with a thread a core; some results wait to be taken.

  TFDS is there before the threads are: as long as it is imported, no import of
  any thread is what it should be (etils.epy.lazy_imports), and Pillow imports
  while it decodes.
  """
  importlib.import_module('tensorflow_datasets.proto')
  threads = os.cpu_count() or 1
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    waiting = collections.deque()
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > 4 * threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


@contextlib.contextmanager
def _notices(work, shards):
  """Logs now and then how many shards are done."""
  done = threading.Event()

  def watch():
    before = 0
    while not done.wait(_NOTICE_SECONDS):
      now = len(_reported(work))
      if now > before:
        log.info('%d of %d shards', now, shards)
      before = now

  thread = threading.Thread(target=watch, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


def _plain(error):
  """Our own error, which Beam may have wrapped, or the last line of another."""
  text = re.sub(r" \[while running '.*?'\]", '', str(error)).strip()
  for kind in (errors.UserError, errors.RunError):
    if isinstance(error, kind):
      return kind(text)
    found = re.search(rf'{kind.__module__}\.{kind.__name__}: (.*)', text)
    if found:
      return kind(found[1])
  last = text.splitlines()[-1] if text else ''
  return errors.RunError(f'Beam: {type(error).__name__}: {last}')
