"""Errors written for the user: one line with the key, the value, the remedy.

`command.run` turns each class into its exit code.
"""
from collections.abc import Collection
import difflib


class UserError(ValueError):
  """A user's mistake, such as a bad flag or config value: exit code 2."""


class RunError(RuntimeError):
  """A run that failed, and would fail again if restarted: exit code 1."""


class Diverged(RunError):
  """A run whose loss is not finite."""


class PeerLost(RunError):
  """Another process of the run, or a device, is gone: exit code 134."""


class Stopped(Exception):
  """The run got a signal, saved a checkpoint and stopped: exit code 42."""


class Killed(Exception):
  """The run got SIGTERM and had nothing to save: exit code 143."""


def unknown(what: str, value: object, choices: Collection[object]) -> UserError:
  """Returns an error for a value that is not one of `choices`.

  Args:
    what: the key or flag, such as 'data.crop'.
    value: what the user gave.
    choices: what is allowed; the message lists them and suggests the one whose
      spelling is closest.
  """
  names = {str(c).lower(): str(c) for c in choices}
  near = difflib.get_close_matches(str(value).lower(), names, 1)
  hint = f'; did you mean {names[near[0]]!r}?' if near else ''
  known = ', '.join(str(c) for c in choices)
  return UserError(f'{what}: {value!r} is unknown{hint} (known: {known})')
