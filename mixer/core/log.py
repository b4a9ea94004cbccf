"""The project's log: plain lines on standard output.

So that the lines of a run stay readable, libraries show warnings at most, and
those that log through absl show only errors.
"""
import io
import logging
import os
import sys
from typing import Any
from typing import TextIO

log = logging.getLogger('mixer')


def setup(stream: TextIO | None = None) -> None:
  """Sets up logging for a command; modules never call it at import.

  Args:
    stream: where log lines go, by default standard output.
  """
  from absl import logging as absl_logging
  # TensorFlow prints a notice about oneDNN when it starts. Decoding and
  # resizing images do not use oneDNN, so turn it off.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  absl_logging.use_python_logging(quiet=True)
  absl_logging.set_verbosity(absl_logging.ERROR)
  # Orbax logs an error with its traceback, then raises it: report it once.
  logging.getLogger('absl').addFilter(
      lambda record: not record.exc_info or 'orbax' not in record.pathname)
  # File names may hold bytes that are not UTF-8; printing one must not fail.
  if hasattr(sys.stdout, 'reconfigure'):
    sys.stdout.reconfigure(errors='backslashreplace')
  for name in ('stdout', 'stderr'):
    old = getattr(sys, name)
    setattr(sys, name, _lasting(old))
    stream = getattr(sys, name) if stream is old else stream
  handler = logging.StreamHandler(stream or sys.stdout)
  handler.setFormatter(logging.Formatter('%(message)s'))
  log.handlers[:] = [handler]
  log.propagate = False
  log.setLevel(logging.INFO)


class _Lasting(io.FileIO):
  """A pipe whose reader may leave: what is written then is dropped.

  So a command whose output goes into `head` still ends its work, with its files
  and its exit code.
  """

  def write(self, data: Any, /) -> int:
    try:
      return super().write(data)
    except BrokenPipeError:
      # The file descriptor itself, so that libraries can write to it too.
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, self.fileno())
      os.close(null)
      return len(data)


def _lasting(stream: Any) -> Any:
  """Returns a standard stream that outlives its reader, if it is a pipe."""
  binary = getattr(stream, 'buffer', None)
  raw = getattr(binary, 'raw', binary)
  if type(raw) is not io.FileIO or stream.isatty():
    return stream
  stream.flush()
  new = _Lasting(raw.fileno(), 'w', closefd=False)
  return io.TextIOWrapper(
      new if binary is raw else io.BufferedWriter(new),
      encoding=stream.encoding, errors=stream.errors,
      line_buffering=stream.line_buffering,
      write_through=stream.write_through)
