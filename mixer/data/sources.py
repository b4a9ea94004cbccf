"""Where examples come from: the digits, array files, and TFDS sets by name.

A source is opened by name and read by record number, in any order. None of
this imports TensorFlow.
"""
import dataclasses
import hashlib
import os
import struct
import threading
import zipfile
from typing import Any

import numpy as np

from mixer.core import checks
from mixer.core import files
from mixer.data import splits

MAX_LABELS = 32  # of one example; more are an error, fewer are padded by -1

_HOW_TO_PREPARE = {
    'imagenet2012': (
        'put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into '
        'DIR/downloads/manual and run once: python -c "import '
        "tensorflow_datasets as t; t.builder('imagenet2012', data_dir='DIR')"
        '.download_and_prepare()"'),
    'imagenet21k': (
        'prepare the per-synset tars, which TFDS cannot download, as a TFDS '
        "set named imagenet21k with the features 'image' and 'label'"),
    'jft': (
        'make it: jft stands for your own large multi-label set; write it as a '
        "TFDS set with the features 'image' (Image) and 'labels' (Sequence of "
        'ClassLabel), then give --config.data.name=NAME and '
        '--config.data.dir=DIR'),
}


@dataclasses.dataclass(frozen=True)
class Source:
  """A data set that can be read by record number.

  Attributes:
    name: as in the config.
    stored: {split name: splits.Piece}.
    num_classes: of the labels.
    class_names: one a class, or None.
    read: record numbers [n] -> (images, labels int32 [n, L] padded by -1);
      images is a list of encoded files, or uint8 [n, H, W, C] if `decoded`.
    decoded: whether images are arrays already.
    channels: of the images.
    fingerprint: changes when the records or their order do.
  """
  name: str
  stored: dict
  num_classes: int
  class_names: tuple | None
  read: Any
  decoded: bool
  channels: int
  fingerprint: str


def open_source(name, *, data_dir=None, wanted=()):
  """The source `name`.

  Args:
    name: 'digits', 'arrays:PATH.npz', or the name of a TFDS set.
    data_dir: where TFDS sets lie; by default TFDS's own (~/tensorflow_datasets
      or $TFDS_DATA_DIR).
    wanted: all the splits that will be asked of it, so that a missing
      held-out one can be carved from the only one there is.

  Raises:
    UserError: if it is unknown or not there, with the way to get it.
  """
  if name == 'digits':
    source = _digits()
  elif name.startswith('arrays:'):
    source = _arrays(name)
  elif ':' in name:
    raise checks.unknown('data.name', name,
                         ['digits', 'arrays:PATH.npz', 'a TFDS name'])
  else:
    source = _tfds(name, data_dir)
  stored = splits.carve(source.stored, wanted, name)
  return dataclasses.replace(source, stored=stored)


def _digits():
  """The 1,797 handwritten digits of scikit-learn, 8x8, 16 grey levels.

  Splits: 'test' is every fifth image, 'train' the others, 'all' all of them in
  the order of the file, whose halves were written by different people.
  """
  from sklearn import datasets
  digits = datasets.load_digits()
  images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
  everything = splits.Piece(0, 0, len(images))
  train, test = splits.hold_out(everything, 5)
  stored = {'train': train, 'test': test, 'all': everything}
  names = tuple(str(i) for i in range(10))
  return _in_memory('digits', images, digits.target, names, stored)


def _arrays(name):
  """An npz of uint8 images [N, H, W, C] and int labels [N] or [N, L].

  Keys 'images' and 'labels' are one split, 'train'; '{split}_images' and
  '{split}_labels' name several. 'class_names' may be given.
  """
  path = os.path.expanduser(name.partition(':')[2])
  try:
    with np.load(path, allow_pickle=False) as f:
      arrays = {k: f[k] for k in f.files}
  except (OSError, ValueError, EOFError, TypeError, AttributeError,
          zipfile.BadZipFile) as e:
    raise checks.UserError(f'data.name: cannot read {path!r} as npz: {e}')
  names = arrays.pop('class_names', None)
  if 'images' in arrays:
    arrays = {f'train_{k}': v for k, v in arrays.items()}
  parts = sorted(k[:-len('_images')] for k in arrays if k.endswith('_images'))
  for part in parts:
    images, labels = arrays[f'{part}_images'], arrays.get(f'{part}_labels')
    if images.dtype != np.uint8 or images.ndim != 4:
      raise checks.UserError(
          f'{path}: {part} images must be uint8 [N, H, W, C], got '
          f'{images.dtype} {list(images.shape)}')
    if labels is None or len(labels) != len(images):
      raise checks.UserError(
          f'{path}: {part} has {len(images)} images and '
          f'{0 if labels is None else len(labels)} labels')
    if not len(images) or not np.issubdtype(labels.dtype, np.integer):
      raise checks.UserError(
          f'{path}: {part} has no images' if not len(images) else
          f'{path}: {part} labels must be integers, got {labels.dtype}')
  if not parts:
    raise checks.UserError(
        f"{path}: expected the arrays 'images' and 'labels', or "
        f"'train_images' and so on; it holds {sorted(arrays)}")
  for kind in ('images', 'labels'):
    shapes = {arrays[f'{p}_{kind}'].shape[1:] for p in parts}
    if len(shapes) > 1:
      raise checks.UserError(f'{path}: all splits must have {kind} of one '
                             f'shape, got {sorted(shapes)}')
  stored = splits.whole({p: len(arrays[f'{p}_images']) for p in parts})
  return _in_memory(
      name, np.concatenate([arrays[f'{p}_images'] for p in parts]),
      np.concatenate([arrays[f'{p}_labels'] for p in parts]),
      None if names is None else tuple(map(str, names)), stored)


def _in_memory(name, images, labels, class_names, stored):
  labels = np.asarray(labels, np.int32).reshape(len(images), -1)
  num_classes = len(class_names or ()) or int(labels.max()) + 1
  if labels.max() >= num_classes or labels.max(axis=1).min() < 0:
    raise checks.UserError(
        f'data.name: {name} has labels from {labels.min()} to {labels.max()}; '
        f'expected 0 to {num_classes - 1}')
  digest = hashlib.sha256(np.ascontiguousarray(images))
  digest.update(np.ascontiguousarray(labels))
  return Source(
      name=name, stored=stored, num_classes=num_classes,
      class_names=class_names, read=lambda i: (images[i], labels[i]),
      decoded=True, channels=images.shape[-1],
      fingerprint=digest.hexdigest()[:16])


def _tfds(name, data_dir):
  """A prepared TFDS set; never touches the network."""
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise checks.UserError(
        f'data.name: {name!r} is read with TFDS, and {e.name} is not '
        "installed: pip install 'mlp-mixer[data]', or the pinned "
        'requirements.txt') from e
  where = data_dir or os.environ.get('TFDS_DATA_DIR') or os.path.join(
      '~', 'tensorflow_datasets')
  where = os.path.expanduser(where)
  if files.is_remote(where):
    raise checks.UserError(
        f'data.dir: {where!r} is a bucket, which is not read yet; mount it '
        '(gcsfuse) and give the path of the mount')
  try:
    builder = tfds.core.read_only_builder.builder_from_files(
        name, data_dir=where)
  except Exception as e:
    how = _HOW_TO_PREPARE.get(
        name, 'prepare it once with TFDS (--config.data.name=digits needs none)'
    ).replace('DIR', where)
    raise checks.UserError(
        f'data.name: no prepared TFDS set {name!r} in {where!r}; set '
        f'--config.data.dir to where it is, or {how}') from e
  info = builder.info
  label_key = next((k for k in ('label', 'labels') if k in info.features), None)
  if 'image' not in info.features or label_key is None:
    raise checks.UserError(
        f"data.name: {name} has the features {sorted(info.features)}; expected "
        "'image' and 'label' or 'labels'")
  feature = info.features[label_key]
  width = MAX_LABELS if hasattr(feature, 'feature') else 1
  feature = getattr(feature, 'feature', feature)
  stored = splits.whole({k: s.num_examples for k, s in info.splits.items()})
  shards = [(str(path), length) for s in info.splits.values()
            for path, length in zip(s.filepaths, s.shard_lengths)]
  if info.file_format.value != 'tfrecord':
    raise checks.UserError(
        f'data.name: {name} is stored as {info.file_format.value}; tfrecord '
        'is what can be read')
  digest = hashlib.sha256(repr(
      (info.full_name, [(os.path.basename(p), n) for p, n in shards])
  ).encode()).hexdigest()
  return Source(
      name=name, stored=stored, num_classes=feature.num_classes,
      class_names=tuple(feature.names) if feature.names else None,
      read=_Records(shards, label_key, width, feature.num_classes),
      decoded=False,
      channels=info.features['image'].shape[-1] or 3, fingerprint=digest[:16])


class _Records:
  """TFRecord files read by record number, through the offsets of a scan."""

  def __init__(self, shards, label_key, width, num_classes):
    self._label_key = label_key
    self._width, self._num_classes = width, num_classes
    self._shards = shards
    self._lock = threading.Lock()
    self._ends = np.cumsum([n for _, n in shards])
    self._offsets = {}   # of a shard's records, int64 [n + 1]

  def __call__(self, records):
    from tensorflow_datasets.proto import tf_example_pb2
    images, labels = [], np.full((len(records), self._width), -1, np.int32)
    for row, record in enumerate(records):
      example = tf_example_pb2.Example.FromString(self._raw(int(record)))
      feature = example.features.feature
      images.append(feature['image'].bytes_list.value[0])
      values = feature[self._label_key].int64_list.value
      if not 0 < len(values) <= self._width:
        raise checks.RunError(
            f'record {record} has {len(values)} labels; expected 1 to '
            f'{self._width}')
      if not all(0 <= v < self._num_classes for v in values):
        raise checks.RunError(
            f'record {record} of {self._name_of(record)} has the labels '
            f'{list(values)}; expected 0 to {self._num_classes - 1}')
      labels[row, :len(values)] = values
    return images, labels

  def _name_of(self, record):
    shard = int(np.searchsorted(self._ends, record, side='right'))
    return repr(self._shards[shard][0])

  def _raw(self, record):
    # A file is open only while it is read: sets have more shards than a
    # process may have open files.
    shard = int(np.searchsorted(self._ends, record, side='right'))
    file = _open_file(self._shards[shard][0])
    try:
      with self._lock:
        if shard not in self._offsets:
          self._offsets[shard] = self._scan(file, *self._shards[shard])
      at = record - (self._ends[shard - 1] if shard else 0)
      begin, end = self._offsets[shard][at:at + 2]
      return os.pread(file, int(end - begin) - 16, int(begin) + 12)
    finally:
      os.close(file)

  @staticmethod
  def _scan(file, path, expected):
    """Where the records begin, and the end: each is length, crc, data, crc."""
    size, at, out = os.fstat(file).st_size, 0, [0]
    while at + 16 <= size:
      length, = struct.unpack('<Q', os.pread(file, 8, at))
      if at + length + 16 > size:
        break
      at += length + 16
      out.append(at)
    if at != size or len(out) != expected + 1:
      raise checks.UserError(
          f'{path!r} is damaged: {len(out) - 1} whole records of the '
          f'{expected} that its data set lists; prepare it again')
    return np.array(out, np.int64)


def _open_file(path):
  try:
    return os.open(path, os.O_RDONLY)
  except OSError as e:
    raise checks.UserError(f'cannot read {path!r}: {e.strerror}') from None
