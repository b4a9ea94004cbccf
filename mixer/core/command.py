"""How a command starts and ends: flags, several processes, exit codes.

Exit codes: 0 done; 1 failed, a restart would fail again; 2 bad usage or
config; 42 told to stop, saved, start me again; 130 stopped by Ctrl-C, with
nothing to save; 134 another process of the run is gone, start all again.
"""
import os
import re
import sys
import time
import traceback

from absl import app
from absl import flags

from mixer.core import errors
from mixer.core import log
from mixer.core import processes

FAILED, USAGE, RESTART, INTERRUPTED, LOST = 1, 2, 42, 130, 134
# That process 0, of several, waits before it ends by an error. All may have it,
# and its end takes down the others, who then could not say so.
_FOR_OTHERS_SECONDS = 3


def run(main, positional=0, log_to=None, several=False):
  """Runs `main(argv)` as an absl app whose mistakes are single lines.

  absl itself exits 1 on a bad flag, and ml_collections raises a traceback on a
  bad key; both are the user's, so both end here with exit code 2.

  Args:
    main: the command.
    positional: how many arguments it takes that are not flags; None for any.
    log_to: stream of the log, by default standard output.
    several: whether it may be one of several processes, which `join` meets.
  """
  log.setup(log_to)
  if several:
    own = dict(module_name=sys.argv[0])   # whose flags --help lists
    flags.DEFINE_string(
        'coordinator', None, 'HOST:PORT of process 0, where several processes '
        'meet. Not needed under Slurm, Open MPI 4, GKE and on TPU slices.',
        **own)
    flags.DEFINE_integer('num_processes', None, 'How many they are; 1 looks '
                         'for no others, whatever the surroundings.', 1, **own)
    flags.DEFINE_integer('process_id', None, 'Which this one is, from 0.', 0,
                         **own)

  def parse(argv):
    try:
      rest = flags.FLAGS(argv, known_only=False)
      for name in flags.FLAGS:   # a config that is not there says so when used
        getattr(flags.FLAGS[name].value, 'lock', None)
    except SystemExit:   # absl has printed the help, and calls that a failure
      sys.exit(0)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError,
            OSError) as e:
      _die(_unknown_key(argv) or _plain(e), USAGE)
    if positional is not None and len(rest) > 1 + positional:
      _die(f'unexpected argument {rest[-1]!r}: settings are flags, as in '
           '--config.run.batch_size=64', USAGE)
    return rest

  def guarded(argv):
    try:
      main(argv)
    except errors.UserError as e:
      _die(e, USAGE)
    except errors.PeerLost as e:
      _die(e, LOST)
    except errors.RunError as e:
      _die(e, FAILED)
    except errors.Stopped as e:
      processes.leave()
      _die(e, RESTART, label='stopped')
    except KeyboardInterrupt:   # a run that can save catches the signal itself
      _die('by Ctrl-C', INTERRUPTED, label='stopped')
    except Exception as e:
      if processes.lost(e):
        _die('another process of this run is gone; start all of them again '
             f'({str(e).splitlines()[0][:200]})', LOST)
      if not processes.several():
        raise
      traceback.print_exc()
      _die(f'{type(e).__name__}, see above', FAILED)

  app.run(guarded, flags_parser=parse)


def join(**settings):
  """Meets the other processes that the flags, or the surroundings, tell of; see
  `processes.join`."""
  processes.join(**{key: flags.FLAGS[key].value for key in (
      'coordinator', 'num_processes', 'process_id')}, **settings)


def one_length(section):
  """On the command line a length in steps or in epochs overrides the other.

  Args:
    section: `run` of --config, changed in place.
  """
  from ml_collections import config_flags
  given = config_flags.get_override_values(flags.FLAGS['config'])
  lengths = [k for k in ('total_steps', 'total_epochs') if f'run.{k}' in given]
  if len(lengths) == 2:
    raise errors.UserError('--config.run.total_steps and '
                           '--config.run.total_epochs: give one of them')
  if lengths:
    other, = {'total_steps', 'total_epochs'} - set(lengths)
    section[other] = None


def config_name():
  """--config as the name of a folder: 'finetune-b16-cifar10'."""
  from ml_collections import config_flags
  path = config_flags.get_config_filename(flags.FLAGS['config'])
  file, _, argument = path.partition(':')
  name = os.path.splitext(os.path.basename(file))[0]
  return re.sub(r'[^\w.]+', '-', f'{name} {argument}'.strip())


def _unknown_key(argv):
  """The error for the first override whose key its config does not have."""
  config = None
  for flag in argv[1:]:
    name, _, value = flag.lstrip('-').partition('=')
    if name == 'config' and name in flags.FLAGS:
      try:
        config = flags.FLAGS[name].parser.parse(value)
        getattr(config, 'lock')
      except (TypeError, ValueError, OSError):
        return None
    elif name.startswith('config.') and config is not None:
      node = config
      for key in name.split('.')[1:]:
        if not hasattr(node, 'keys') or key not in node:
          return errors.unknown(
              flag, key, sorted(getattr(node, 'keys', list)()))
        node = node[key]
  return None


def _plain(error):
  """What absl and ml_collections raise, as a sentence for people."""
  text = str(error)
  if 'Failed loading config file' in text:
    path, why = text.split('Attempted [Relative path]:')[-1].split(None, 1)
    return (f'--config: cannot read {path!r} ({why.strip()}); give a file such '
            'as --config=configs/digits.py')
  if 'Traceback (most recent call last)' in text:
    flag = text.partition(': Error whilst')[0]
    last = text.strip().splitlines()[-1].partition('Error: ')[2]
    if 'get_config() takes 0 positional' in last:
      last = 'this config takes no argument after the colon'
    return f'{flag}: {last}'
  if isinstance(error, flags.UnrecognizedFlagError):
    end = '' if text.endswith('?') else ';'
    return f'{text.replace(" ?", "?")}{end} --help lists those there are'
  return text


def _die(message, code, label='error'):
  sys.stdout.flush()
  text = ' '.join(str(message).split())
  print(f'{label}: {text}', file=sys.stderr, flush=True)
  if code in (FAILED, USAGE) and processes.several() and processes.first():
    time.sleep(_FOR_OTHERS_SECONDS)
  if 'tensorflow' in sys.modules or processes.several():
    # TensorFlow's threads may be decoding still, for a pipeline that the error
    # keeps alive; to wait for them can hang the interpreter's end, or abort it.
    # And JAX would wait for the other processes, which may wait for this one.
    os._exit(code)
  sys.exit(code)
