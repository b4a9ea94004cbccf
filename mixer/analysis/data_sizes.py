"""The sizes of data sets, also of those that are not on this machine.

The known sizes are from the TFDS catalogue. ImageNet-21k is the fall 2011
release; JFT-300M is counted as in the paper and in BiT
(https://arxiv.org/abs/1912.11370).
"""
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
from typing import Any

from mixer.core import errors
from mixer.data import pipeline
from mixer.data import sources
from mixer.data import splits
from mixer.data import vtab

_ENOUGH = 10**5   # examples, from which a VTAB task can draw its 1,000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """The size of one split.

  Attributes:
    examples: how many there are, or None if that is not known.
    num_classes: how many classes the labels have.
    channels: of an image.
    decoded: whether the examples are arrays, which live on the device.
    missing: why the split cannot be read, or None if it can.
  """
  examples: int | None
  num_classes: int
  channels: int
  decoded: bool = False
  missing: str | None


# {name: ({split: examples}, classes)}
KNOWN = {
    'imagenet2012': ({'train': 1_281_167, 'validation': 50_000}, 1000),
    'imagenet21k': ({'train': 14_197_122}, 21_841),
    'jft': ({'train': 300_000_000}, 18_291),
    'cifar10': ({'train': 50_000, 'test': 10_000}, 10),
    'cifar100': ({'train': 50_000, 'test': 10_000}, 100),
    'oxford_iiit_pet': ({'train': 3680, 'test': 3669}, 37),
    'oxford_flowers102': (
        {'train': 1020, 'validation': 1020, 'test': 6149}, 102),
}


def size(name: str, split: str, *, data_dir: str | None = None,
         access: str | None = None, key: str = 'data',
         wanted: Iterable[str] = ()) -> Size:
  """Returns the size of a split: counted if it is here, else the known one.

  Args:
    name: a data set, as `data.name` in a config.
    split: a split of it, such as 'train[:99%]'.
    data_dir, access: as `data.dir` and `data.access` in a config.
    key: section of the config that names the split, for errors.
    wanted: all splits of this data set that the config names.

  Raises:
    UserError: if the split is misspelt or the data set does not have it.
  """
  try:
    source = sources.open_source(
        name, data_dir=data_dir, access=access,
        wanted=tuple(sorted({*wanted, split})))
  except errors.UserError as e:
    return _known(name, split, key, str(e))
  return Size(examples=len(splits.select(source.stored, split, f'{key}.split')),
              num_classes=source.num_classes, channels=source.channels,
              decoded=source.decoded, missing=None)


def check_values(key: str, section: Mapping[str, Any]) -> None:
  """Raises a UserError if a run would refuse a value of a section.

  The set may not be here, so the digits take its place. They lack the split,
  which ends the check before they are read.

  Args:
    key: the name of the section, such as 'evals.test'.
    section: its keys and values.
  """
  access = section.get('access')
  try:
    pipeline.open_data(**dict(
        section, name='digits', split='none', dir=None, labels=None, key=key,
        access=None if access == 'sequential' else access))
  except errors.UserError as e:
    if not str(e).startswith(f'{key}.split'):
      raise


def _known(name: str, split: str, key: str, why: str) -> Size:
  """Returns the size of a split that cannot be read."""
  if name.startswith('vtab:'):
    task = vtab.find(name.removeprefix('vtab:'))
    # Of the splits that are stored, only the test split's size differs.
    stored = task.stored(dict.fromkeys(
        ('train', task.held_out[0], task.test[0]), _ENOUGH))
    count = len(splits.select(stored, split, f'{key}.split'))
    return Size(examples=None if 'test' in splits.names(split) else count,
                channels=3, num_classes=task.num_classes, missing=why)
  if not sources.is_tfds_name(name) and name.partition(':')[0] not in (
      'digits', 'arrays', 'folder', 'manifest'):
    raise errors.UserError(why)
  if name not in KNOWN:
    # 1,000 classes and 3 channels are a guess, so that the rest can be planned.
    return Size(examples=None, num_classes=1000, channels=3,
                decoded=name.startswith('arrays:'), missing=why)
  sizes, classes = KNOWN[name]
  chosen = splits.select(splits.whole(sizes), split, f'{key}.split')
  return Size(examples=len(chosen), num_classes=classes, channels=3,
              missing=why)
