"""The project's own log: plain lines on standard output.

Libraries log through absl and the root logger; only their warnings are let
through, so that a run's own lines stay readable.
"""
import logging
import os
import sys

log = logging.getLogger('mixer')


def setup(stream=None):
  """Called once by a command, never at import; standard output by default."""
  from absl import logging as absl_logging
  # TensorFlow's start-up lines; its resizing does not use oneDNN anyway.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  absl_logging.use_python_logging(quiet=True)
  absl_logging.set_verbosity(absl_logging.ERROR)
  if hasattr(sys.stdout, 'reconfigure'):   # a file's name may be no text
    sys.stdout.reconfigure(errors='backslashreplace')
  handler = logging.StreamHandler(stream or sys.stdout)
  handler.setFormatter(logging.Formatter('%(message)s'))
  log.handlers[:] = [handler]
  log.propagate = False
  log.setLevel(logging.INFO)
