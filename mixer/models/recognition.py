"""Finds the network that parameters belong to, by their names and shapes."""
from collections.abc import Mapping
from typing import Any

from mixer.core import errors
from mixer.core import trees
from mixer.models import catalog
from mixer.models import grid
from mixer.models import interface


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


def _of_parameters(names: Mapping[str, Any]) -> type[interface.Model] | None:
  """Returns the network whose own parameters are among the names."""
  return next((network for network in map(catalog.class_of, catalog.FAMILIES)
               if any(network.OWN_PARAMETER.fullmatch(n) for n in names)), None)
