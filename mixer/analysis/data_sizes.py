"""The sizes of sets that a config may name while they are not at hand.

From TFDS's catalogue; ImageNet-21k as of fall 2011, JFT-300M as the paper and
BiT (https://arxiv.org/abs/1912.11370) count it.
"""
import dataclasses

from mixer.core import errors
from mixer.data import sources
from mixer.data import splits
from mixer.data import vtab


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
  """Of a split: `examples`, None if nobody knows; `num_classes`, `channels` of
  its images, whether they are `decoded` arrays, which live on the device, and
  why it cannot be read, None if it can."""
  examples: int | None
  num_classes: int
  channels: int
  decoded: bool = False
  missing: str | None


# {name: ({split: examples}, classes)}.
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


def size(name, split, *, data_dir=None, access=None, key='data', wanted=()):
  """The `Size` of a split: read off the set if it is there, else known.

  Raises:
    UserError: if the split is misspelt, or is none of the set's.
  """
  try:
    source = sources.open_source(
        name, data_dir=data_dir, access=access,
        wanted=tuple(sorted(set(wanted) | {split})))
  except errors.UserError as e:
    return _known(name, split, key, str(e))
  return Size(examples=len(splits.select(source.stored, split, f'{key}.split')),
              num_classes=source.num_classes, channels=source.channels,
              decoded=source.decoded, missing=None)


def _known(name, split, key, why):
  if name.startswith('vtab:'):
    task = vtab.find(name.removeprefix('vtab:'))
    return Size(examples=1000 if 'train' in split else None, channels=3,
                num_classes=task.num_classes, missing=why)
  if name not in KNOWN:
    return Size(examples=None, num_classes=1000, channels=3,
                decoded=name.startswith('arrays:'), missing=why)
  sizes, classes = KNOWN[name]
  chosen = splits.select(splits.whole(sizes), split, f'{key}.split')
  return Size(examples=len(chosen), num_classes=classes, channels=3,
              missing=why)
