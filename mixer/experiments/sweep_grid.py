"""Reads --grid of a sweep: the keys of a config to vary, and their values."""
from collections.abc import Callable
from collections.abc import Sequence
from typing import Any

import ml_collections

from mixer.core import errors

RATE = 'schedule.learning_rate'
# Sections that a sweep sets itself.
_FIXED = ('sweep', 'evals', 'fewshot', 'checkpoint')
_BOOLEANS = {'true': True, 'false': False}
# How the text of a value is read, by the type of its key.
_PARSERS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: _BOOLEANS[text.lower()], int: int, float: float,
    str: str}
# {key of the config: values to try}
Grid = dict[str, list[Any]]


def parse(texts: Sequence[str],
          config: ml_collections.ConfigDict) -> Grid:
  """Returns {key: values} of 'KEY=V1,V2,...' texts.

  Args:
    texts: one for each key.
    config: gives the type of each key's values.

  Raises:
    UserError: if the config has no such key, a sweep cannot vary it, or a value
      has the wrong type.
  """
  grid: Grid = {}
  for text in texts:
    key, _, values = text.partition('=')
    *parents, leaf = key.split('.')
    if not parents or not values or key in grid:
      raise errors.UserError(
          f'--grid: expected KEY=V1,V2,... with a key of the config, once for '
          f'each key, such as {RATE}=0.01,0.03, got {text!r}')
    section = config
    for i, part in enumerate(parents):
      section = _at(section, parents[:i], part)
    _at(section, parents, leaf)
    if parents[0] in _FIXED or key == 'data.split':
      raise errors.UserError(f'--grid: {key} cannot vary, because a sweep sets '
                             'splits, evaluations and checkpoints itself')
    grid[key] = list(dict.fromkeys(
        _value(key, value, section.get_type(leaf))
        for value in values.split(',')))
  return grid


def _at(section: Any, parents: Sequence[str], key: str) -> Any:
  """Returns section[key], where `parents` are the keys of `section`."""
  if not hasattr(section, 'keys'):
    raise errors.UserError(f'--grid: {".".join(parents)} is a setting, so it '
                           f'has no {key!r} below it')
  if key not in section:
    raise errors.unknown(': '.join(['--grid', *parents]), key, list(section))
  return section[key]


def _value(key: str, text: str, kind: type) -> Any:
  """Returns a text as a value of the type `kind`."""
  try:
    if text and kind in _PARSERS:
      return _PARSERS[kind](text)
  except (KeyError, ValueError):
    pass
  raise errors.UserError(f'--grid: {key}: expected {kind.__name__}, got '
                         f'{text!r}')
