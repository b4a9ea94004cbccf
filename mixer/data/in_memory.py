"""Data in memory: sets of arrays, and splits that live on the device.

A split that lives on the device is loaded whole and indexed by the step, so a
batch holds only the positions of its examples. Images are decoded with Pillow;
this needs no TensorFlow.
"""
from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import hashlib
import importlib.util
import itertools
import os
import typing
from typing import Any

import numpy as np

from mixer.core.log import log
from mixer.data import order
from mixer.data import splits
from mixer.data.sources import Source

if typing.TYPE_CHECKING:
  from mixer.data import bad_images

# {'image': uint8 [N, H, W, C], 'labels': int32 [N, L]} of a whole split, and
# perhaps 'weights', float32 [N, L].
Resident = dict[str, np.ndarray]


def digits() -> Source:
  """Opens the 1,797 handwritten digits of scikit-learn, 8x8, 16 grey levels.

  Split 'test' is every fifth image, 'train' is all others; slices of both
  follow a fixed permutation. 'all' is all images in the order of the file,
  whose two halves were written by different people.
  """
  # Importing scikit-learn, for its load_digits, would take seconds.
  library = importlib.util.find_spec('sklearn')
  if not (library and library.origin):
    raise ModuleNotFoundError('the digits come with scikit-learn, which is not '
                              'installed: pip install scikit-learn')
  table = np.loadtxt(os.path.join(os.path.dirname(
      library.origin), 'datasets', 'data', 'digits.csv.gz'), delimiter=',')
  images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8)
  images = images.reshape(-1, 8, 8, 1)
  everything = splits.Piece(0, 0, len(images))
  train, test = splits.hold_out(
      dataclasses.replace(everything, mix=True), 5)
  return make('digits', images, table[:, -1:].astype(int), num_classes=10,
              class_names=list(map(str, range(10))),
              stored={'train': train, 'test': test, 'all': everything})


def make(name: str, images: np.ndarray, labels: np.ndarray, *,
         num_classes: int, class_names: Sequence[str] | None,
         stored: splits.Stored) -> Source:
  """Returns a source of arrays.

  Args:
    name: of the source.
    images: uint8 [N, H, W, C].
    labels: int [N, L], padded by -1.
    num_classes: number of classes that labels are of.
    class_names: one for each class, or None.
    stored: its splits, by name.
  """
  labels = labels.astype(np.int32)
  digest = hashlib.sha256(np.ascontiguousarray(images).data)
  digest.update(np.ascontiguousarray(labels).data)
  return Source(
      name=name, stored=stored, num_classes=num_classes,
      class_names=None if class_names is None else tuple(class_names),
      read=lambda records: (images[records], {'labels': labels[records]}),
      targets=lambda records: {'labels': labels[records]},
      name_of=lambda record: f'{name} {record}', decoded=True,
      channels=images.shape[-1], fingerprint=digest.hexdigest()[:16])


def load(source: Source, split: splits.Split,
         reader: bad_images.CheckedReader | None, *, key: str,
         image_size: tuple[int, int], cut: dict[str, Any]
         ) -> tuple[Resident, dict[str, Any], np.ndarray]:
  """Loads a split, and decodes its images if they are encoded files.

  Args:
    source: the data set.
    split: a split of it.
    reader: of the split; None if the images of the source are arrays.
    key: config section of the split, for the log.
    image_size: (height, width) of the result.
    cut: 'crop', 'min_area' and 'interpolation', as for `decode_tf.batches`.

  Returns:
    (the whole split, how its images were cut, bool [N]: which positions are
    bad and hold black images).

  Raises:
    RunError: if more images are bad than may be.
  """
  records = split.records(np.arange(len(split)))
  found, targets = _read_all(source, split, records)
  bad = np.zeros(len(records), bool)
  ready = source.decoded and found.shape[1:3] == image_size
  cut = _resident_cut(cut, key, whole=ready)
  if ready:
    return dict(image=found, **targets), cut, bad
  from mixer.images import eval_crops
  images = np.zeros((len(records), *image_size, source.channels), np.uint8)
  for i, image in enumerate(found):
    if reader is not None:
      image = reader.pixels(int(records[i]), image)
    if image is None:
      bad[i] = True
    else:
      images[i] = eval_crops.view(image, size=image_size, crop=cut['crop'],
                                  interpolation=cut['interpolation'])
  log.info('%s %s: %d images in memory, %.0f MB', source.name, split.spec,
           len(images), images.nbytes / 1e6)
  if reader is not None:
    reader.check()
  return dict(image=images, **targets), cut, bad


def training_batches(
    split: splits.Split, bad: np.ndarray,
    reader: bad_images.CheckedReader | None, *, seed: int, batch_size: int,
    first: int, last: int, slots: tuple[int, int],
    draw: order.Draw = order.batch
) -> Iterator[dict[str, np.ndarray]]:
  """Yields training batches of positions, [first, last) in order.

  Args:
    split: the split.
    bad: bool [N], the positions of images that are bad.
    reader: of the split; needed only if an image is bad.
    seed: of the run.
    batch_size: of the global batch.
    first: number of the first batch.
    last: number of the last batch + 1.
    slots: (first, last + 1) row of the global batch for this process.
    draw: gives the examples of a batch.
  """
  for step in range(first, last):
    epoch, position = draw(seed, step, batch_size, len(split), slots)
    replaced = bad[position]
    for row in np.flatnonzero(replaced):
      assert reader is not None
      position[row] = reader.substitute(
          seed, epoch[row], position[row], lambda other: not bad[other])
    yield dict(epoch=epoch.astype(np.int32),
               record=split.records(position).astype(np.int32),
               bad=replaced, position=position.astype(np.int32))


def evaluation_batches(bad: np.ndarray, *, batch_size: int,
                       slots: tuple[int, int]
                       ) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches that have each position once.

  Args:
    bad: bool [N], the positions of images that are bad.
    batch_size: of the global batch.
    slots: (first, last + 1) row of the global batch for this process.
  """
  for begin in range(0, len(bad), batch_size):
    place = np.arange(*slots) + begin
    inside, place = place < len(bad), np.minimum(place, len(bad) - 1)
    yield dict(position=place.astype(np.int32), mask=inside & ~bad[place],
               bad=inside & bad[place])


def _resident_cut(cut, key, *, whole):
  """How images in memory are cut: not at random, and not at all if `whole`."""
  from mixer.images import options
  if not whole and cut['crop'] in options.EVALUATION_CROPS:
    return cut
  if cut['crop'] != 'resize':
    log.info('%s: images in memory are not cropped, only resized if their size '
             'differs; %s.crop=%r applies to images that are decoded on the '
             'host', key, key, cut['crop'])
  return dict(cut, crop='resize')


def _read_all(source: Source, split: splits.Split, records: np.ndarray
              ) -> tuple[Any, dict[str, np.ndarray]]:
  """The images and targets of a whole split, as `Source.read` gives them."""
  if not source.shards:
    return source.read(records)
  from mixer.data import sequential_order
  found = [source.read(records[first:last])   # of one shard
           for first, last in sequential_order.runs_of(
               split, source.shards.ends)]
  return (list(itertools.chain.from_iterable(files for files, _ in found)),
          {name: np.concatenate([targets[name] for _, targets in found])
           for name in found[0][1]})
