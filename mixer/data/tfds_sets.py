"""Finds, opens and parses data sets that TFDS prepared."""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import typing
from typing import Any

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.data import set_features
from mixer.data import shards
from mixer.data import sources
from mixer.data import splits
from mixer.images import decode_pillow

if typing.TYPE_CHECKING:
  import tensorflow_datasets as tfds

Features = Mapping[str, Any]   # {name: tf.train.Feature} of an example


def integers(key: str) -> Callable[[Features], Sequence[int]]:
  """Returns a function that gives the integers of one feature."""
  return lambda features: features[key].int64_list.value


def stored_image(features: Features) -> bytes:
  """Returns the encoded image as it is stored."""
  return features['image'].bytes_list.value[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parsing:
  """How the records of a set become images and targets.

  `labels_of` and `image_of` take the features of a record: the map from name
  to tf.train.Feature of a tf.train.Example. Nested features of TFDS have names
  joined by '/', and hold the values of all their entries one after the other.

  Attributes:
    num_classes: number of classes.
    class_names: one for each class, or None.
    channels: of the images.
    labels_of: features -> the labels.
    image_of: features -> the encoded image; may raise `BadImage`.
    width: L, the most labels of an example.
    fewest: the fewest labels of an example.
    weighted: whether every label has a weight.
  """
  num_classes: int
  class_names: tuple[str, ...] | None
  channels: int
  labels_of: Callable[[Features], Sequence[int]]
  image_of: Callable[[Features], bytes] = stored_image
  width: int = 1
  fewest: int = 1
  weighted: bool = False

  def parse(self, records: np.ndarray,
            serialised: Sequence[bytes | decode_pillow.BadImage],
            name_of: Callable[[int], str]
            ) -> tuple[list[bytes | decode_pillow.BadImage],
                       dict[str, np.ndarray]]:
    """Returns (images, targets) as `Source.read` does.

    Args:
      records: record numbers.
      serialised: the records, or a `BadImage` for a damaged one.
      name_of: record number -> its name in messages.

    Raises:
      RunError: if a label is outside the classes, or an example has too few
        or too many labels.
    """
    from tensorflow_datasets.proto import tf_example_pb2
    images: list[bytes | decode_pillow.BadImage] = []
    labels = np.full((len(records), self.width), -1, np.int32)
    weights = np.zeros(labels.shape, np.float32)
    for row, (record, raw) in enumerate(zip(records, serialised)):
      if isinstance(raw, decode_pillow.BadImage):
        images.append(raw)
        continue
      feature = tf_example_pb2.Example.FromString(raw).features.feature
      try:
        images.append(self.image_of(feature))
      except decode_pillow.BadImage as e:
        images.append(e)
      values = self.labels_of(feature)
      if not self.fewest <= len(values) <= self.width or not all(
          0 <= v < self.num_classes for v in values):
        raise errors.RunError(
            f'{name_of(record)} has the labels {list(values)}; expected '
            f'{self.fewest} to {self.width} labels from 0 to '
            f'{self.num_classes - 1}')
      labels[row, :len(values)] = values
      if self.weighted:
        weights[row, :len(values)] = feature['weights'].float_list.value
    if not self.weighted:
      return images, dict(labels=labels)
    from mixer.data import label_weights
    return images, label_weights.counted(labels, weights)


def open_set(name: str, *, data_dir: str | None, access: str | None,
             labels: str | None, dataset: str | None = None,
             describe: Callable[[tfds.core.DatasetInfo], Parsing] | None = None,
             stored: Callable[[Mapping[str, int]], splits.Stored] = splits.whole
             ) -> sources.Source:
  """Opens a prepared set.

  Args:
    name: of the source; of the set as well, unless `dataset` is given.
    data_dir, access, labels: as for `sources.open_source`.
    dataset: the name of the set.
    describe: DatasetInfo -> how its records are parsed; by default `parsing`.
    stored: {split: examples} of the set -> the splits of the source.

  Raises:
    UserError: if TFDS is not installed, or the set is missing or unsuitable.
  """
  where = os.path.expanduser(
      data_dir or os.environ.get('TFDS_DATA_DIR') or os.path.join(
          '~', 'tensorflow_datasets'))
  try:
    info = info_of(dataset or name, where)
    parse = describe(info) if describe else parsing(name, info)
    other = None
    if labels:
      from mixer.data import real_labels
      other = real_labels.load(labels, parse.num_classes)
      parse = real_labels.relabelled(parse, name, info, other)
    stored_files = shards.shards_of(info)
    fingerprint = shards.fingerprint(info, stored_files)
    reader, sequential = _open_reader(
        name, info.file_format.value, where, access, stored_files)
  except ImportError as e:
    raise errors.UserError(
        f'data.name: {name!r} is read with TFDS, and {e.name} is not '
        "installed; run pip install '.[data]' in this project's folder, or "
        'install the pinned requirements.txt') from e
  return sources.Source(
      name=name, num_classes=parse.num_classes, class_names=parse.class_names,
      stored=stored({k: s.num_examples for k, s in info.splits.items()}),
      read=lambda records: parse.parse(
          records, reader(records), stored_files.name_of),
      name_of=stored_files.name_of, decoded=False, channels=parse.channels,
      fingerprint=(real_labels.fingerprint(fingerprint, other) if labels
                   else fingerprint),
      directory=str(info.data_dir), shards=stored_files if sequential else None)


def info_of(name: str, where: str) -> tfds.core.DatasetInfo:
  """Returns the DatasetInfo of a set.

  Args:
    name: 'set' or 'set/config', perhaps with a version, ':1.0.0' or ':1.*.*';
      by default the newest.
    where: the data_dir.

  Raises:
    UserError: if it is not there, or TFDS is not; the message says how to get
      it.
  """
  try:
    import tensorflow_datasets as tfds
  except Exception as e:   # also whatever a broken TensorFlow raises
    raise errors.UserError(
        f'data.name: {name!r} is read with tensorflow_datasets, and importing '
        f'it fails ({type(e).__name__}: {str(e)[:200]}); run pip install '
        "'.[data]' in this project's folder") from e
  try:
    set_features.check(name, where)
    builder = tfds.core.read_only_builder.builder_from_files(
        name, data_dir=where)
  except errors.UserError:
    raise
  except Exception as e:
    from mixer.data import missing_sets
    raise errors.UserError(
        f'data.name: no prepared TFDS set {name!r} in {where!r}; '
        f'{missing_sets.remedy(name, where)}') from e
  return builder.info


def parsing(name: str, info: tfds.core.DatasetInfo) -> Parsing:
  """Returns how a set with the features 'image' and 'label' or 'labels' is
  parsed.

  Args:
    name: of the set.
    info: of the set.

  Raises:
    UserError: if its features are others.
  """
  key = next((k for k in ('label', 'labels') if k in info.features), None)
  if 'image' not in info.features or key is None:
    raise errors.UserError(
        f"data.name: {name} has the features {sorted(info.features)}; expected "
        "'image' and 'label' or 'labels'")
  feature = info.features[key]
  width = sources.MAX_LABELS if hasattr(feature, 'feature') else 1
  feature = getattr(feature, 'feature', feature)
  channels = info.features['image'].shape[-1] or 3
  if not getattr(feature, 'num_classes', None) or channels not in (1, 3):
    raise errors.UserError(
        f'data.name: {name} has images of {channels} channels and {key} '
        f'of {type(feature).__name__}; expected 1 or 3 channels and ClassLabel')
  return Parsing(
      labels_of=integers(key), width=width, num_classes=feature.num_classes,
      class_names=tuple(feature.names) if feature.names else None,
      channels=channels, weighted='weights' in info.features)


def _open_reader(name, form, where, access, stored_files):
  """(the reader of a set's shards, whether it reads in sequence)."""
  remote = files.is_remote(where)
  if form == 'tfrecord' and (not remote or access != 'random'):
    if access == 'sequential' or remote:
      from mixer.data import tfrecord_sequence
      return tfrecord_sequence.SequentialReader(stored_files, name), True
    from mixer.data import tfrecord
    return tfrecord.RandomReader(stored_files, name), False
  if form == 'array_record' and access != 'sequential' and not remote:
    from mixer.data import array_records
    return array_records.Reader(stored_files), False
  raise errors.UserError(
      f'data.access: {access!r} cannot read {name} in {where!r}, which is '
      f'stored as {form}; local files can be read at random as tfrecord or '
      'array_record and in sequence as tfrecord, files in a bucket only in '
      'sequence as tfrecord. Mount a bucket (gcsfuse) to read it at random')
