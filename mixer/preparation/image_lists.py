"""Lists the images of a folder, a manifest or ImageNet-21k's tar files.

An `ImageList` knows the classes and the number of images. The images themselves
come from a generator, which a Beam worker runs, so that no process ever keeps
the names of all of them.
"""
import array
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
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
from mixer.core import files
from mixer.core.log import log
from mixer.data import class_counts
from mixer.data import csv_tables
from mixer.data import folder
from mixer.data import manifest
from mixer.data import retries
from mixer.images import decode_pillow
from mixer.preparation import imagenet21k
from mixer.preparation import repeats
from mixer.preparation import set_directory

KINDS = ('folder:PATH', 'manifest:PATH', 'tars:DIR')
_SAMPLED_FILES = 1000   # their mean size estimates the size of all


@dataclasses.dataclass(frozen=True)
class Entry:
  """An image to store, not read yet.

  Attributes:
    name: its path relative to the source; unique in a split.
    split: the split of the new set.
    labels: class numbers.
    weights: one for each label, or None.
    path: the file that holds the image.
    span: (first byte, number of bytes) in that file, or None for all of it.
  """
  name: str
  split: str
  labels: tuple[int, ...]
  weights: tuple[float, ...] | None
  path: str
  span: tuple[int, int] | None = None

  @property
  def name_hash(self) -> int:
    """The first 64 bits of a hash of the name, which decide the image's place.

    They make the order random, yet independent of the runner, the workers and
    the number of shards.
    """
    digest = hashlib.sha256(self.name.encode('utf-8', 'surrogateescape'))
    return int.from_bytes(digest.digest()[:8])

  def pack(self) -> str:
    """Returns the entry as a string for `unpack`.

    Beam groups millions of entries in memory, and strings are smaller there
    than pickled objects.
    """
    return json.dumps([self.name, self.split, self.labels, self.weights,
                       self.path, self.span])

  def read(self) -> bytes:
    """Returns the encoded image.

    Raises:
      BadImage: if the file cannot be read.
      RunError: if it cannot be read for a reason that may pass.
    """
    try:
      found: bytes | decode_pillow.BadImage = self._read()
    except OSError as e:
      found = retries.again(self._read, self.path, e)
    if isinstance(found, decode_pillow.BadImage):
      raise found
    return found

  def _read(self) -> bytes:
    with files.open_regular(self.path) as f:
      if self.span is None:
        return f.read()
      f.seek(self.span[0])
      return f.read(self.span[1])


def unpack(text: str) -> Entry:
  """Returns the entry that `Entry.pack` packed."""
  return Entry(*json.loads(text))


@dataclasses.dataclass(frozen=True)
class ImageList:
  """What is known of a source before any image is opened.

  Attributes:
    parts: the source's parts, which workers list independently.
    entries_of: yields the entries of a part.
    class_names: one name for each class.
    multi_label: whether images may have several labels.
    weighted: whether labels have weights.
    sizes: {split: number of images, or None where it is not known}.
    num_bytes: the estimated size of all images together.
    fingerprint: a hash that changes when the source does.
  """
  parts: Sequence[Any]
  entries_of: Callable[[Any], Iterator[Entry]]
  class_names: tuple[str, ...]
  multi_label: bool
  weighted: bool
  sizes: Mapping[str, int | None]
  num_bytes: int
  fingerprint: str


def open_list(source: str) -> ImageList:
  """Returns the image list of a source.

  Args:
    source: one of KINDS.

  Raises:
    UserError: if the source is of another kind, missing or malformed, or the
      name of a class is not UTF-8.
  """
  kind, _, path = source.partition(':')
  openers = dict(folder=_folder, manifest=_manifest, tars=_tars)
  if kind not in openers or not path:
    raise errors.unknown('--source', source, KINDS)
  images = openers[kind](set_directory.local_path(path, '--source'))
  for name in images.class_names or ():
    try:
      name.encode()
    except UnicodeEncodeError:
      raise errors.UserError(
          f'--source: the name of the class {name!r} is not UTF-8, as names in '
          'a data set must be; rename its folder, or save the manifest as UTF-8'
      ) from None
  return images


def _folder(path: str) -> ImageList:
  images = csv_tables.beside(path, folder.load)
  sample = random.Random(0).sample(
      images.paths, min(_SAMPLED_FILES, len(images.paths)))
  return ImageList(
      parts=[path], entries_of=_folder_entries,
      class_names=images.class_names, multi_label=False, weighted=False,
      sizes=images.sizes,
      num_bytes=_mean_size(path, sample) * len(images.paths),
      fingerprint=images.fingerprint)


def _folder_entries(path: str) -> Iterator[Entry]:
  images = folder.load(path)
  splits = [s for s, count in images.sizes.items() for _ in range(count)]
  for record, split in enumerate(splits):
    yield Entry(images.paths[record], split, (int(images.labels[record, 0]),),
                None, images.file(record))


def _manifest(source: str) -> ImageList:
  """Reads the manifest once, and keeps its classes but not its rows."""
  sizes: dict[str, int] = {}
  line_of: dict[str, int] = {}   # where each label occurs first
  # By split, a hash of each path, and one of its labels.
  seen: dict[str, array.array[int]] = {}
  labelled: dict[str, array.array[int]] = {}
  sample: list[str] = []
  digest = hashlib.sha256()
  multi_label = weighted = False
  draw = random.Random(0)
  path = manifest.file_of(source)
  for n, row in enumerate(manifest.rows(source)):
    split = row['split']
    if not row['labels'] or not any(row['weights'] or [1]):
      raise errors.UserError(
          f'--source: {path!r}, line {row["line"]}: {row["path"]!r} has no '
          'label, and each image of a prepared set needs one; remove the row, '
          f'or train on manifest:{path} itself with the sigmoid loss')
    sizes[split] = sizes.get(split, 0) + 1
    seen.setdefault(split, array.array('q')).append(repeats.hash_of(path, row))
    labelled.setdefault(split, array.array('q')).append(
        hash(frozenset(map(str, row['labels']))))
    for label in row['labels']:
      line_of.setdefault(str(label), row['line'])
    multi_label = multi_label or len(row['labels']) > 1
    weighted = weighted or row['weights'] is not None
    digest.update(ascii(row).encode())
    # Reservoir sampling: every row is as likely as any other to be sampled.
    place = n if n < _SAMPLED_FILES else draw.randrange(n + 1)
    if place < _SAMPLED_FILES:
      sample[place:place + 1] = [row['path']]
  if not sizes:
    raise errors.UserError(f'--source: {path!r} has no rows; expected one row '
                           'for each image')
  repeats.refuse(source, path, seen, labelled)
  repeats.say(source, list(map(np.array, seen.values())))
  sizes = dict(zip(manifest.split_names(path, sizes), sizes.values()))
  for split in sizes:   # TFDS puts the split into file names
    if not re.fullmatch('[A-Za-z0-9_]+', split):
      raise errors.UserError(f'--source: {path!r} has the split {split!r}; '
                             'expected letters, digits and _')
  class_names, numbers = manifest.classes(path, [
      dict(labels=[label], line=line) for label, line in line_of.items()])
  used = np.bincount([numbers[label] for label in line_of],
                     minlength=len(class_names))
  if not used.all():
    log.warning('%r: %s', path,
                class_counts.without_examples(used, class_names, ids=True))
  return ImageList(
      parts=[source], class_names=class_names,
      multi_label=multi_label or weighted, weighted=weighted, sizes=sizes,
      fingerprint=digest.hexdigest()[:16],
      entries_of=functools.partial(
          _manifest_entries, numbers=numbers, weighted=weighted),
      num_bytes=(_mean_size(os.path.dirname(path), sample)
                 * sum(sizes.values())))


def _manifest_entries(source: str, *, numbers: Mapping[str, int], weighted: bool
                      ) -> Iterator[Entry]:
  path = manifest.file_of(source)
  for row in manifest.rows(source):
    labels = tuple(numbers[str(label)] for label in row['labels'])
    if len(set(labels)) < len(labels):   # once by name and once by number
      raise errors.UserError(
          f'{path!r}, line {row["line"]}: the labels {row["labels"]!r} name a '
          'class twice; expected each class once')
    weights = tuple(row['weights'] or (1.,) * len(labels)) if weighted else None
    yield Entry(row['path'], manifest.split_name(row['split']), labels, weights,
                os.path.join(os.path.dirname(path), row['path']))


def _tars(path: str) -> ImageList:
  tars = imagenet21k.find_tars(path)
  sizes = {synset: os.path.getsize(tar) for synset, tar in tars.items()}
  return ImageList(
      parts=list(tars.items()), entries_of=_tar_entries,
      class_names=imagenet21k.synsets(), multi_label=False, weighted=False,
      sizes={'train': None}, num_bytes=sum(sizes.values()),
      fingerprint=hashlib.sha256(ascii(sizes).encode()).hexdigest()[:16])


def _tar_entries(part: tuple[str, str]) -> Iterator[Entry]:
  synset, path = part
  label = imagenet21k.synsets().index(synset)
  for name, offset, size in imagenet21k.tar_members(path):
    yield Entry(f'{synset}/{name}', 'train', (label,), None, path,
                (offset, size))


def _mean_size(root: str, paths: Sequence[str]) -> int:
  sizes = []
  for path in paths:
    try:
      sizes.append(os.path.getsize(os.path.join(root, path)))
    except OSError:
      pass   # the worker that reads it will report a bad image
  return int(np.mean(sizes or [0]))
