"""The class of a data set that is read by record number."""
from __future__ import annotations

from collections.abc import Callable
import dataclasses
import typing

import numpy as np

if typing.TYPE_CHECKING:
  from mixer.data import splits
  from mixer.data.shards import Shards
  from mixer.images import decode_pillow

MAX_LABELS = 32   # of one example
MAX_CLASSES = 2**20   # a larger number is some kind of id, not a class


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A data set that can be read by record number.

  Attributes:
    name: as in the config.
    stored: its splits, by name.
    num_classes: number of classes that labels are of.
    class_names: one for each class, or None.
    read: int64 record numbers [n] -> (images, targets). Images are a list of
      encoded files, where a `BadImage` stands for one that cannot be read, or
      uint8 [n, H, W, C] if `decoded`. Targets are a dict of 'labels', int32
      [n, L] padded by -1, and, if not every label counts 1, 'weights', float32
      [n, L]. If `shards` is given, the numbers must ascend and lie in one
      shard.
    name_of: record number -> its name in messages.
    decoded: whether images are arrays already.
    channels: number of channels of the images.
    fingerprint: changes when the records or their order change.
    upright: whether to apply EXIF rotation and to lay transparency on white.
      This is done for people's own files but not for TFDS sets, because
      published ImageNet figures ignore both.
    shards: the files of a set that is read in sequence, else None.
    directory: of the version of a TFDS set, else None.
    relabelled: whether labels of a file replace its own, see `real_labels`.
    targets: record numbers -> the targets alone, as `read` gives them; None if
      they can only be read together with the images.
  """
  name: str
  stored: splits.Stored
  num_classes: int
  class_names: tuple[str, ...] | None
  read: Callable[[np.ndarray], tuple[
      list[bytes | decode_pillow.BadImage] | np.ndarray,
      dict[str, np.ndarray]]]
  name_of: Callable[[int], str]
  decoded: bool
  channels: int
  fingerprint: str
  upright: bool = False
  shards: Shards | None = None
  directory: str | None = None
  relabelled: bool = False
  targets: Callable[[np.ndarray], dict[str, np.ndarray]] | None = None
