"""The project's log: plain lines on standard output.

So that the lines of a run stay readable, libraries show warnings at most, and
those that log through absl show only errors.
"""
import logging
import os
import sys
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
  # File names may hold bytes that are not UTF-8; printing one must not fail.
  if hasattr(sys.stdout, 'reconfigure'):
    sys.stdout.reconfigure(errors='backslashreplace')
  handler = logging.StreamHandler(stream or sys.stdout)
  handler.setFormatter(logging.Formatter('%(message)s'))
  log.handlers[:] = [handler]
  log.propagate = False
  log.setLevel(logging.INFO)
