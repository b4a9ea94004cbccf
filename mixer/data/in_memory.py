"""Data sets that fit in memory: scikit-learn's digits, and arrays in a file."""
import hashlib
import os
import zipfile

import numpy as np

from mixer.core import errors
from mixer.data import source
from mixer.data import splits


def digits() -> source.Source:
  """Opens the 1,797 handwritten digits of scikit-learn, 8x8, 16 grey levels.

  Split 'test' is every fifth image, 'train' is all others, and 'all' is all
  images in the order of the file, whose two halves were written by different
  people.
  """
  from sklearn import datasets
  loaded = datasets.load_digits()
  images = np.round(loaded.images * (255 / 16)).astype(np.uint8)[..., None]
  everything = splits.Piece(0, 0, len(images))
  train, test = splits.hold_out(everything, 5)
  return _make('digits', images, loaded.target,
               class_names=tuple(str(i) for i in range(10)),
               stored={'train': train, 'test': test, 'all': everything})


def arrays(path: str) -> source.Source:
  """Opens an npz file of uint8 images [N, H, W, C] and labels [N] or [N, L].

  The arrays 'images' and 'labels' are one split, 'train'; several splits are
  called '{split}_images' and '{split}_labels'. 'class_names' is optional.

  Raises:
    UserError: if the file cannot be read or its arrays do not fit together.
  """
  name, path = f'arrays:{path}', os.path.expanduser(path)
  found = _load(path)
  class_names = found.pop('class_names', None)
  if 'images' in found:
    found = {f'train_{k}': v for k, v in found.items()}
  parts = sorted(k[:-len('_images')] for k in found if k.endswith('_images'))
  for part in parts:
    _check_split(path, part, found[f'{part}_images'],
                 found.get(f'{part}_labels'))
  if not parts:
    raise errors.UserError(
        f"{path}: expected the arrays 'images' and 'labels', or "
        f"'train_images', 'train_labels' and so on; it holds {sorted(found)}")
  for kind in ('images', 'labels'):
    shapes = {found[f'{p}_{kind}'].shape[1:] for p in parts}
    if len(shapes) > 1:
      raise errors.UserError(f'{path}: the {kind} of all splits must have the '
                             f'same shape, got {sorted(shapes)}')
  return _make(
      name, np.concatenate([found[f'{p}_images'] for p in parts]),
      np.concatenate([found[f'{p}_labels'] for p in parts]),
      None if class_names is None else tuple(map(str, class_names)),
      splits.whole({p: len(found[f'{p}_images']) for p in parts}))


def _load(path):
  try:
    with np.load(path, allow_pickle=False) as f:
      return {k: f[k] for k in f.files}
  except (OSError, ValueError, EOFError, TypeError, AttributeError,
          zipfile.BadZipFile) as e:
    raise errors.UserError(f'data.name: cannot read {path!r} as npz: {e}')


def _check_split(path, part, images, labels):
  if images.dtype != np.uint8 or images.ndim != 4:
    raise errors.UserError(
        f'{path}: {part} images must be uint8 [N, H, W, C], got '
        f'{images.dtype} {list(images.shape)}')
  if labels is None or len(labels) != len(images):
    raise errors.UserError(
        f'{path}: {part} has {len(images)} images and '
        f'{0 if labels is None else len(labels)} labels; expected as many '
        'labels as images')
  if not len(images):
    raise errors.UserError(f'{path}: {part} has no images; expected at least 1')
  if not np.issubdtype(labels.dtype, np.integer):
    raise errors.UserError(
        f'{path}: {part} labels must be integers, got {labels.dtype}')


def _make(name, images, labels, class_names, stored):
  labels = np.asarray(labels, np.int32).reshape(len(images), -1)
  num_classes = len(class_names or ()) or int(labels.max()) + 1
  if labels.max() >= num_classes or labels.max(axis=1).min() < 0:
    raise errors.UserError(
        f'data.name: {name} has labels from {labels.min()} to {labels.max()}; '
        f'expected 0 to {num_classes - 1}')
  digest = hashlib.sha256(np.ascontiguousarray(images).data)
  digest.update(np.ascontiguousarray(labels).data)
  return source.Source(
      name=name, stored=stored, num_classes=num_classes,
      class_names=class_names,
      read=lambda records: (images[records], {'labels': labels[records]}),
      name_of=lambda record: f'{name} {record}', decoded=True,
      channels=images.shape[-1], fingerprint=digest.hexdigest()[:16])
