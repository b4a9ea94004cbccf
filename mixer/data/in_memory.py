"""Data sets whose images are arrays, such as scikit-learn's digits."""
from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np

from mixer.data import sources
from mixer.data import splits


def digits() -> sources.Source:
  """Opens the 1,797 handwritten digits of scikit-learn, 8x8, 16 grey levels.

  Split 'test' is every fifth image, 'train' is all others; slices of both
  follow a fixed permutation. 'all' is all images in the order of the file,
  whose two halves were written by different people.
  """
  from sklearn import datasets
  loaded = datasets.load_digits()
  images = np.round(loaded.images * (255 / 16)).astype(np.uint8)[..., None]
  everything = splits.Piece(0, 0, len(images))
  train, test = splits.hold_out(
      dataclasses.replace(everything, mix=True), 5)
  return make('digits', images, loaded.target[:, None], num_classes=10,
              class_names=list(map(str, range(10))),
              stored={'train': train, 'test': test, 'all': everything})


def make(name: str, images: np.ndarray, labels: np.ndarray, *,
         num_classes: int, class_names: Sequence[str] | None,
         stored: splits.Stored) -> sources.Source:
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
  return sources.Source(
      name=name, stored=stored, num_classes=num_classes,
      class_names=None if class_names is None else tuple(class_names),
      read=lambda records: (images[records], {'labels': labels[records]}),
      targets=lambda records: {'labels': labels[records]},
      name_of=lambda record: f'{name} {record}', decoded=True,
      channels=images.shape[-1], fingerprint=digest.hexdigest()[:16])
