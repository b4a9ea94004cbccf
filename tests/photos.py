"""Photos for the tests of data preparation: crops of scikit-learn's samples."""
import io
import pathlib
import tarfile
from typing import Any

import numpy as np
import pictures
import tfds_sets

TEMPLE, FLOWER = 0, 1
# What `write_tfds_set` writes: numbers of records, and files of 'train'.
NUM_TRAIN, NUM_TEST, NUM_SHARDS = 40, 7, 3


def crop(seed: int, height: int = 48, width: int = 64,
         sample: int | None = None) -> np.ndarray:
  """Returns a random crop, of alternating photos unless one is given."""
  return pictures.crop(seed if sample is None else sample, height, width,
                       np.random.default_rng(seed))


def add_member(tar: tarfile.TarFile, name: str, data: bytes = b'',
               **attributes: Any) -> None:
  """Adds a file to a tar; attributes are those of its TarInfo."""
  member = tarfile.TarInfo(name)
  member.size = len(data)
  for key, value in attributes.items():
    setattr(member, key, value)
  tar.addfile(member, io.BytesIO(data))


def write_tfds_set(data_dir: pathlib.Path | str) -> None:
  """Writes the TFDS set `pictures`, version 2.3.4, in TFRecord format.

  Every image has a label of its own, the seed of its crop: 0 to 39 in 'train',
  50 to 56 in 'test'.
  """
  tfds = tfds_sets.offline()
  examples = lambda numbers: [
      (i, dict(image=pictures.encode(crop(i)), label=i, note=f'#{i}'))
      for i in numbers]
  tfds_sets.prepare(
      str(data_dir), 'pictures', dict(
          image=tfds.features.Image(shape=(None, None, 3)),
          label=tfds.features.ClassLabel(names=[f'c {i}' for i in range(100)]),
          note=tfds.features.Text()),
      dict(train=examples(range(NUM_TRAIN)),
           test=examples(range(50, 50 + NUM_TEST))),
      shards=NUM_SHARDS, version='2.3.4')


def train_shard(data_dir: pathlib.Path | str, number: int = 0) -> pathlib.Path:
  """Returns the file of a shard that `write_tfds_set` wrote."""
  return sorted(pathlib.Path(data_dir).rglob('*-train.tfrecord-*'))[number]
