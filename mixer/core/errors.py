"""Errors for people: one line with the key, the value, and the remedy."""
import difflib


class UserError(ValueError):
  """A mistake of the user's: one line, no traceback, exit code 2."""


class RunError(RuntimeError):
  """A run that failed and must not be restarted as it is: exit code 1."""


class Diverged(RunError):
  """A run whose loss is not finite."""


class PeerLost(RunError):
  """Another process of the run is gone, or never came: exit code 134."""


class Stopped(Exception):
  """The run was told to stop and has saved: exit code 42."""


def unknown(what, value, choices):
  """An error for `value`, not among `choices`, with the nearest of them."""
  names = {str(c).lower(): str(c) for c in choices}
  near = difflib.get_close_matches(str(value).lower(), names, 1)
  hint = f'; did you mean {names[near[0]]!r}?' if near else ''
  known = ', '.join(str(c) for c in choices)
  return UserError(f'{what}: {value!r} is unknown{hint} (known: {known})')
