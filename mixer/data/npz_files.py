"""Arrays in an npz file as a data set."""
import os
import zipfile
import zlib

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.data import in_memory
from mixer.data import sources
from mixer.data import splits

_DARK = 32   # no image of a data set is brighter: its values are not 0 to 255


def load(path: str) -> sources.Source:
  """Opens an npz file of uint8 images [N, H, W, C] and labels [N] or [N, L].

  The arrays 'images' and 'labels' are one split, 'train'; several splits are
  called '{split}_images' and '{split}_labels', as in MedMNIST's files. 'val' is
  the split 'validation'. 'class_names' is optional. Grey images may be [N, H,
  W]; images [N, C, H, W] are transposed. Labels [N, K] that are all 0 or 1 mark
  the classes of each image.

  Raises:
    UserError: if the file cannot be read or its arrays do not fit together.
  """
  name, path = f'arrays:{path}', os.path.expanduser(path)
  found = _load(path)
  class_names = found.pop('class_names', None)
  if 'images' in found:
    if twice := sorted({'train_images', 'train_labels'} & set(found)):
      raise errors.UserError(
          f"{path}: the arrays 'images' and 'labels' are the split 'train', "
          f'and it has {twice} too; expected only one of them')
    found = {k if k.endswith(('_images', '_labels')) else f'train_{k}': v
             for k, v in found.items()}
  parts = sorted(k[:-len('_images')] for k in found if k.endswith('_images'))
  pairs = {part: _checked(path, part, found.pop(f'{part}_images'),
                          found.pop(f'{part}_labels', None)) for part in parts}
  if not pairs:
    raise errors.UserError(
        f"{path}: expected the arrays 'images' and 'labels', or "
        f"'train_images', 'train_labels' and so on; it holds {sorted(found)}")
  if found:
    log.warning('%r: the arrays %s are ignored', path, sorted(found))
  for kind, shapes in zip(('images', 'labels'), (
      {x.shape[1:] for x in both} for both in zip(*pairs.values()))):
    if len(shapes) > 1:
      raise errors.UserError(f'{path}: the {kind} of all splits must have the '
                             f'same shape, got {sorted(shapes)}')
  sizes = {splits.ALIASES.get(part, part): len(labels)
           for part, (_, labels) in pairs.items()}
  if len(sizes) < len(pairs):
    raise errors.UserError(f"{path}: has the splits {parts}; 'val' is "
                           "'validation' too, so expected only one of them")
  images, labels = (np.concatenate(both) for both in zip(*pairs.values()))
  names = _names(path, class_names)
  labels, num_classes = _classes(name, labels, names)
  return in_memory.make(name, images, labels, num_classes=num_classes,
                        class_names=names,
                        stored=splits.whole(sizes, mix=True))


def _load(path):
  try:
    with (files.open_regular(path) as file,
          np.load(file, allow_pickle=False) as f):
      return {k: f[k] for k in f.files}
  except (OSError, ValueError, EOFError, TypeError, AttributeError,
          RuntimeError, zipfile.BadZipFile, zlib.error) as e:
    raise errors.UserError(f'data.name: cannot read {path!r} as npz: {e}')


def _names(path, class_names):
  """The names of the classes as text; None if there are none."""
  if class_names is None:
    return None
  names = tuple(map(_text, np.atleast_1d(class_names)))
  if class_names.ndim != 1 or len(set(names)) < len(names):
    raise errors.UserError(
        f'{path}: class_names of shape {list(class_names.shape)} has '
        f'{len(set(names))} different names; expected a different name for '
        'each class, [classes]')
  return names


def _text(name):
  """A class name as text; NumPy keeps names as bytes in some files."""
  return (name.decode('utf-8', 'replace') if isinstance(name, bytes)
          else str(name))


def _checked(path, part, images, labels):
  """A split's images as [N, H, W, C], and its labels."""
  if images.dtype == np.uint8 and images.ndim == 3:
    images = images[..., None]   # grey
  if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
    raise errors.UserError(
        f'{path}: {part} images must be uint8 [N, H, W, C] with values from 0 '
        f'to 255, got {images.dtype} {list(images.shape)}')
  if labels is None or labels.ndim < 1 or len(labels) != len(images):
    raise errors.UserError(
        f'{path}: {part} has {len(images)} images and labels of shape '
        f'{None if labels is None else list(labels.shape)}; expected as many '
        'labels as images')
  if not len(images):
    raise errors.UserError(f'{path}: {part} has no images; expected at least 1')
  if labels.ndim > 2 or not (
      np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
    raise errors.UserError(
        f'{path}: {part} labels must be integers [N] or [N, L], got '
        f'{labels.dtype} {list(labels.shape)}')
  if images.shape[1] in (1, 3, 4) and images.shape[-1] > 4:
    log.warning('%r: %s images of shape %s are read as [N, C, H, W]', path,
                part, list(images.shape))
    images = np.ascontiguousarray(np.moveaxis(images, 1, -1))
  elif 4 < images.shape[-1] > images.shape[1]:
    log.warning('%r: %s images of shape %s are read as %d channels of %dx%d '
                'pixels; if channels come first, transpose to [N, H, W, C]',
                path, part, list(images.shape), images.shape[-1],
                *images.shape[1:3])
  if images.max() < _DARK:
    log.warning('%r: the brightest value of the %s images is %d of 255, so the '
                'network sees them almost black', path, part, images.max())
  return images, labels


def _classes(name, labels, class_names):
  """All labels as [N, L], and the number of classes."""
  labels = labels.reshape(len(labels), -1)
  columns = labels.shape[1]
  # A list of labels would name the classes 0 and 1 again and again.
  marks = columns > 1 and not (labels < 0).any() and not (labels > 1).any()
  if marks:
    labels = _marked(labels)
    each = np.sum(labels >= 0, axis=1)
    log.info('%s: labels [N, %d] of 0 and 1 mark the classes of each image, '
             'which has %d to %d of them', name, columns, each.min(),
             each.max())
  most = int(labels.max())
  num_classes = len(class_names or ()) or (columns if marks else most + 1)
  if most >= num_classes or most < 0 or (
      labels.min() < (0 if columns == 1 else -1)) or (
          marks and columns != num_classes):
    raise errors.UserError(
        f'data.name: {name} has labels from {labels.min()} to {most}'
        f'{f" in {columns} columns" if marks else ""}; expected 0 to '
        f'{num_classes - 1}, with -1 where an image has fewer labels')
  if most >= sources.MAX_CLASSES:
    raise errors.UserError(
        f'data.name: {name} has the label {most}; expected class numbers below '
        f'{sources.MAX_CLASSES:,}: number the classes from 0')
  return labels, num_classes


def _marked(marks):
  """The classes that each row marks by 1: [N, L], padded by -1."""
  count = np.sum(marks, axis=1, keepdims=True, dtype=np.int64)
  width = max(1, int(count.max()))
  first = np.argsort(marks == 0, axis=1, kind='stable')[:, :width]
  return np.where(np.arange(width) < count, first, -1)
