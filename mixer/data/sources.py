"""The class of a data set, and how one is opened by its name.

Only the code for the kind of the data set is imported, and no TensorFlow.
"""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Collection
import dataclasses
import os
import re
import typing

import numpy as np

from mixer.core import errors
from mixer.data import splits

if typing.TYPE_CHECKING:
  from mixer.data.shards import Shards
  from mixer.images import decode_pillow

MAX_LABELS = 32   # of one example
MAX_CLASSES = 2**20   # a larger number is some kind of id, not a class
_ACCESS = ('random', 'sequential')
_KINDS = ('digits', 'arrays:PATH.npz', 'folder:PATH', 'manifest:PATH',
          'vtab:TASK', 'a TFDS name')
_VERSION = re.compile(r'(\d+|\*)\.(\d+|\*)\.(\d+|\*)')


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

  @property
  def title(self) -> str:
    """The name, with the version of a TFDS set: 'cifar10:3.0.2'."""
    if self.directory is None:
      return self.name
    start, _, end = self.name.rpartition(':')
    name = start if _VERSION.fullmatch(end) else self.name
    return f'{name}:{os.path.basename(self.directory.rstrip("/"))}'


def open_source(name: str, *, data_dir: str | None = None,
                wanted: Collection[str] = (), access: str | None = None,
                labels: str | None = None) -> Source:
  """Opens the data set `name`.

  Args:
    name: 'digits', 'arrays:PATH.npz', 'folder:PATH', 'manifest:PATH' (or, of
      a CSV file, 'manifest:PATH?path=images/{id}.jpg,label=breed'),
      'vtab:TASK' (see `vtab.TASKS`), or the name of a TFDS set, with its
      config and version if it has several: 'imagenet_v2/topimages:3.0.0'.
    data_dir: directory of prepared TFDS sets; by default TFDS's own
      (~/tensorflow_datasets or $TFDS_DATA_DIR).
    wanted: all splits that will be asked of it. If only one split is stored
      and one more is wanted, the latter is held out from the former.
    access: 'random', or 'sequential' for TFRecord only; by default sequential
      for TFRecord in a bucket and random for everything else.
    labels: a JSON file of labels that replace the source's own by file name,
      see `real_labels`; an image may then have no label.

  Raises:
    UserError: if the name is unknown or the set is missing; the message says
      how to get it.
  """
  if access is not None and access not in _ACCESS:
    raise errors.unknown('data.access', access, _ACCESS)
  kind, _, path = name.partition(':')
  if kind != name and not path:
    raise errors.UserError(f'data.name: {name!r} has no path after the colon; '
                           'is an environment variable unset?')
  if kind == 'vtab':
    from mixer.data import vtab
    opened = vtab.open_task(path, data_dir=data_dir, access=access,
                            labels=labels)
  elif is_tfds_name(name):
    from mixer.data import tfds_sets
    opened = tfds_sets.open_set(name, data_dir=data_dir, access=access,
                                labels=labels)
  elif access == 'sequential':
    raise errors.UserError(
        f"data.access: {name} cannot be read in sequence; 'sequential' is for "
        'TFDS sets in TFRecord format')
  elif kind in ('folder', 'manifest'):
    opened = _open_files(name, kind, path, labels)
  elif kind not in ('digits', 'arrays'):
    raise errors.unknown('data.name', name, _KINDS)
  elif labels:
    raise errors.UserError(
        f'labels: {labels!r} gives labels by file name, and {name} has no file '
        'names; expected folder:PATH, manifest:PATH or a TFDS set')
  elif kind == 'arrays':
    from mixer.data import npz_files
    opened = npz_files.load(path)
  else:
    from mixer.data import in_memory
    opened = in_memory.digits()
  if labels:
    from mixer.data import real_labels
    real_labels.check(opened)
  return dataclasses.replace(
      opened, stored=splits.carve(opened.stored, wanted, name),
      relabelled=bool(labels))


def is_tfds_name(name: str) -> bool:
  """Returns whether a name is a TFDS set's: 'set', 'set/config', 'set:1.0.0'.
  """
  start, colon, version = name.partition(':')
  return start != 'digits' and (not colon or bool(_VERSION.fullmatch(version)))


def _open_files(name, kind, path, labels):
  from mixer.data import listing
  if kind == 'folder':
    from mixer.data import csv_tables
    from mixer.data import folder
    return listing.open_files(
        name, csv_tables.beside(path, folder.load), labels)
  from mixer.data import manifest
  return listing.open_files(name, manifest.load(path), labels)
