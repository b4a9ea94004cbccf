"""Real prepared TFDS sets that tests write; nothing uses the network."""
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import os
import pathlib
import types
from typing import Any

import numpy as np
import pictures

SMALL, SIDE = 40, 24   # of `prepare_photos`
COUNT, CLASSES = 61, 5   # of `draw_crops`
# {split: its (key, example) pairs}. TFDS orders examples by a hash of the key.
Splits = Mapping[str, Iterable[tuple[Any, Mapping[str, Any]]]]


def offline() -> types.ModuleType:
  """Returns the module tensorflow_datasets, quiet and without the network."""
  os.environ['NO_GCE_CHECK'] = 'true'
  import tensorflow_datasets as tfds
  tfds.display_progress_bar(enable=False)
  tfds.core.utils.gcs_utils._is_gcs_disabled = True
  return tfds


def prepare(data_dir: str, name: str, features: Mapping[str, Any],
            splits: Splits, *, form: str = 'tfrecord', shards: int = 3,
            version: str = '1.0.0') -> None:
  """Prepares a new set.

  Args:
    data_dir: directory of prepared sets.
    name: of the set.
    features: {name: feature connector of TFDS}.
    splits: the examples.
    form: 'tfrecord' or 'array_record'.
    shards: number of files of each split.
    version: of the set.
  """
  tfds = offline()
  set_name = name

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Examples made by a test."""
    name = set_name
    VERSION = tfds.core.Version(version)

    def _info(self):
      return tfds.core.DatasetInfo(
          builder=self, features=tfds.features.FeaturesDict(dict(features)))

    def _split_generators(self, dl_manager):
      del dl_manager
      return {split: self._generate_examples(examples)
              for split, examples in splits.items()}

    def _generate_examples(self, examples):
      yield from examples

  _write(tfds, Builder(data_dir=data_dir, file_format=form), shards)


def prepare_known(data_dir: str, name: str,
                  make_splits: Callable[[Any], Splits]) -> None:
  """Prepares a set that TFDS knows, with few examples made by a test.

  So its name, version, features and their serialisation are the real ones.

  Args:
    data_dir: directory of prepared sets.
    name: TFDS's name of the set, perhaps with a config.
    make_splits: features of the set -> the examples.
  """
  tfds = offline()
  builder = tfds.builder(name, data_dir=data_dir)
  made = make_splits(builder.info.features)
  builder._split_generators = lambda dl: {
      split: iter(examples) for split, examples in made.items()}
  _write(tfds, builder, 2)


def image_features(num_classes: int) -> dict[str, Any]:
  """Returns the features of RGB images of any size with one label."""
  tfds = offline()
  return dict(image=tfds.features.Image(shape=(None, None, 3)),
              label=tfds.features.ClassLabel(num_classes=num_classes))


def prepare_photos(data_dir: str) -> dict[str, dict[int, bytes]]:
  """Prepares the set 'photos', in which every image has a label of its own.

  Split 'train' holds SMALL photos of different sizes, one of them as PNG,
  'even' smaller ones that are SIDE pixels squared, and 'bad' three photos and a
  file that is no image.

  Args:
    data_dir: directory of prepared sets.

  Returns:
    {split: {label: encoded image}}.
  """
  rng = np.random.default_rng(0)
  crop = lambda i, *size: pictures.crop(i, *size, rng)
  files = dict(
      train={i: pictures.encode(crop(i, *rng.integers(40, 120, 2)),
                                'PNG' if i == 7 else 'JPEG')
             for i in range(SMALL)},
      even={i: pictures.encode(crop(i, SIDE, SIDE))
            for i in range(SMALL, SMALL + 13)},
      bad={i: pictures.encode(crop(i, 50, 50)) for i in range(3)})
  files['bad'][3] = b'\xff\xd8\xff\xe0' + bytes(range(200))
  prepare(data_dir, 'photos', image_features(SMALL + 20), {
      split: [(i, dict(image=file, label=i)) for i, file in of_split.items()]
      for split, of_split in files.items()})
  return files


def draw_crops() -> list[tuple[bytes, int]]:
  """Returns (encoded image, label) of COUNT photos of different sizes.

  They are sorted by label; one of them is a PNG.
  """
  rng = np.random.default_rng(0)
  return [(pictures.encode(
      pictures.crop(i, *rng.integers(16, 48, 2), rng),
      'PNG' if i == 7 else 'JPEG'), i * CLASSES // COUNT)
          for i in range(COUNT)]


def prepare_crops(data_dir: str, form: str, crops: Iterable[tuple],
                  weighted: bool = False) -> dict[str, str]:
  """Prepares the set 'crops', one split in three shards.

  Args:
    data_dir: directory of prepared sets.
    form: 'tfrecord' or 'array_record'.
    crops: (encoded image, label) or, if `weighted`, (encoded image, labels,
      weights).
    weighted: whether there are several labels with weights.

  Returns:
    What `pipeline.open_data` needs to open it.
  """
  tfds = offline()
  features = image_features(COUNT if weighted else CLASSES)
  if weighted:
    label = features.pop('label')
    features.update(labels=tfds.features.Sequence(label),
                    weights=tfds.features.Sequence(np.float32))
  prepare(data_dir, 'crops', features, dict(train=[
      (i, dict(zip(features, example))) for i, example in enumerate(crops)]),
          form=form)
  return dict(name='crops', dir=data_dir)


def shard_of(settings: Mapping[str, Any], number: int) -> pathlib.Path:
  """Returns the path of a shard of the set 'crops'."""
  path, = pathlib.Path(settings['dir']).glob(
      f'crops/*/crops-train.*-{number:05d}-of-00003')
  return path


def _write(tfds, builder, shards):
  builder.download_and_prepare(download_config=tfds.download.DownloadConfig(
      num_shards=shards, try_download_gcs=False))
