"""Finds the network that parameters belong to, by their names and shapes.

It also says in words how they differ from those of a model.
"""
from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

from mixer.core import errors
from mixer.core import trees
from mixer.models import catalog
from mixer.models import grid
from mixer.models import interface

_SHOWN = 4   # tensors that an error names
# The first module of a name that has a number, such as the block.
_NUMBERED = re.compile(r'(.*?[^\d/])(\d+)(/.*)')


def infer(params: Mapping[str, Any], image_size: grid.Size | None = None
          ) -> tuple[interface.Model, tuple[int, int]]:
  """Returns the network that parameters are for, and its image size.

  Args:
    params: nested dict of arrays with the published names.
    image_size: of images that are not square.

  Raises:
    UserError: if no network has such parameters, or they do not tell the size.
  """
  found = shapes(params)
  network = _of_parameters(found)
  if network is None:
    raise errors.UserError(
        f'no known network ({", ".join(catalog.FAMILIES)}) has such '
        f'parameters: {", ".join(sorted(found)[:4]) or "none"} and so on')
  model = network.infer(found)
  if image_size is None and model.USUAL_SIZE:
    image_size = model.USUAL_SIZE
  if image_size is None:
    tokens, patch = model.tokens(params), grid.pair(model.patch_size)
    patches = None if tokens is None else grid.square(tokens)
    if patches is None:
      raise errors.UserError(
          f'the weights are for {tokens or "any number of"} tokens, which does '
          'not tell the size of the images; a card beside the file, FILE.json '
          'as mixer.export writes it, would tell it')
    image_size = patches[0] * patch[0], patches[1] * patch[1]
  return model, grid.pair(image_size)


def published(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns arrays by this code's names, of those by the names of any release.

  Args:
    flat: arrays by name; those of an unknown network stay as they are.
  """
  for network in map(catalog.class_of, catalog.FAMILIES):
    renamed = network.published(flat)
    if any(network.OWN_PARAMETER.fullmatch(name) for name in renamed):
      return renamed
  return dict(flat)


def widths(params: Mapping[str, Any]) -> dict[str, int]:
  """Returns the settings of `create` that the shapes of parameters show.

  Args:
    params: nested dict of arrays, or of their shapes and dtypes; some
      parameters may be missing.
  """
  found = shapes(params)
  network = _of_parameters(found)
  return {} if network is None else network.widths(found)


def shapes(params: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
  """Returns {name: shape} of a nested dict of arrays."""
  return {name: tuple(x.shape) for name, x in trees.flatten(params).items()}


def misfits(params: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
  """Returns a line for every name or shape in which two trees differ.

  Blocks that differ alike share a line: 'MixerBlock_0-3/...'.

  Args:
    params: nested dict of what there is.
    wanted: nested dict of what the model has.
  """
  have, want = shapes(params), shapes(wanted)
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
  """Returns what `misfits` returns as one text that names the first ones."""
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


def _of_parameters(names: Mapping[str, Any]) -> type[interface.Model] | None:
  """Returns the network whose own parameters are among the names."""
  return next((network for network in map(catalog.class_of, catalog.FAMILIES)
               if any(network.OWN_PARAMETER.fullmatch(n) for n in names)), None)
