"""Photos for the tests of data preparation: crops of scikit-learn's samples."""
from collections.abc import Mapping
import io
import os
import pathlib
import tarfile
from typing import Any

import numpy as np
from PIL import Image
from sklearn import datasets

TEMPLE, FLOWER = 0, 1
SAMPLES = datasets.load_sample_images().images   # uint8 [427, 640, 3] each
# What `write_tfds_set` writes: numbers of records, and files of 'train'.
NUM_TRAIN, NUM_TEST, NUM_SHARDS = 40, 7, 3


def crop(seed: int, height: int = 48, width: int = 64,
         sample: int | None = None) -> np.ndarray:
  """Returns a random crop, of alternating samples unless one is given."""
  rng = np.random.default_rng(seed)
  y, x = rng.integers(0, 427 - height), rng.integers(0, 640 - width)
  photo = SAMPLES[seed % 2 if sample is None else sample]
  return photo[y:y + height, x:x + width]


def encode(image: np.ndarray | Image.Image, image_format: str = 'JPEG',
           **options: Any) -> bytes:
  """Returns an image file."""
  file = io.BytesIO()
  image = image if isinstance(image, Image.Image) else Image.fromarray(image)
  image.save(file, image_format, **options)
  return file.getvalue()


def turned_exif() -> Image.Exif:
  """Returns EXIF data that say that the image lies on its side."""
  exif = Image.Exif()
  exif[0x0112] = 6
  return exif


def write_files(folder: pathlib.Path, files: Mapping[str, bytes]) -> None:
  """Writes {path relative to the folder: content}."""
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


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
  import tensorflow_datasets as tfds
  os.environ['NO_GCE_CHECK'] = 'true'
  tfds.display_progress_bar(enable=False)
  tfds.core.utils.gcs_utils._is_gcs_disabled = True
  _pictures()(data_dir=str(data_dir)).download_and_prepare(
      download_config=tfds.download.DownloadConfig(
          num_shards=NUM_SHARDS, try_download_gcs=False))


def train_shard(data_dir: pathlib.Path | str, number: int = 0) -> pathlib.Path:
  """Returns the file of a shard that `write_tfds_set` wrote."""
  return sorted(pathlib.Path(data_dir).rglob('*-train.tfrecord-*'))[number]


def _pictures():
  import tensorflow_datasets as tfds

  class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Crops of photos."""
    VERSION = tfds.core.Version('2.3.4')

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(dict(
              image=tfds.features.Image(shape=(None, None, 3)),
              label=tfds.features.ClassLabel(
                  names=[f'c {i}' for i in range(100)]),
              note=tfds.features.Text())))

    def _split_generators(self, dl_manager):
      del dl_manager
      return {'train': self._generate_examples(range(NUM_TRAIN)),
              'test': self._generate_examples(range(50, 50 + NUM_TEST))}

    def _generate_examples(self, numbers):
      for i in numbers:
        yield i, dict(image=encode(crop(i)), label=i, note=f'#{i}')

  return Pictures
