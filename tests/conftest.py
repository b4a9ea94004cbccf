"""Tests run on eight fake CPU devices, and implicit rank promotion is an error.
"""
import os
import pathlib
import signal
import sys

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=8')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402  (after the environment is set)

jax.config.update('jax_numpy_rank_promotion', 'raise')

# A shell starts background jobs with SIGINT ignored, and children inherit that;
# with a handler here, every command that a test starts has the default.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)

# In this order, before all others: a file is one process's, and a long one at
# the end would leave the other processes idle.
LONG = ('test_plan', 'test_several', 'test_resume', 'test_step', 'test_docs',
        'test_predict', 'test_left_out')


def pytest_configure(config):
  """Compiling is half of the quick tests' time, and LLVM's costly passes half
  of that: these are left to the slow tests, and to runs in other processes."""
  if config.option.markexpr == 'not slow':
    jax.config.update('jax_disable_most_optimizations', True)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: (*LONG, item.path.stem).index(item.path.stem))
