"""VTAB-1k: 19 tasks of 1,000 training examples each, data.name='vtab:TASK'.

Sources: the sets, labels and splits are those of
github.com/google-research/task_adaptation at d7630d3 (task_adaptation/data/
and scripts/run_all_tasks.sh), the features those of TFDS 4.9.10. The paper's
section 3 transfers to these tasks; which are trained without flips or crops is
said in appendix F of Big Transfer (arXiv 1912.11370).

Not verified: task_adaptation asked for oxford_iiit_pet 3.*.* and kitti 3.1.0,
where TFDS now prepares 4.0.0 (corrupt images fixed) and 3.3.0 (3.2.0 has
another devkit, from which the splits are drawn), so that their examples may
differ from those of published figures; any version that is there is read.
"""
import dataclasses
import difflib
import io
import re
from typing import Any

import numpy as np
from PIL import Image

from mixer.core import errors
from mixer.data import shards
from mixer.data import splits
from mixer.images import decode_pillow

TRAIN, HELD_OUT = 800, 200


def _bin(key, given, bins=16):
  """Neighbouring ones of `given` classes as one of `bins`."""
  return lambda features: [
      v * bins // given for v in features[key].int64_list.value]


def _interval(value, bounds):
  """The number of the interval (bounds[i], bounds[i + 1]] of a value."""
  return [int(np.searchsorted(np.float32(bounds), np.float32(value))) - 1]


def _clevr_count(features):
  """3 to 10 objects."""
  return [len(features['objects/size'].int64_list.value) - 3]


def _clevr_distance(features):
  """How far the closest object is, the third of its pixel_coords."""
  depths = features['objects/pixel_coords'].float_list.value[2::3]
  return _interval(min(depths), (0, 8, 8.5, 9, 9.5, 10, 100)) if depths else []


def _kitti(features):
  """How far the closest car, van or truck is, in metres; 3 if none is."""
  kinds = features['objects/type'].int64_list.value
  depths = features['objects/location'].float_list.value[2::3]
  closest = min((z for z, kind in zip(depths, kinds) if kind < 3), default=1000)
  return _interval(closest, (-100, 8, 20, 999))


def _dsprites_image(features):
  """The stored pixels are 0 and 1."""
  pixels = decode_pillow.pixels(shards.stored_image(features), channels=1)
  out = io.BytesIO()
  Image.fromarray(pixels[..., 0] * np.uint8(255)).save(
      out, 'PNG', compress_level=1)
  return out.getvalue()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One of the tasks.

  Attributes:
    dataset: TFDS's name of the set, with its config.
    num_classes: of the labels.
    held_out: (stored split, percent of it): where the validation examples
      begin.
    test: (stored split, percent of it): where the test examples begin; they go
      on to its end.
    key: the feature that holds the labels, or what they are derived from.
    labels_of: features -> [label]; by default what `key` holds.
    image_of: features -> the encoded image.
    flip, crop: whether training flips at random, and crops at random.
  """
  dataset: str
  num_classes: int
  held_out: tuple = ('validation', 0)
  test: tuple = ('test', 0)
  key: str = 'label'
  labels_of: Any = None
  image_of: Any = shards.stored_image
  flip: bool = True
  crop: bool = True

  def parsing(self, info):
    """(keyword arguments of a `prepared.Parser`, class names or None).

    Raises:
      UserError: if a DatasetInfo lacks the features.
    """
    missing = {'image', self.key} - set(info.features)
    if missing:
      raise errors.UserError(
          f'data.name: {self.dataset} has the features '
          f'{sorted(info.features)}, not {sorted(missing)}; prepare it with '
          'TFDS itself')
    names = None if self.labels_of else info.features[self.key].names
    return dict(
        labels_of=self.labels_of or shards.integers(self.key),
        image_of=self.image_of, num_classes=self.num_classes,
        width=1), tuple(names) if names else None

  def stored(self, sizes):
    """{name: Piece or Split}, by the counts of the set's own splits.

    Splits: 'train800', 'val200', 'train800val200', and 'test'.

    Raises:
      UserError: if splits are missing or too small.
    """
    pieces = splits.whole(sizes)
    missing = {'train', self.held_out[0], self.test[0]} - set(sizes)
    if missing:
      raise errors.UserError(
          f'data.name: {self.dataset} has the splits {sorted(sizes)}, not '
          f'{sorted(missing)}; prepare it with TFDS itself')
    name, percent = self.held_out
    begin = percent * sizes[name] // 100
    last = begin if name == 'train' else sizes['train']
    if last < TRAIN or sizes[name] < begin + HELD_OUT:
      raise errors.UserError(
          f'data.name: {self.dataset} is not whole: {dict(sizes)} examples are '
          f'too few for {TRAIN} of training and {HELD_OUT} of validation; '
          'prepare it again')
    cut = lambda name, *bounds: dataclasses.replace(
        pieces[name], **dict(zip(('start', 'stop'), bounds)))
    train, held = cut('train', 0, TRAIN), cut(name, begin, begin + HELD_OUT)
    name, percent = self.test
    return {'train800': train, 'val200': held,
            'train800val200': splits.Split('train800val200', (train, held)),
            'test': cut(name, percent * sizes[name] // 100)}


_DSPRITES = dict(
    dataset='dsprites', num_classes=16, held_out=('train', 80),
    test=('train', 90), image_of=_dsprites_image, flip=False)
_CLEVR = dict(dataset='clevr', key='objects', held_out=('train', 90),
              test=('validation', 0), crop=False)   # its test has no labels
_SMALLNORB = dict(dataset='smallnorb', held_out=('test', 0), test=('test', 50))

TASKS = {
    # Natural.
    'caltech101': Task(
        dataset='caltech101', num_classes=102, held_out=('train', 90)),
    'cifar100': Task(
        dataset='cifar100', num_classes=100, held_out=('train', 90)),
    'dtd': Task(dataset='dtd', num_classes=47),
    'oxford_flowers102': Task(dataset='oxford_flowers102', num_classes=102),
    'oxford_iiit_pet': Task(
        dataset='oxford_iiit_pet', num_classes=37, held_out=('train', 80)),
    'sun397': Task(dataset='sun397/tfds', num_classes=397),
    'svhn': Task(
        dataset='svhn_cropped', num_classes=10, held_out=('train', 90)),
    # Specialized.
    'patch_camelyon': Task(dataset='patch_camelyon', num_classes=2),
    'eurosat': Task(dataset='eurosat/rgb', num_classes=10,
                    held_out=('train', 60), test=('train', 80)),
    'resisc45': Task(dataset='resisc45', num_classes=45,
                     held_out=('train', 60), test=('train', 80)),
    'diabetic_retinopathy': Task(
        dataset='diabetic_retinopathy_detection/btgraham-300', num_classes=5),
    # Structured.
    'clevr_count': Task(num_classes=8, labels_of=_clevr_count, **_CLEVR),
    'clevr_distance': Task(num_classes=6, labels_of=_clevr_distance, **_CLEVR),
    'dmlab': Task(dataset='dmlab', num_classes=6, crop=False),
    'kitti': Task(dataset='kitti', num_classes=4, key='objects',
                  labels_of=_kitti, crop=False),
    'dsprites_location': Task(
        key='label_x_position', labels_of=_bin('label_x_position', 32),
        crop=False, **_DSPRITES),
    'dsprites_orientation': Task(
        key='label_orientation', labels_of=_bin('label_orientation', 40),
        **_DSPRITES),
    'smallnorb_azimuth': Task(
        key='label_azimuth', num_classes=18, flip=False, **_SMALLNORB),
    'smallnorb_elevation': Task(
        key='label_elevation', num_classes=9, **_SMALLNORB),
}

# How papers and other code call them, where letters alone do not tell.
_SPELLINGS = {
    'cifar': 'cifar100', 'flowers': 'oxford_flowers102',
    'flowers102': 'oxford_flowers102', 'pets': 'oxford_iiit_pet',
    'pet': 'oxford_iiit_pet', 'camelyon': 'patch_camelyon',
    'pcam': 'patch_camelyon', 'retinopathy': 'diabetic_retinopathy',
    'clevrclosest': 'clevr_distance', 'kittidist': 'kitti',
    'closestvehicledistance': 'kitti', 'dsprloc': 'dsprites_location',
    'dspritesxpos': 'dsprites_location', 'dsprori': 'dsprites_orientation',
    'dsprorient': 'dsprites_orientation', 'snorbazim': 'smallnorb_azimuth',
    'snorbelev': 'smallnorb_elevation', 'svhncropped': 'svhn',
}


def find(name):
  """The `Task` of a name.

  Raises:
    UserError: if there is none, with the one that may be meant.
  """
  if name in TASKS:
    return TASKS[name]
  plain = re.sub('[^a-z0-9]', '', name.lower())
  known = {re.sub('_', '', task): task for task in TASKS} | _SPELLINGS
  near = difflib.get_close_matches(plain, known, 1)
  hint = f'; did you mean vtab:{known[near[0]]}?' if near else ''
  raise errors.UserError(f'data.name: vtab has no task {name!r}{hint} (known: '
                         f'{", ".join(TASKS)})')
