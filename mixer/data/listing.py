"""Image files on disk and their labels: folders of classes, and manifests."""
import collections
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import re

import numpy as np

from mixer.core import errors
from mixer.core import files
from mixer.core.log import log
from mixer.images import decode_pillow

MAX_LABELS = 32   # of one example; more are an error, fewer are padded by -1
_MAX_CLASSES = 2**20   # a larger number is an id of something, not a class
_STORED = ('train', 'validation', 'test')
_ALIASES = {'val': 'validation', 'valid': 'validation'}
_SKIPPED = ('__MACOSX', '@eaDir')   # left by macOS's zip, by Synology
_ANNOTATIONS = 'val_annotations.txt'   # Tiny-ImageNet's: file, class, box
_LAYOUT = ('expected PATH/train/CLASS/image.jpg with PATH/validation and '
           'PATH/test alike, or just PATH/CLASS/image.jpg')
_COLUMNS = ('path', 'label', 'labels', 'weights', 'split')
_NUMBER, _NEGATIVE = re.compile('[0-9]{1,18}'), re.compile('-[0-9]+')
_SPLIT = re.compile(r'[^\[\]+]+')   # what `splits.select` can ask for
# What no file name has: '\0', and half characters but for undecodable bytes.
_NO_PATH = re.compile('[\0\ud800-\udc7f\udd00-\udfff]')


@dataclasses.dataclass(frozen=True)
class Listing:
  """Image files by record number, and their labels.

  Attributes:
    root: the folder that relative paths start from.
    paths: list of str, absolute or relative to `root`.
    labels: int32 [N, L], padded by -1.
    weights: float32 [N, L] padded by 0, or None.
    class_names: tuple of str.
    sizes: {split: count}; records lie split by split, in this order.
    fingerprint: changes when files (path, size), labels or order do.
  """
  root: str
  paths: list
  labels: np.ndarray
  weights: np.ndarray | None
  class_names: tuple
  sizes: dict
  fingerprint: str

  def file(self, record):
    """The full path of a record's file."""
    return os.path.join(self.root, self.paths[record])


def folder(path):
  """The images of PATH/train/CLASS/... and other splits alike, or of
  PATH/CLASS/..., the split 'train'; by split, class, and path below PATH.

  Raises:
    UserError: if it is not laid out so, a class is empty, or a split has a
      class that training lacks.
  """
  root = _local(path)
  if not os.path.isdir(root):
    raise errors.UserError(f'data.name: no folder {root!r}; {_LAYOUT}')
  ignored, found, sizes = collections.Counter(), [], {}
  for split, where in _split_folders(root, ignored).items():
    names, loose = _scan(where)
    if split == 'train':
      classes = dict(zip(names, range(len(names))))
    if not classes:
      raise errors.UserError(f'data.name: {where!r} has no class folders (and '
                             f'{len(loose)} files); {_LAYOUT}')
    # Tiny-ImageNet has val/images with a list beside, and test/images without.
    if names and (names != ['images'] or 'images' in classes):
      records = _labelled(root, where, names, classes, ignored)
    elif _ANNOTATIONS in loose:
      loose.remove(_ANNOTATIONS)
      records = _annotated(root, where, names, classes, ignored)
    else:
      log.info('%r has no class folders: it is without labels, and left out',
               where)
      continue
    ignored.update(map(_suffix, loose))
    found += sorted(records)
    sizes[split] = len(records)
  if ignored:
    kinds = ', '.join(f'{n} {kind!r}' for kind, n in ignored.most_common(10))
    log.info('%r: %d files are ignored, as no images or in no class folder: %s',
             root, ignored.total(), kinds)
  labels, paths, bytes_of = zip(*found)
  return _listing(root, list(paths), np.array(labels, np.int32)[:, None], None,
                  tuple(classes), sizes, np.array(bytes_of))


def manifest(path):
  """The images that a CSV or JSONL file lists, with one or several labels.

  Classes are those of classes.txt beside it, one name a line; without it, the
  numbers 0 to the largest if all labels are numbers; else the sorted labels.
  Whether the images exist is not checked.

  Raises:
    UserError: if there are no rows, or one is not as `rows` says.
  """
  table = list(rows(path))
  path = _local(path)
  if not table:
    raise errors.UserError(f'data.name: {path!r} lists no images; expected a '
                           'row each, of its path and labels')
  sizes = collections.Counter(row['split'] for row in table)
  sizes = {s: sizes[s] for s in (*_STORED, *sizes) if s in sizes}
  table.sort(key=lambda row: list(sizes).index(row['split']))
  class_names, numbers = classes(path, table)
  shape = len(table), max(len(row['labels']) for row in table)
  labels, weights = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
  for record, row in enumerate(table):
    of_row = [numbers[str(label)] for label in row['labels']]
    if len(set(of_row)) < len(of_row):   # by name and by number, say
      raise _wrong(path, row['line'], 'labels', row['labels'], 'each once')
    labels[record, :len(of_row)] = of_row
    weights[record, :len(of_row)] = row['weights'] or 1
  weighted = any(row['weights'] is not None for row in table)
  return _listing(os.path.dirname(path), [row['path'] for row in table],
                  labels, weights if weighted else None, class_names, sizes)


def rows(path):
  """The rows of a manifest, one by one, checked.

  A CSV file has a header, and ';' between several labels or weights; a JSONL
  file has an object a line, with scalars or lists. Both have 'path', 'labels'
  or 'label', and perhaps 'weights' and 'split'.

  Yields:
    dicts of 'path', 'labels' (a list of str or int, as written), 'weights' (a
    list of float, or None), 'split', and 'line', the number of its line.

  Raises:
    UserError: with the line, at the first row that is not so.
  """
  path = _local(path)
  read = {'.csv': _csv_rows, '.jsonl': _json_rows}.get(_suffix(path))
  if read is None:
    raise errors.UserError(f'data.name: {path!r} is a manifest of an unknown '
                           'kind; expected *.csv or *.jsonl')
  ignored = {}
  with _open(path) as f:
    for line, cells in read(path, f):
      ignored.update((k, None) for k in cells if k not in _COLUMNS)
      yield _row(path, line, cells)
  if ignored:
    log.info('%r: the columns %s are ignored (known: %s)', path,
             list(ignored)[:10], ', '.join(_COLUMNS))


def _local(path):
  if files.is_remote(path):
    raise errors.UserError(
        f'data.name: {path!r} is a bucket; mount it and give the path of the '
        'mount, or prepare it once with python -m mixer.prepare build')
  return files.absolute(path)


def _listing(root, paths, labels, weights, class_names, sizes, bytes_of=None):
  # ascii() tells any two strings apart, undecodable ones too.
  digest = hashlib.sha256(ascii((class_names, sizes, labels.shape)).encode())
  for path in paths:
    digest.update(ascii(path).encode())
  for array in (labels, weights, bytes_of):
    digest.update(b'' if array is None else np.ascontiguousarray(array))
  return Listing(root, paths, labels, weights, class_names, sizes,
                 digest.hexdigest()[:16])


def _split_folders(root, ignored):
  """{split: its folder}, in the order of the records."""
  names, loose = _scan(root)
  splits = [_ALIASES.get(name.lower(), name.lower()) for name in names]
  tops = {s: os.path.join(root, names[splits.index(s)])
          for s in _STORED if s in splits}
  if not tops:
    return {'train': root}   # whose folders are the classes
  if 'train' not in tops or any(splits.count(s) > 1 for s in tops):
    given = [n for n, split in zip(names, splits) if split in tops]
    raise errors.UserError(f"data.name: {root!r} has {given}: no 'train', or "
                           f'two folders for one split; {_LAYOUT}')
  others = [n for n, split in zip(names, splits) if split not in tops]
  if others:
    log.info('%r: folders that are no split are ignored: %s', root, others[:10])
  ignored.update(map(_suffix, loose))
  return tops


def _labelled(root, where, names, classes, ignored):
  """[(class, path, size)] of a split that has a folder a class."""
  records = []
  for name in names:
    inside = os.path.join(where, name)
    if name not in classes:
      raise errors.UserError(f'data.name: {inside!r} is a class that training '
                             f'lacks; expected such as {next(iter(classes))!r}')
    of_class = _images(root, inside, ignored)
    if not of_class:
      raise errors.UserError(
          f'data.name: the class folder {inside!r} holds no image; expected '
          f"some of {' '.join(decode_pillow.SUFFIXES)}, or no such folder")
    records += [(classes[name], *image) for image in of_class]
  return records


def _annotated(root, where, names, classes, ignored):
  """[(class, path, size)] of a split whose classes are in a list beside it."""
  records, listed = [], os.path.join(where, _ANNOTATIONS)
  inside = os.path.join(where, *names)
  left = dict(_images(root, inside, ignored))
  with _open(listed) as f:
    for line, text in enumerate(f, 1):
      name, label = (text.rstrip('\r\n').split('\t') + [''])[:2]
      path = os.path.relpath(os.path.join(inside, name), root)
      if label not in classes:
        raise _wrong(listed, line, 'class', label, 'a class folder of training')
      if path not in left:
        raise _wrong(listed, line, 'file', name, f'images of {inside!r}, once')
      records.append((classes[label], path, left.pop(path)))
  ignored.update(map(_suffix, left))
  return records


def _images(root, inside, ignored):
  """[(path relative to root, size)] of the images in a folder."""
  # A link to where the walk has been, or to what holds that, is not followed.
  above = pathlib.PurePath(os.path.realpath(os.path.dirname(inside)))
  found, seen = [], {os.path.realpath(root), *map(str, (above, *above.parents))}
  if os.path.realpath(inside) in seen:
    return found
  seen.add(os.path.realpath(inside))
  for at, folders, names in os.walk(inside, onerror=_cannot_read,
                                    followlinks=True):
    fresh = {}
    for name in sorted(filter(_visible, folders)):
      fresh.setdefault(os.path.realpath(os.path.join(at, name)), name)
    folders[:] = [n for real, n in fresh.items() if real not in seen]
    seen.update(fresh)
    prefix = os.path.relpath(at, root)
    for name in filter(_visible, names):
      if _suffix(name) in decode_pillow.SUFFIXES:
        found.append((f'{prefix}/{name}', _size(f'{at}/{name}')))
      else:
        ignored[_suffix(name)] += 1
  return found


def _scan(path):
  """Names of the folders and of the files directly in a folder."""
  _, folders, names = next(os.walk(path, onerror=_cannot_read))
  return sorted(filter(_visible, folders)), list(filter(_visible, names))


def _visible(name):
  return not name.startswith('.') and name not in _SKIPPED


def _size(path):
  try:
    return os.stat(path).st_size
  except OSError:   # a link to nothing: a bad record, once it is read
    return -1


def _suffix(path):
  return os.path.splitext(path)[1].lower()


def _cannot_read(error):
  raise errors.UserError(f'data.name: cannot read {error.filename!r}: '
                         f'{error.strerror}') from error


def _open(path):
  """A text file; what is no UTF-8 is kept, as in names from the disk."""
  try:
    return open(path, encoding='utf-8-sig', errors='surrogateescape',
                newline='')
  except OSError as e:
    _cannot_read(e)


def _wrong(path, line, what, value, expected):
  return errors.UserError(
      f'{path!r}, line {line}: {what} {repr(value)[:200]}; expected {expected}')


def _csv_rows(path, f):
  reader, header = csv.reader(f, strict=True), None
  try:
    for cells in filter(None, reader):   # an empty line has no cells
      line = reader.line_num
      if header is None:
        header = [cell.strip() for cell in cells]
        if ('path' not in header or not {'label', 'labels'} & set(header)
            or len(set(header)) < len(header)):
          raise _wrong(path, line, 'columns', header, "'path', 'labels' and, "
                       "if there are, 'weights' and 'split', each once")
        continue
      if len(cells) != len(header):
        raise _wrong(path, line, 'row', cells, f'cells for {header}')
      row = dict(zip(header, cells))
      for key in {'label', 'labels', 'weights'} & set(row):
        row[key] = row[key].split(';')
      yield line, row
  except csv.Error as e:
    raise _wrong(path, reader.line_num, 'row', str(e), 'CSV') from e


def _json_rows(path, f):
  for line, text in enumerate(f, 1):
    if text.strip():
      try:
        cells = json.loads(text)
      except (ValueError, RecursionError):
        cells = None
      if not isinstance(cells, dict):
        raise _wrong(path, line, 'row', text.strip(), 'a JSON object')
      yield line, cells


def _row(path, line, cells):
  """A row as `rows` yields it."""
  name, split = cells.get('path'), cells.get('split') or 'train'
  if not isinstance(name, str) or not name.strip() or _NO_PATH.search(name):
    raise _wrong(path, line, 'path', name, 'the path of an image file')
  if not isinstance(split, str) or not _SPLIT.fullmatch(split.strip()):
    raise _wrong(path, line, 'split', split, "a name such as 'train'")
  if 'label' in cells and 'labels' in cells:
    raise _wrong(path, line, 'label', cells['label'], "it in 'labels' alone")
  labels = _several(cells.get('labels', cells.get('label')))
  weights = _several(cells.get('weights'))
  if not labels or len(labels) > MAX_LABELS:
    raise _wrong(path, line, 'number of labels', len(labels or ()),
                 f'1 to {MAX_LABELS}')
  for label in labels:
    if (type(label) not in (int, str) or not str(label)   # bool is an int
        or _NEGATIVE.fullmatch(str(label))):
      raise _wrong(path, line, 'label', label,
                   'the name of a class, or its number from 0')
  if len(set(map(str, labels))) < len(labels):
    raise _wrong(path, line, 'labels', labels, 'each once')
  try:
    weights = weights and [float(weight) for weight in weights]
    good = weights is None or len(weights) == len(labels) and all(
        0 <= weight <= 1 for weight in weights)
  except (TypeError, ValueError, OverflowError):
    good = False
  if not good:
    raise _wrong(path, line, 'weights', weights,
                 f"{len(labels)}, one a label, in [0, 1], with ';' between")
  return dict(path=name, labels=labels, weights=weights, split=split.strip(),
              line=line)


def _several(value):
  """A scalar or a list as a list; None if nothing was given."""
  values = value if isinstance(value, list) else [value]
  values = [v.strip() if isinstance(v, str) else v for v in values]
  return None if values in ([None], ['']) else values


def classes(path, table):
  """Class names, and {label: its class}."""
  lines = {str(label): row['line'] for row in reversed(table)
           for label in row['labels']}   # of each label's first row
  beside = os.path.join(os.path.dirname(path), 'classes.txt')
  if os.path.exists(beside):
    with _open(beside) as f:
      names = [text.strip() for text in f if text.strip()]
    if len(set(names)) < len(names) or not names:
      raise errors.UserError(f'{beside!r}: {len(names)} names, of which '
                             f'{len(set(names))} differ; expected one a class')
  elif all(map(_NUMBER.fullmatch, lines)):
    largest = max(lines, key=int)
    if int(largest) >= _MAX_CLASSES:
      raise _wrong(path, lines[largest], 'label', largest, 'class numbers '
                   f'below {_MAX_CLASSES}, or a classes.txt beside')
    names = list(map(str, range(int(largest) + 1)))
  else:
    names = sorted(lines)
  numbers = dict(zip(names, range(len(names))))
  for label, line in lines.items():
    if label not in numbers:
      if not _NUMBER.fullmatch(label) or int(label) >= len(names):
        raise _wrong(path, line, 'label', label, f'a name in {beside!r}, or a '
                     f'number below {len(names)}')
      numbers[label] = int(label)
  return tuple(names), numbers
