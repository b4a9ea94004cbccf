"""Errors for people, and how a command ends.

Exit codes: 0 done; 1 failed, a restart would fail again; 2 bad usage or
config; 42 told to stop, saved, start me again.
"""
import difflib
import sys

from absl import app
from absl import flags

from mixer.core import log

FAILED, USAGE, RESTART = 1, 2, 42


class UserError(ValueError):
  """A mistake of the user's: one line, no traceback, exit code 2."""


class RunError(RuntimeError):
  """A run that failed and must not be restarted as it is: exit code 1."""


class Stopped(Exception):
  """The run was told to stop and has saved: exit code 42."""


def unknown(what, value, choices):
  """An error for `value`, not among `choices`, with the nearest of them."""
  near = difflib.get_close_matches(str(value), [str(c) for c in choices], 1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  known = ', '.join(str(c) for c in choices)
  return UserError(f'{what}: {value!r} is unknown{hint} (known: {known})')


def run(main, positional=0):
  """Runs `main(argv)` as an absl app whose mistakes are single lines.

  absl itself exits 1 on a bad flag, and ml_collections raises a traceback on a
  bad key; both are the user's, so both end here with exit code 2.

  Args:
    main: the command.
    positional: how many arguments it takes that are not flags.
  """
  log.setup()

  def parse(argv):
    try:
      rest = flags.FLAGS(argv, known_only=False)
    except SystemExit:   # absl has printed the help, and calls that a failure
      sys.exit(0)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError,
            OSError) as e:
      _die(e, USAGE)
    if len(rest) > 1 + positional:
      _die(f'unexpected argument {rest[-1]!r}: settings are flags, as in '
           '--config.run.batch_size=64', USAGE)
    return rest

  def guarded(argv):
    try:
      main(argv)
    except UserError as e:
      _die(e, USAGE)
    except RunError as e:
      _die(e, FAILED)
    except Stopped as e:
      _die(e, RESTART, label='stopped')

  app.run(guarded, flags_parser=parse)


def _die(message, code, label='error'):
  sys.stdout.flush()
  text = ' '.join(str(message).split())
  print(f'{label}: {text}', file=sys.stderr, flush=True)
  sys.exit(code)
