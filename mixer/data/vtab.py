"""VTAB-1k: 19 tasks of 1,000 training examples each, data.name='vtab:TASK'.

Sources: the data sets, labels and splits are those of
github.com/google-research/task_adaptation at d7630d3 (task_adaptation/data/
and scripts/run_all_tasks.sh), the features those of TFDS 4.9.10. Section 3 of
the paper transfers to these tasks. Appendix F of Big Transfer (arXiv
1912.11370) says which of them are trained without flips or crops.

Not verified: task_adaptation asked for oxford_iiit_pet 3.*.* and kitti 3.1.0,
but TFDS now prepares 4.0.0 (corrupt images fixed) and 3.3.0 (3.2.0 has another
devkit, from which the splits are drawn). Their examples may therefore differ
from those of published figures. Any version that is prepared is read.
"""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import functools
import re
import typing

import numpy as np

from mixer.core import errors
from mixer.data import sources
from mixer.data import splits
from mixer.data import tfds_sets
from mixer.images import decode_pillow

if typing.TYPE_CHECKING:
  import tensorflow_datasets as tfds

TRAIN, HELD_OUT = 800, 200


def _bin(key, given, bins=16):
  """Joins neighbouring classes, of `given` ones, into `bins` classes."""
  return lambda features: [
      v * bins // given for v in features[key].int64_list.value]


def _interval(value, bounds):
  """[the number of the interval (bounds[i], bounds[i + 1]] of a value]."""
  return [int(np.searchsorted(np.float32(bounds), np.float32(value))) - 1]


def _clevr_count(features):
  """The number of objects, 3 to 10."""
  return [len(features['objects/size'].int64_list.value) - 3]


def _clevr_distance(features):
  """How far the closest object is: the third value of its pixel_coords."""
  depths = features['objects/pixel_coords'].float_list.value[2::3]
  return _interval(min(depths), (0, 8, 8.5, 9, 9.5, 10, 100)) if depths else []


def _kitti(features):
  """How far the closest car, van or truck is, in metres; 3 if there is none."""
  kinds = features['objects/type'].int64_list.value
  depths = features['objects/location'].float_list.value[2::3]
  closest = min((z for z, kind in zip(depths, kinds) if kind < 3), default=1000)
  return _interval(closest, (-100, 8, 20, 999))


def _dsprites_image(features):
  """The image with its stored pixel values, 0 and 1, as 0 and 255."""
  pixels = decode_pillow.pixels(tfds_sets.stored_image(features), channels=1)
  return decode_pillow.encode_png(pixels * np.uint8(255), compress_level=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """One of the tasks.

  Attributes:
    dataset: TFDS's name of the set, with its config.
    num_classes: number of classes.
    held_out: (stored split, percentage of it at which the validation examples
      begin).
    test: (stored split, percentage of it at which the test examples begin);
      they go on to its end.
    key: the feature that holds the labels, or that they are derived from.
    labels_of: features -> [label]; by default the value of `key`.
    image_of: features -> the encoded image.
    flip: whether training flips images at random.
    crop: whether training crops images at random.
  """
  dataset: str
  num_classes: int
  held_out: tuple[str, int] = ('validation', 0)
  test: tuple[str, int] = ('test', 0)
  key: str = 'label'
  labels_of: Callable[[tfds_sets.Features], Sequence[int]] | None = None
  image_of: Callable[[tfds_sets.Features], bytes] = tfds_sets.stored_image
  flip: bool = True
  crop: bool = True

  def parsing(self, info: tfds.core.DatasetInfo) -> tfds_sets.Parsing:
    """Returns how the records of the set are parsed.

    Raises:
      UserError: if the set lacks the features.
    """
    missing = {'image', self.key} - set(info.features)
    if missing:
      raise errors.UserError(
          f'data.name: {self.dataset} has the features '
          f'{sorted(info.features)}, not {sorted(missing)}; prepare it with '
          'TFDS itself')
    names = None if self.labels_of else info.features[self.key].names
    return tfds_sets.Parsing(
        labels_of=self.labels_of or tfds_sets.integers(self.key),
        image_of=self.image_of, num_classes=self.num_classes, channels=3,
        class_names=tuple(names) if names else None)

  def stored(self, sizes: Mapping[str, int]) -> splits.Stored:
    """Returns the splits 'train800', 'val200', 'train800val200' and 'test'.

    Args:
      sizes: {split of the set: number of examples}.

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
          f'data.name: {self.dataset} is incomplete: its splits have '
          f'{dict(sizes)} examples, too few for {TRAIN} of training and '
          f'{HELD_OUT} of validation; prepare it again')
    cut = lambda name, start, stop: splits.Piece(
        pieces[name].first, start, stop)
    train, held = cut('train', 0, TRAIN), cut(name, begin, begin + HELD_OUT)
    name, percent = self.test
    return {'train800': train, 'val200': held,
            'train800val200': splits.Split('train800val200', (train, held)),
            'test': cut(name, percent * sizes[name] // 100, sizes[name])}


_DSPRITES = functools.partial(
    Task, dataset='dsprites', num_classes=16, held_out=('train', 80),
    test=('train', 90), image_of=_dsprites_image, flip=False)
# The test split of CLEVR has no labels.
_CLEVR = functools.partial(
    Task, dataset='clevr', key='objects', held_out=('train', 90),
    test=('validation', 0), crop=False)
_SMALLNORB = functools.partial(
    Task, dataset='smallnorb', held_out=('test', 0), test=('test', 50))

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
    'clevr_count': _CLEVR(num_classes=8, labels_of=_clevr_count),
    'clevr_distance': _CLEVR(num_classes=6, labels_of=_clevr_distance),
    'dmlab': Task(dataset='dmlab', num_classes=6, crop=False),
    'kitti': Task(dataset='kitti', num_classes=4, key='objects',
                  labels_of=_kitti, crop=False),
    'dsprites_location': _DSPRITES(
        key='label_x_position', labels_of=_bin('label_x_position', 32),
        crop=False),
    'dsprites_orientation': _DSPRITES(
        key='label_orientation', labels_of=_bin('label_orientation', 40)),
    'smallnorb_azimuth': _SMALLNORB(
        key='label_azimuth', num_classes=18, flip=False),
    'smallnorb_elevation': _SMALLNORB(key='label_elevation', num_classes=9),
}

# Names in papers and other code that differ by more than case and punctuation.
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


def find(name: str) -> Task:
  """Returns the task of a name.

  Raises:
    UserError: if there is none; the message suggests the nearest name.
  """
  if name in TASKS:
    return TASKS[name]
  plain = re.sub('[^a-z0-9]', '', name.lower())
  known = {re.sub('_', '', task): task for task in TASKS} | _SPELLINGS
  near = difflib.get_close_matches(plain, known, 1)
  hint = f'; did you mean vtab:{known[near[0]]}?' if near else ''
  raise errors.UserError(f'data.name: vtab has no task {name!r}{hint} (known: '
                         f'{", ".join(TASKS)})')


def open_task(name: str, *, data_dir: str | None, access: str | None,
              labels: str | None) -> sources.Source:
  """Opens the prepared TFDS set of a task.

  Args:
    name: of the task.
    data_dir, access, labels: as for `sources.open_source`.

  Raises:
    UserError: if there is no such task, or its set is missing or unsuitable.
  """
  task = find(name)
  return tfds_sets.open_set(
      f'vtab:{name}', data_dir=data_dir, access=access, labels=labels,
      dataset=task.dataset, describe=task.parsing, stored=task.stored)
