"""The base class of networks: all that the rest of the code uses of one."""
from collections.abc import Mapping
import re
from typing import Any
from typing import ClassVar

import flax.linen as nn
import jax
import numpy as np

from mixer.core import errors
from mixer.core import trees
from mixer.models import grid

# A nested dict of arrays with the published names, and its names and shapes.
Params = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


def renamed(flat: Mapping[str, np.ndarray],
            names: tuple[tuple[str, str], ...]) -> dict[str, np.ndarray]:
  """Returns arrays by other names.

  Args:
    flat: arrays by name.
    names: (pattern of the beginning of a name, what takes its place), which are
      applied in turn.
  """
  out = {}
  for name, value in flat.items():
    for theirs, ours in names:
      name = re.sub(f'^{theirs}', ours, name)
    out[name] = value
  return out


class Model(nn.Module):
  """A network that classifies images; `models.catalog` has one row for each.

  It is called as `model.apply(variables, images, train=False)`, with `train`
  and `rows` as in `models.mixer.MlpMixer`, and returns (logits, named
  intermediates).
  Its fields are the settings of `models.create`; `num_classes`, `in_channels`,
  `head_bias`, `patch_size`, `dtype`, `platform` and `pixel_order` are fields of
  every network.
  Among its parameters, the first projection is 'stem' and the classifier
  'head'.

  Class attributes:
    NAMES: the sizes that its paper names, such as 'Mixer-B/16'.
    CHOICES: {field: the strings that it may be}.
    SHARDING_RULES: (pattern for the end of a parameter's name, mesh axes of
      each array axis); the first that matches holds. See `training.sharding`.
    OWN_PARAMETER: pattern of a parameter's name that no other network has.
    WIDTHS: settings that decide the shapes of parameters at any resolution. A
      network that starts from weights has theirs where its config sets none.
    TIED_TO_SIZE: settings that a change of resolution may change.
    TAKEN_FROM_WEIGHTS: settings that shapes do not show, and that a network
      which starts from weights takes over from them.
    USUAL_SIZE: side of the images in pixels where weights do not tell it; None
      if they do.
  """
  NAMES: ClassVar[tuple[str, ...]]
  CHOICES: ClassVar[Mapping[str, tuple[str, ...]]]
  SHARDING_RULES: ClassVar[tuple[tuple[str, tuple[Any, ...]], ...]]
  OWN_PARAMETER: ClassVar[re.Pattern[str]]
  WIDTHS: ClassVar[tuple[str, ...]] = ()
  TIED_TO_SIZE: ClassVar[tuple[str, ...]] = ()
  TAKEN_FROM_WEIGHTS: ClassVar[tuple[str, ...]] = ()
  USUAL_SIZE: ClassVar[int | None] = None

  @property
  def unused(self) -> dict[str, str]:
    """The settings without effect, each with the setting that is the reason."""
    return {}

  @nn.nowrap
  def ordered(self, images: jax.Array) -> jax.Array:
    """Returns images [batch, height, width, channels] with their pixels in the
    order that the network sees, see `models.pixel_order`."""
    if self.pixel_order is None:
      return images
    from mixer.models import pixel_order
    return pixel_order.apply(images, self.pixel_order, self.patch_size)

  @nn.nowrap
  def patches(self, images: jax.Array) -> tuple[int, int]:
    """Returns how many (rows, columns) of patches images have.

    Args:
      images: [batch, height, width, channels], of the call.

    Raises:
      UserError: if they do not fit the patches, the channels or the parameters.
    """
    if images.ndim != 4:
      raise errors.UserError('images: expected [batch, height, width, channels]'
                             f', got shape {images.shape}')
    _, height, width, channels = images.shape
    if channels != self.in_channels:
      raise errors.UserError(f'images have {channels} channels, the model '
                             f'takes in_channels={self.in_channels}')
    rows, columns = grid.patches((height, width), self.patch_size)
    made = None if self.is_initializing() else self.tokens(
        self.variables['params'])
    if made not in (None, rows * columns):
      raise errors.UserError(
          f'image size {height}x{width} gives {rows * columns} tokens, but the '
          f'weights are for {made}; give images of the size that the weights '
          'are for, or change the weights with `pretrained.resize`')
    return rows, columns

  @classmethod
  def settings(cls, name: str) -> dict[str, Any]:
    """Returns the fields that a name such as 'Mixer-B/16' stands for.

    Raises:
      UserError: if there is no such size.
    """
    raise NotImplementedError

  @classmethod
  def published(cls, flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns arrays by this code's names, of those by the names of released
    weights; arrays of other networks stay."""
    return dict(flat)

  @classmethod
  def infer(cls, shapes: Shapes) -> 'Model':
    """Returns the network that parameters of such names and shapes are for.

    Raises:
      UserError: if the parameters are not those of such a network.
    """
    raise NotImplementedError

  @classmethod
  def widths(cls, shapes: Shapes) -> dict[str, int]:
    """Returns the settings that decide the shapes of blocks, by name.

    Args:
      shapes: if parameters are missing, so are the settings that they show.
    """
    raise NotImplementedError

  @nn.nowrap
  def describe(self) -> dict[str, Any]:
    """Returns the arguments of `models.create` that decide which function the
    network computes; 'name' is the nearest size that its paper names."""
    raise NotImplementedError

  @nn.nowrap
  def parameters(self, image_size: grid.Size) -> int:
    """Returns the exact number of parameters, by formula."""
    raise NotImplementedError

  @nn.nowrap
  def multiply_adds(self, image_size: grid.Size) -> int:
    """Returns the multiply-adds of one image's forward pass, in matrix products
    only."""
    return sum(count for _, count in self.layers(image_size))

  @nn.nowrap
  def forward_flops(self, image_size: grid.Size) -> int:
    """Returns the FLOPs of one image: twice the multiply-adds of its products.

    As is usual, LayerNorm, GELU, skips and the mean are not counted.
    """
    return 2 * self.multiply_adds(image_size)

  @nn.nowrap
  def training_flops(self, image_size: grid.Size, frozen: str | None = None,
                     params: Params | None = None) -> int:
    """Returns the FLOPs of one image in training.

    They are three times those of a forward pass, since a backward pass has two
    products for each of the forward pass: the gradients of the weights and of
    the input. With frozen parameters, only the gradients that training needs
    count: those of trained kernels, and those of inputs that lie above a
    trained parameter. A ViT's embeddings are in no layer: they follow the stem.

    Args:
      image_size: side in pixels, or (height, width).
      frozen: regular expression for the whole names of frozen parameters.
      params: of the network, or their shapes; needed with `frozen` only.
    """
    forward = self.forward_flops(image_size)
    if not frozen:
      return 3 * forward
    still = {name: re.fullmatch(frozen, name) is not None
             for name in trees.flatten(params or {})}
    backward, above = 0.0, False   # above: a trained parameter is below
    for layer, count in self.layers(image_size):
      within = sorted({name.rpartition('/')[0] for name in still
                       if name.startswith(f'{layer}/')})
      for module in within:
        mine = {name: kept for name, kept in still.items()
                if name.rpartition('/')[0] == module}
        trains = not mine.get(f'{module}/kernel', True)
        backward += 2 * count / len(within) * (above + trains)
        above = above or not all(mine.values()) or not all(
            kept for name, kept in still.items() if '/' not in name)
    return forward + round(backward)

  @nn.nowrap
  def layers(self, image_size: grid.Size) -> list[tuple[str, int]]:
    """Returns (name among the parameters, multiply-adds) of each layer, from
    the images to the logits.

    The products of a layer are those of its kernels, in the order of their
    names, and have equally many multiply-adds.
    """
    raise NotImplementedError

  @nn.nowrap
  def tokens(self, params: Params) -> int | None:
    """Returns the S that parameters are tied to, or None if they are not."""
    del params
    return None

  @nn.nowrap
  def enlarged(self, parts: int) -> 'Model':
    """Returns the network that `resized` makes by the method 'block' for images
    of `parts` times as many patches."""
    del parts
    return self

  @nn.nowrap
  def resized(self, params: Params, old: tuple[int, int], new: tuple[int, int],
              method: str) -> tuple['Model', Params]:
    """Returns this network and its parameters for another grid of patches.

    Args:
      params: NumPy arrays.
      old: rows and columns of patches that the parameters are for.
      new: those of the result.
      method: 'block' or 'resample', see `pretrained.resize`.

    Raises:
      UserError: if the network has no such method.
    """
    raise errors.UserError(
        f'image_size: {self.describe()["name"]} cannot be changed from '
        f'{old[0]}x{old[1]} patches to {new[0]}x{new[1]}')
