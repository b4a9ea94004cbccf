"""How a command starts and ends: flags, several processes, exit codes.

Exit codes: 0 done; 1 failed, and would fail again if restarted; 2 bad usage or
config; 42 stopped by a signal and saved, start it again; 130 stopped by Ctrl-C
with nothing to save; 134 another process of the run is gone or a device failed,
start all again; 143 stopped by SIGTERM with nothing to save.
"""
from collections.abc import Callable
import os
import re
import sys
import time
import traceback
from typing import Any
from typing import NoReturn
from typing import TextIO
from typing import TYPE_CHECKING

from absl import app
from absl import flags

from mixer.core import errors
from mixer.core import log
from mixer.core import processes

if TYPE_CHECKING:
  import ml_collections

FAILED, USAGE, RESTART, INTERRUPTED, LOST, KILLED = 1, 2, 42, 130, 134, 143
# On an error, process 0 waits this long before exiting: its exit kills the
# other processes, and they may need to print the same error first.
_FOR_OTHERS_SECONDS = 3


def run(main: Callable[[list[str]], None], positional: int | None = 0,
        log_to: TextIO | None = None, several: bool = False) -> None:
  """Runs `main(argv)` as an absl app that prints a user's mistake as one line.

  By itself, absl exits with code 1 on a bad flag and ml_collections raises a
  traceback on a bad key. Both are the user's mistakes: exit code 2.

  Args:
    main: the command.
    positional: how many arguments it takes that are not flags; None for any
      number.
    log_to: where log lines go, by default standard output.
    several: whether the command may be one of several processes; then it has
      the three flags that `join` reads.
  """
  if sys.platform == 'win32':
    _die('this runs on Linux and macOS; on Windows, run it inside WSL', USAGE)
  log.setup(log_to)
  if several:
    _define_process_flags()

  def guarded(argv: list[str]) -> None:
    try:
      main(argv)
    except KeyboardInterrupt:   # not in training steps, which note it
      _die('by Ctrl-C', INTERRUPTED, label='stopped')
    except Exception as e:
      _fail(e)

  app.run(guarded, flags_parser=lambda argv: _parse(argv, positional))


def _fail(error: Exception) -> None:
  """Ends the command with the line and the exit code of an error.

  Raises:
    Exception: the error itself if nobody expected it, and Python can end.
  """
  if 'jax' in sys.modules:
    from mixer.core import faults  # loaded only now: few commands fail
    error = faults.explain(error, flags)
  if isinstance(error, errors.Stopped):
    processes.leave()
    _die(error, RESTART, label='stopped')
  if isinstance(error, errors.Killed):
    _die(error, KILLED, label='stopped')
  for kind, code in ((errors.UserError, USAGE), (errors.PeerLost, LOST),
                     (errors.RunError, FAILED)):
    if isinstance(error, kind):
      _die(error, code)
  if not _abrupt():
    raise error
  traceback.print_exception(error)
  _die(f'{type(error).__name__}, see above', FAILED)


def join(**settings: Any) -> None:
  """Joins the other processes that the flags or the environment name.

  Args:
    **settings: other arguments of `processes.join`.
  """
  value = lambda name: flags.FLAGS[name].value
  processes.join(
      coordinator=value('coordinator'), num_processes=value('num_processes'),
      process_id=value('process_id'), **settings)


def one_length(section: 'ml_collections.ConfigDict') -> None:
  """Lets a length given on the command line override the config's other one.

  A run is as long as `total_steps` or `total_epochs` says. The one that is on
  the command line unsets the other.

  Args:
    section: `run` of --config, changed in place.

  Raises:
    UserError: if both are on the command line.
  """
  from ml_collections import config_flags
  given = config_flags.get_override_values(flags.FLAGS['config'])
  lengths = [k for k in ('total_steps', 'total_epochs') if f'run.{k}' in given]
  if len(lengths) == 2:
    raise errors.UserError('--config.run.total_steps and '
                           '--config.run.total_epochs: give one of them')
  if lengths:
    other, = {'total_steps', 'total_epochs'} - set(lengths)
    if other in section:
      section[other] = None


def folder(given: str) -> str:
  """Returns the folder that --workdir names.

  Raises:
    UserError: if the text is empty.
  """
  if not given:
    raise errors.UserError('--workdir: expected a folder, got an empty text; '
                           'is an environment variable unset?')
  return os.path.expanduser(given)   # a shell does not, inside of --workdir=~/a


def config_name() -> str:
  """Returns --config as a directory name, such as 'finetune-b16-cifar10'."""
  from ml_collections import config_flags
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  file, _, argument = path.partition(':')
  name = os.path.splitext(os.path.basename(file))[0]
  return re.sub(r'[^\w.]+', '-', f'{name} {argument}'.strip())


def _define_process_flags() -> None:
  # --help lists the flags of the module that is run, which is not this one.
  module = sys.argv[0]
  flags.DEFINE_string(
      'coordinator', None, 'HOST:PORT of process 0, to which the other '
      'processes connect. Not needed under Slurm, Open MPI 4, GKE and on TPU '
      'slices.', module_name=module)
  flags.DEFINE_integer(
      'num_processes', None, 'Number of processes. 1 runs alone, whatever the '
      'environment says.', lower_bound=1, module_name=module)
  flags.DEFINE_integer(
      'process_id', None, 'Index of this process, from 0.', lower_bound=0,
      module_name=module)


def _parse(argv: list[str], positional: int | None) -> list[str]:
  """Returns the arguments that are not flags; exits on a mistake."""
  try:
    rest = flags.FLAGS(argv, known_only=False)
    for name in flags.FLAGS:
      # A config file is loaded, and can fail, when its value is first used.
      value = flags.FLAGS[name].value
      if not hasattr(value, 'lock') and name == 'config' and value is not None:
        raise TypeError(f'--config: expected a ConfigDict, got {value!r}')
  except SystemExit:   # absl has printed --help, and exits with an error code
    sys.exit(0)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError,
          OSError) as e:
    from mixer.core import faults  # loaded only now: few commands fail
    _die(faults.in_flags(e, argv, flags), USAGE)
  if positional is not None and len(rest) > 1 + positional:
    _die(f'unexpected argument {rest[-1]!r}: settings are flags, as in '
         '--config.run.batch_size=64', USAGE)
  return rest


def _die(message: object, code: int, label: str = 'error') -> NoReturn:
  """Prints one line to standard error and exits."""
  sys.stdout.flush()
  text = ' '.join(str(message).split())
  print(f'{label}: {text}', file=sys.stderr, flush=True)
  if code in (FAILED, USAGE) and processes.several() and processes.first():
    time.sleep(_FOR_OTHERS_SECONDS)
  if _abrupt():
    os._exit(code)
  sys.exit(code)


def _abrupt() -> bool:
  """Returns whether a failed command must end without Python's own shutdown.

  That can hang, or crash and so change the exit code. The error keeps the
  input pipeline alive, and TensorFlow's threads may still be decoding for it.
  JAX's threads may still be computing, and JAX would wait for the other
  processes, which may be waiting for this one.
  """
  return 'tensorflow' in sys.modules or 'jax' in sys.modules
