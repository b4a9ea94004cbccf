"""What a network costs: parameters and floating-point operations, by formula.

The formulas are each network's own, see `interface.Model`.
"""
import re

import flax.linen as nn

from mixer.core import trees
from mixer.models import grid
from mixer.models import interface


def tokens(model: nn.Module, image_size: grid.Size) -> int:
  """Returns S, the number of tokens of one image."""
  return grid.tokens(image_size, model.patch_size)


def parameters(model: nn.Module, image_size: grid.Size) -> int:
  """Returns the exact number of parameters."""
  return model.parameters(image_size)


def forward_flops(model: nn.Module, image_size: grid.Size) -> int:
  """Returns the FLOPs of one image: twice the multiply-adds of its products.

  As is usual, LayerNorm, GELU, skips and the mean are not counted.
  """
  return 2 * model.multiply_adds(image_size)


def training_flops(model: nn.Module, image_size: grid.Size,
                   frozen: str | None = None,
                   params: interface.Params | None = None) -> int:
  """Returns the FLOPs of one image in training.

  They are three times those of a forward pass, since a backward pass has two
  products for each of the forward pass: the gradients of the weights and of the
  input. With frozen parameters, only the gradients that training needs count:
  those of trained kernels, and those of inputs that lie above a trained
  parameter.

  Args:
    model: the network.
    image_size: side in pixels, or (height, width).
    frozen: regular expression for the whole names of frozen parameters.
    params: of the network, or their shapes; needed with `frozen` only.
  """
  forward = forward_flops(model, image_size)
  if not frozen:
    return 3 * forward
  still = {name: re.fullmatch(frozen, name) is not None
           for name in trees.flatten(params or {})}
  backward, above = 0.0, False   # above: a trained parameter is below
  for layer, count in model.layers(image_size):
    within = sorted({name.rpartition('/')[0] for name in still
                     if name.startswith(f'{layer}/')})
    for module in within:
      mine = {name: kept for name, kept in still.items()
              if name.rpartition('/')[0] == module}
      trains = not mine.get(f'{module}/kernel', True)
      backward += 2 * count / len(within) * (above + trains)
      above = above or not all(mine.values())
  return forward + round(backward)


def trained(params: interface.Params, frozen: str | None) -> int:
  """Returns how many of the parameters are trained, that is not frozen.

  Args:
    params: of the network, or their shapes.
    frozen: as for `training_flops`.
  """
  return trees.count([x for name, x in trees.flatten(params).items()
                      if not frozen or not re.fullmatch(frozen, name)])
