"""Where examples come from: the digits, arrays, image files, TFDS sets by name.

A source is opened by name and read by record number. None of this imports
TensorFlow.
"""
import dataclasses
import errno
import hashlib
import os
from typing import Any
import zipfile

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.data import listing
from mixer.data import real_labels
from mixer.data import shards as prepared
from mixer.data import splits
from mixer.data import tfds_sets
from mixer.data import vtab
from mixer.images import decode_pillow

ACCESS = ('random', 'sequential')
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE,
            errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN)
_KINDS = ('digits', 'arrays:PATH.npz', 'folder:PATH', 'manifest:PATH',
          'vtab:TASK', 'a TFDS name')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """A data set that can be read by record number.

  Attributes:
    name: as in the config.
    stored: {split name: splits.Piece, or Split of several}.
    num_classes: of the labels.
    class_names: one a class, or None.
    read: record numbers [n] -> (images, labels, weights): a list of encoded
      files, each of which may be an `images.BadImage` instead, or uint8 [n, H,
      W, C] if `decoded`; int32 [n, L] padded by -1; float32 [n, L], or None
      where every label counts 1. If `shards` is given, the numbers ascend and
      lie in one shard.
    name_of: record number -> what to call it in messages.
    decoded: whether images are arrays already.
    channels: of the images.
    fingerprint: changes when the records or their order do.
    upright: whether EXIF rotation and transparency are minded: they are in
      files as people have them, and are not in TFDS sets, as in everybody's
      ImageNet figures.
    shards: None, or `prepared.Shards` of a set that is read in sequence.
    directory: of a TFDS set, its version's; else None.
  """
  name: str
  stored: dict
  num_classes: int
  class_names: tuple | None
  read: Any
  name_of: Any
  decoded: bool
  channels: int
  fingerprint: str
  upright: bool = False
  shards: Any = None
  directory: str | None = None


def open_source(name, *, data_dir=None, wanted=(), access=None, labels=None):
  """The source `name`.

  Args:
    name: 'digits', 'arrays:PATH.npz', 'folder:PATH', 'manifest:PATH',
      'vtab:TASK' (see `vtab.TASKS`), or the name of a TFDS set, with its
      config and version if it has several: 'imagenet_v2/topimages:3.0.0'.
    data_dir: where TFDS sets lie; by default TFDS's own (~/tensorflow_datasets
      or $TFDS_DATA_DIR).
    wanted: all the splits that will be asked of it, so that a missing
      held-out one can be carved from the only one there is.
    access: 'random', or 'sequential' for TFRecord only; by default sequential
      for TFRecord in a bucket and random for all else.
    labels: a JSON file of labels that replace the source's own by file name,
      see `relabel`; an image may then have none.

  Raises:
    UserError: if it is unknown or not there, with the way to get it.
  """
  if access is not None and access not in ACCESS:
    raise errors.unknown('data.access', access, ACCESS)
  kind, _, path = name.partition(':')
  if kind != name and not path:
    raise errors.UserError(f'data.name: {name!r} gives no path; is a variable '
                           'unset?')
  if kind == 'vtab' or tfds_sets.is_name(name):
    source = _tfds(name, data_dir, access, labels)
  elif access == 'sequential':
    raise errors.UserError(
        f"data.access: {name} is read at random; 'sequential' is for TFDS sets "
        'in TFRecord format')
  elif kind in ('folder', 'manifest'):
    source = _image_files(name, getattr(listing, kind)(path), labels)
  elif kind not in ('digits', 'arrays'):
    raise errors.unknown('data.name', name, _KINDS)
  elif labels:
    raise errors.UserError(
        f'labels: {labels!r} is looked up by file names, and {name} has none; '
        'expected folder:PATH, manifest:PATH or a TFDS set')
  else:
    source = _digits() if kind == 'digits' else _arrays(name)
  if labels:
    _check_names(source)
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
    raise errors.UserError(f'data.name: cannot read {path!r} as npz: {e}')
  names = arrays.pop('class_names', None)
  if 'images' in arrays:
    arrays = {f'train_{k}': v for k, v in arrays.items()}
  parts = sorted(k[:-len('_images')] for k in arrays if k.endswith('_images'))
  for part in parts:
    images, labels = arrays[f'{part}_images'], arrays.get(f'{part}_labels')
    if images.dtype != np.uint8 or images.ndim != 4:
      raise errors.UserError(
          f'{path}: {part} images must be uint8 [N, H, W, C], got '
          f'{images.dtype} {list(images.shape)}')
    if labels is None or len(labels) != len(images):
      raise errors.UserError(
          f'{path}: {part} has {len(images)} images and '
          f'{0 if labels is None else len(labels)} labels')
    if not len(images) or not np.issubdtype(labels.dtype, np.integer):
      raise errors.UserError(
          f'{path}: {part} has no images' if not len(images) else
          f'{path}: {part} labels must be integers, got {labels.dtype}')
  if not parts:
    raise errors.UserError(
        f"{path}: expected the arrays 'images' and 'labels', or "
        f"'train_images' and so on; it holds {sorted(arrays)}")
  for kind in ('images', 'labels'):
    shapes = {arrays[f'{p}_{kind}'].shape[1:] for p in parts}
    if len(shapes) > 1:
      raise errors.UserError(f'{path}: all splits must have {kind} of one '
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
    raise errors.UserError(
        f'data.name: {name} has labels from {labels.min()} to {labels.max()}; '
        f'expected 0 to {num_classes - 1}')
  digest = hashlib.sha256(np.ascontiguousarray(images))
  digest.update(np.ascontiguousarray(labels))
  return Source(
      name=name, stored=stored, num_classes=num_classes,
      class_names=class_names, read=lambda i: (images[i], labels[i], None),
      name_of=lambda i: f'{name} {i}', decoded=True,
      channels=images.shape[-1], fingerprint=digest.hexdigest()[:16])


def _image_files(name, listed, labels):
  """A folder or a manifest, as `listing` found it."""
  other = labels and real_labels.load(labels, len(listed.class_names))

  def load(record):
    try:
      with open(listed.file(record), 'rb') as f:
        return f.read()
    except OSError as e:
      if e.errno in _PASSING:   # not the file's fault: it would differ tomorrow
        raise errors.RunError(f'cannot read {listed.file(record)!r}: '
                              f'{e.strerror}; start again when it can be')
      return decode_pillow.BadImage(e.strerror)

  def targets(records):
    if other:
      return other.rows([listed.paths[int(r)] for r in records]), None
    return listed.labels[records], (
        None if listed.weights is None else listed.weights[records])

  def read(records):
    return [load(int(r)) for r in records], *targets(records)

  return Source(
      name=name, stored=splits.whole(listed.sizes), read=read,
      name_of=lambda record: listed.file(int(record)),
      num_classes=len(listed.class_names), class_names=listed.class_names,
      decoded=False, channels=3, upright=True,
      fingerprint=_with_labels(listed.fingerprint, other))


def _tfds(name, data_dir, access, labels):
  """A prepared TFDS set, or a task of VTAB on one."""
  where = data_dir or os.environ.get('TFDS_DATA_DIR') or os.path.join(
      '~', 'tensorflow_datasets')
  where = os.path.expanduser(where)
  task = (vtab.find(name.partition(':')[2]) if name.startswith('vtab:')
          else None)
  try:
    return _open_tfds(name, where, access, task, labels)
  except ImportError as e:
    raise errors.UserError(
        f'data.name: {name!r} is read with TFDS, and {e.name} is not '
        "installed: pip install '.[data]' in this project's folder, or the "
        'pinned requirements.txt') from e


def _open_tfds(name, where, access, task, labels):
  info = tfds_sets.info_of(task.dataset if task else name, where)
  sizes = {k: s.num_examples for k, s in info.splits.items()}
  parsing, class_names = (task.parsing(info) if task
                          else tfds_sets.parsing(name, info))
  other = labels and real_labels.load(labels, parsing['num_classes'])
  if other:
    parsing.update(tfds_sets.relabelled(name, info, other))
  shards = prepared.shards_of(info)
  form = info.file_format.value
  reader = _reader(name, form, where, access)(shards, name)
  parse = prepared.Parser(name_of=shards.name_of, **parsing)
  return Source(
      name=name, num_classes=parse.num_classes, class_names=class_names,
      stored=task.stored(sizes) if task else splits.whole(sizes),
      read=lambda records: parse(records, reader(records)),
      name_of=shards.name_of, decoded=False,
      channels=3 if task else info.features['image'].shape[-1] or 3,
      fingerprint=_with_labels(prepared.fingerprint(info, shards), other),
      directory=str(info.data_dir),
      shards=shards if isinstance(reader, prepared.Sequence) else None)


def _with_labels(fingerprint, other):
  return fingerprint if not other else hashlib.sha256(
      (fingerprint + other.digest).encode()).hexdigest()[:16]


def _check_names(source):
  """Raises at once what reading would, if no split begins with a file that
  other labels know; the training images, say, need none."""
  error = None
  for piece in source.stored.values():
    try:
      source.read(piece.records(np.arange(1)))
      return
    except errors.UserError as e:
      error = e
  raise error


def _reader(name, form, where, access):
  """What reads the shards of a set."""
  remote = files.is_remote(where)
  if form == 'tfrecord':
    if access == 'sequential' or (access is None and remote):
      return prepared.Sequence
    if not remote:
      return prepared.Tfrecords
  elif form == 'array_record' and access != 'sequential' and not remote:
    return prepared.ArrayRecords
  raise errors.UserError(
      f'data.access: {name} in {where!r} is stored as {form}; local files are '
      'read at random in the formats tfrecord and array_record, and in '
      "sequence in tfrecord, a bucket's in sequence in tfrecord only. Mount a "
      'bucket (gcsfuse) to read it at random')
