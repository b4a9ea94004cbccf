"""What a folder, a manifest or ImageNet-21k's tars hold, image by image.

A `Plan` knows classes and counts; the images are listed by a generator that a
worker runs, so that no process keeps all their names.
"""
import dataclasses
import functools
import hashlib
import json
import os
import random
import re
from typing import Any

import numpy as np

from mixer.core import errors
from mixer.data import listing
from mixer.images import decode_pillow
from mixer.preparation import imagenet21k
from mixer.preparation import shard_files

KINDS = ('folder:PATH', 'manifest:PATH', 'tars:DIR')
_SAMPLE = 1000   # files looked at for their mean size


@dataclasses.dataclass(frozen=True)
class Entry:
  """An image to store.

  Attributes:
    name: relative to its source.
    split: of the result.
    labels: its classes.
    weights: one a label, or None.
    path: the file that holds it.
    place: (first byte, number of bytes) of it in there, or None for all.
  """
  name: str
  split: str
  labels: tuple
  weights: tuple | None
  path: str
  place: tuple | None = None

  @property
  def hash(self):
    """64 bits of a hash of the name, which say where the image will lie."""
    digest = hashlib.sha256(self.name.encode('utf-8', 'surrogateescape'))
    return int.from_bytes(digest.digest()[:8])

  def pack(self):
    """The same as a short string, for `unpack`: sets have millions of them."""
    return json.dumps([self.name, self.split, self.labels, self.weights,
                       self.path, self.place])

  def read(self):
    """Its bytes.

    Raises:
      BadImage: if they cannot be read.
    """
    try:
      with open(self.path, 'rb') as f:
        if self.place is None:
          return f.read()
        f.seek(self.place[0])
        return f.read(self.place[1])
    except OSError as e:
      raise decode_pillow.BadImage(e.strerror) from e


def unpack(text):
  """The `Entry` that was packed."""
  return Entry(*json.loads(text))


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a source has, before any image is opened.

  Attributes:
    items: its parts.
    entries: item -> its `Entry`s.
    class_names: one a class.
    several: whether images may have several labels.
    weighted: whether labels have weights.
    sizes: {split: images}, or {split: None} where that is not known.
    num_bytes: of all images, roughly.
    fingerprint: changes when the source does.
  """
  items: list
  entries: Any
  class_names: tuple
  several: bool
  weighted: bool
  sizes: dict
  num_bytes: int
  fingerprint: str


def plan(source):
  """The `Plan` of a source, one of KINDS.

  Raises:
    UserError: if it is not as it must be.
  """
  kind, _, path = source.partition(':')
  plans = dict(folder=_folder, manifest=_manifest, tars=_tars)
  if kind not in plans or not path:
    raise errors.unknown('--source', source, KINDS)
  return plans[kind](shard_files.local(path, '--source'))


def _folder(path):
  listed = listing.folder(path)
  some = random.Random(0).sample(listed.paths, min(_SAMPLE, len(listed.paths)))
  return Plan(
      items=[path], entries=_in_folder, class_names=listed.class_names,
      several=False, weighted=False, sizes=listed.sizes,
      num_bytes=_mean_size(path, some) * len(listed.paths),
      fingerprint=listed.fingerprint)


def _in_folder(path):
  listed = listing.folder(path)
  splits = [s for s, count in listed.sizes.items() for _ in range(count)]
  for record, split in enumerate(splits):
    yield Entry(listed.paths[record], split, (int(listed.labels[record, 0]),),
                None, listed.file(record))


def _manifest(path):
  """Of one pass, which keeps the classes only."""
  sizes, lines, some, digest = {}, {}, [], hashlib.sha256()
  several = weighted = False
  draw = random.Random(0)
  for n, row in enumerate(listing.rows(path)):
    split = row['split']
    sizes[split] = sizes.get(split, 0) + 1
    for label in row['labels']:
      lines.setdefault(str(label), row['line'])
    several = several or len(row['labels']) > 1
    weighted = weighted or row['weights'] is not None
    digest.update(ascii(row).encode())
    place = n if n < _SAMPLE else draw.randrange(n + 1)
    if place < _SAMPLE:
      some[place:place + 1] = [row['path']]
  class_names, numbers = listing.classes(path, [
      dict(labels=[label], line=line) for label, line in lines.items()])
  wrong = [split for split in sizes if not re.fullmatch('[A-Za-z0-9_]+', split)]
  if wrong or not sizes:
    raise errors.UserError(f'--source: {path!r} has ' + (
        f'the split {wrong[0]!r}; expected letters, digits and _' if wrong else
        'no rows; expected one an image'))
  return Plan(
      items=[path], class_names=class_names, several=several or weighted,
      weighted=weighted, sizes=sizes, fingerprint=digest.hexdigest()[:16],
      entries=functools.partial(_in_manifest, numbers=numbers,
                                weighted=weighted),
      num_bytes=_mean_size(os.path.dirname(path), some) * sum(sizes.values()))


def _in_manifest(path, *, numbers, weighted):
  root = os.path.dirname(path)
  for row in listing.rows(path):
    labels = tuple(numbers[str(label)] for label in row['labels'])
    if len(set(labels)) < len(labels):   # by its name and by its number
      raise errors.UserError(f'{path!r}, line {row["line"]}: labels '
                             f'{row["labels"]!r}; expected each once')
    weights = tuple(row['weights'] or (1.,) * len(labels)) if weighted else None
    yield Entry(row['path'], row['split'], labels, weights,
                os.path.join(root, row['path']))


def _tars(path):
  tars = imagenet21k.tars(path)
  sizes = {synset: os.path.getsize(tar) for synset, tar in tars.items()}
  return Plan(
      items=list(tars.items()), entries=_in_tar,
      class_names=imagenet21k.synsets(), several=False, weighted=False,
      sizes={'train': None}, num_bytes=sum(sizes.values()),
      fingerprint=hashlib.sha256(ascii(sizes).encode()).hexdigest()[:16])


def _in_tar(item):
  synset, path = item
  label = imagenet21k.synsets().index(synset)
  for name, *place in imagenet21k.members(path):
    yield Entry(f'{synset}/{name}', 'train', (label,), None, path, tuple(place))


def _mean_size(root, paths):
  sizes = []
  for path in paths:
    try:
      sizes.append(os.path.getsize(os.path.join(root, path)))
    except OSError:
      pass   # it will be a bad image
  return int(np.mean(sizes or [0]))
