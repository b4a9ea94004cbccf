"""How parameters differ from those of a model, in words."""
from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

from mixer.models import recognition

_SHOWN = 4   # tensors that an error names
# The first module of a name that has a number, such as the block.
_NUMBERED = re.compile(r'(.*?[^\d/])(\d+)(/.*)')


def between(params: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
  """Returns a line for every name or shape in which two trees differ.

  Blocks that differ alike share a line: 'MixerBlock_0-3/...'.

  Args:
    params: nested dict of what there is.
    wanted: nested dict of what the model has.
  """
  have, want = recognition.shapes(params), recognition.shapes(wanted)
  lines: dict[tuple[str, str], list[int]] = {}
  for name in have.keys() | want.keys():
    ours, theirs = have.get(name, 'missing'), want.get(name, 'none')
    if ours != theirs:
      block = _NUMBERED.fullmatch(name)
      before, number, after = block.groups() if block else (name, None, '')
      line = before, f'{after}: {ours}, the model has {theirs}'
      lines.setdefault(line, []).extend([] if number is None else [int(number)])
  return [before + _ranges(numbers) + rest
          for (before, rest), numbers in sorted(lines.items())]


def shortened(lines: Sequence[str]) -> str:
  """Returns what `between` returns as one text that names the first ones."""
  more = len(lines) - _SHOWN
  return '; '.join(lines[:_SHOWN]) + (f'; and {more} more' * (more > 0))


def _ranges(numbers: Sequence[int]) -> str:
  """Returns '0-3,7' for [0, 1, 2, 3, 7]."""
  runs: list[list[int]] = []
  for n in sorted(numbers):
    if runs and n == runs[-1][1] + 1:
      runs[-1][1] = n
    else:
      runs.append([n, n])
  return ','.join(str(a) if a == b else f'{a}-{b}' for a, b in runs)
