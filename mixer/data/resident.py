"""Data that lives on the device: loaded whole, and indexed by the step.

Images are decoded with Pillow, so this needs no TensorFlow. A batch then holds
only the positions of its examples.
"""
from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import typing
from typing import Any

import jax
import jax.numpy as jnp
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


def fetch(batch: Mapping[str, jax.Array],
          resident: Mapping[str, jax.Array] | None
          ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """Returns the images, labels and weights of a batch, inside of the step.

  Args:
    batch: as `pipeline.Data` yields it.
    resident: the whole split on the device, or None if the batch has the
      images itself.

  Returns:
    (uint8 [B, H, W, C], int32 [B, L], float32 [B, L] or None).
  """
  if resident is not None:
    batch = {k: jnp.take(x, batch['position'], axis=0)
             for k, x in resident.items()}
  return batch['image'], batch['labels'], batch.get('weights')


def load_arrays(source: Source, split: splits.Split, *, key: str,
                image_size: tuple[int, int], cut: dict[str, Any]
                ) -> tuple[Resident, dict[str, Any]]:
  """Loads a split of a source whose images are arrays.

  Args:
    source: the data set.
    split: a split of it.
    key: config section of the split, for the log.
    image_size: (height, width) of the result.
    cut: 'crop', 'min_area' and 'interpolation', as for `decode_tf.batches`.

  Returns:
    (the whole split, how its images were cut).
  """
  found, targets = source.read(split.records(np.arange(len(split))))
  images = np.asarray(found)
  ready = images.shape[1:3] == image_size
  cut = _resident_cut(cut, key, whole=ready)
  if not ready:
    out = np.empty((len(images), *image_size, source.channels), np.uint8)
    for i, image in enumerate(images):
      out[i] = _view(image, image_size, cut)
    images = out
    _log_size(source, split, images)
  return dict(image=images, **targets), cut


def load_files(reader: bad_images.CheckedReader, *,
               image_size: tuple[int, int], cut: dict[str, Any]
               ) -> tuple[Resident, dict[str, Any], np.ndarray]:
  """Loads and decodes a split whose images are encoded files.

  Args:
    reader: of the split.
    image_size: (height, width) of the result.
    cut: 'crop', 'min_area' and 'interpolation', as for `decode_tf.batches`.

  Returns:
    (the whole split, how its images were cut, bool [N]: which positions are
    bad and hold black images).

  Raises:
    RunError: if more images are bad than may be.
  """
  source, split = reader.source, reader.split
  records = split.records(np.arange(len(split)))
  files, targets = _read_all(source, split, records)
  cut = _resident_cut(cut, reader.key, whole=False)
  images = np.zeros((len(records), *image_size, source.channels), np.uint8)
  bad = np.zeros(len(records), bool)
  for i, file in enumerate(files):
    image = reader.pixels(int(records[i]), file)
    if image is None:
      bad[i] = True
    else:
      images[i] = _view(image, image_size, cut)
  _log_size(source, split, images)
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


def _view(image, size, cut):
  from mixer.images import eval_crops
  return eval_crops.view(image, size=size, crop=cut['crop'],
                         interpolation=cut['interpolation'])


def _log_size(source, split, images):
  log.info('%s %s: %d images in memory, %.0f MB', source.name, split.spec,
           len(images), images.nbytes / 1e6)


def _read_all(source: Source, split: splits.Split,
              records: np.ndarray) -> tuple[Sequence, dict[str, np.ndarray]]:
  """The encoded images and targets of a whole split."""
  if not source.shards:
    files, targets = source.read(records)
    return list(files), targets
  from mixer.data import sequential_order
  found = [source.read(records[first:last])   # of one shard
           for first, last in sequential_order.runs_of(
               split, source.shards.ends)]
  return (list(itertools.chain.from_iterable(files for files, _ in found)),
          {name: np.concatenate([targets[name] for _, targets in found])
           for name in found[0][1]})
