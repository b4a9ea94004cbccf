"""Reads manifests: CSV or JSONL files that list images and their labels."""
from __future__ import annotations

import collections
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
import json
import os
import re
import typing
from typing import Any

import numpy as np

from mixer.core import errors
from mixer.core.log import log
from mixer.data import csv_tables
from mixer.data import label_names
from mixer.data import listing
from mixer.data import repeated_rows
from mixer.data import sources
from mixer.data import splits

_COLUMNS = ('path', 'label', 'labels', 'weights', 'split')
_NEGATIVE = re.compile('-[0-9]+')
_SPLIT = re.compile(r'[^\[\]+]+')   # names that `splits.select` can parse
# Characters that no file name has: '\0' and surrogates, except for those that
# stand for undecodable bytes.
_NO_PATH = re.compile('[\0\ud800-\udc7f\udd00-\udfff]')


class Row(typing.TypedDict):
  """A row of a manifest.

  Attributes:
    path: as written; or, if no such file exists but one without the blanks
      around it, or with '/' for backslashes, that file's.
    labels: names or numbers of classes, as written; there may be none.
    weights: one for each label, or None.
    split: 'train' unless the row gives another.
    line: the number of its line, from 1.
  """
  path: str
  labels: list[str | int]
  weights: list[float] | None
  split: str
  line: int


def load(path: str) -> listing.Listing:
  """Lists the images of a manifest, with one or several labels each.

  `classes` says what the classes are. Whether the image files exist is not
  checked.

  Raises:
    UserError: if there are no rows, or `rows` refuses one.
  """
  table = list(rows(path))
  path = file_of(path)
  if not table:
    raise errors.UserError(f'data.name: {path!r} lists no images; expected a '
                           'row for each image with its path and labels')
  counts = collections.Counter(row['split'] for row in table)
  sizes = {s: counts[s] for s in (*listing.STORED, *counts) if s in counts}
  table.sort(key=lambda row: list(sizes).index(row['split']))
  class_names, numbers = classes(path, table)
  repeated_rows.check(path, table)
  shape = len(table), max(1, *(len(row['labels']) for row in table))
  labels, weights = np.full(shape, -1, np.int32), np.zeros(shape, np.float32)
  for record, row in enumerate(table):
    of_row = [numbers[str(label)] for label in row['labels']]
    if len(set(of_row)) < len(of_row):   # once by name and once by number, say
      raise listing.wrong(path, row['line'], 'labels', row['labels'],
                          'each class once')
    labels[record, :len(of_row)] = of_row
    weights[record, :len(of_row)] = row['weights'] or 1
  weighted = any(row['weights'] is not None for row in table)
  listed = listing.make(
      os.path.dirname(path), [row['path'] for row in table], labels,
      weights if weighted else None, class_names, sizes)
  return dataclasses.replace(listed, sizes=dict(zip(
      split_names(path, sizes), sizes.values())))


def file_of(path: str) -> str:
  """Returns the absolute path of a manifest, without columns after a '?'."""
  return csv_tables.parts(listing.local(path))[0]


def split_name(split: str) -> str:
  """Returns the name under which the rows of a split are found."""
  return splits.ALIASES.get(split.lower(), split)


def split_names(path: str, given: Iterable[str]) -> list[str]:
  """Returns the name of each split of a manifest.

  Args:
    path: of the manifest.
    given: the different splits of its rows.

  Raises:
    UserError: if two of them are spellings of one name.
  """
  given = list(given)
  names = list(map(split_name, given))
  if len(set(map(str.lower, names))) < len(names):
    raise errors.UserError(
        f"{path!r} has the splits {given}; 'val' and 'valid' are names of "
        "'validation', and splits that differ only in case are one, so "
        'expected one spelling of each')
  return names


def rows(path: str) -> Iterator[Row]:
  """Yields the rows of a manifest one by one and checks each.

  A CSV file has a header, and ';' between several labels or weights. Other
  columns are guessed, or given as 'FILE.csv?path=PATTERN,label=COLUMN'. A JSONL
  file has an object on each line, with scalars or lists. Both have 'path' and
  'labels' or 'label', which may be empty; 'weights' and 'split' are optional.

  Raises:
    UserError: at the first row that is wrong, with its line.
  """
  path, columns = csv_tables.parts(listing.local(path))
  suffix = os.path.splitext(path)[1].lower()
  if suffix not in ('.csv', '.jsonl'):
    raise errors.UserError(f'data.name: {path!r} is not a manifest; expected '
                           'the suffix .csv or .jsonl')
  ignored: dict[str, None] = {}
  mended = 0
  with listing.open_text(path) as f:
    for line, cells in (csv_tables.rows(path, f, columns) if suffix == '.csv'
                        else _json_rows(path, f)):
      ignored.update((k, None) for k in cells if k not in _COLUMNS)
      row = _row(path, line, cells)
      found = _file(os.path.dirname(path), row['path'])
      mended += found != row['path']
      row['path'] = found
      yield row
  if mended:
    log.info("%r: %d paths have blanks around them, or '\\' for '/'; the files "
             'without them are read', path, mended)
  if ignored:
    log.info('%r: the columns %s are ignored (known: %s)', path,
             list(ignored)[:10], ', '.join(_COLUMNS))


def classes(path: str, table: Iterable[Row | dict[str, Any]]
            ) -> tuple[tuple[str, ...], dict[str, int]]:
  """Returns the class names of a manifest, and the class of each label.

  The class names are those of a file classes.txt in the same folder, one on
  each line. Without it, they are the numbers from 0 to the largest label if all
  labels are numbers; otherwise they are the labels, sorted.

  Args:
    path: of the manifest.
    table: rows with 'labels' and 'line'.

  Returns:
    (class names, {label as text: number of its class}).

  Raises:
    UserError: if classes.txt repeats a name, a label is no class, or no row
      has a label.
  """
  lines: dict[str, int] = {}   # the first line that has each label
  for row in table:
    for label in row['labels']:
      lines.setdefault(str(label), row['line'])
  beside = os.path.join(os.path.dirname(path), 'classes.txt')
  if os.path.exists(beside):
    with listing.open_text(beside) as f:
      names = [text.strip() for text in f if text.strip()]
    if len(set(names)) < len(names) or not names:
      raise errors.UserError(f'{beside!r}: {len(names)} names, of which '
                             f'{len(set(names))} are different; expected a '
                             'different name for each class')
  elif not lines:
    raise errors.UserError(f'{path!r}: no image has a label; expected the '
                           "names or numbers of classes in 'labels'")
  elif all(map(label_names.NUMBER.fullmatch, lines)):
    largest = max(lines, key=int)
    if int(largest) >= sources.MAX_CLASSES:
      raise listing.wrong(path, lines[largest], 'label', largest,
                          f'a class number below {sources.MAX_CLASSES}, or a '
                          'file classes.txt in the same folder')
    names = list(map(str, range(int(largest) + 1)))
  else:
    label_names.check(path, lines)
    names = sorted(lines)
  numbers = dict(zip(names, range(len(names))))
  for label, line in lines.items():
    if label not in numbers:
      number = label_names.NUMBER.fullmatch
      if not number(label) or int(label) >= len(names):
        raise listing.wrong(path, line, 'label', label, f'a name in {beside!r} '
                            f'or a number below {len(names)}')
      name = names[int(label)]
      if number(name) and int(name) != int(label):
        raise listing.wrong(path, line, 'label', label, 'a name in '
                            f'{beside!r}, whose class {int(label)} is {name!r}')
      numbers[label] = int(label)
  return tuple(names), numbers


def _file(folder, path):
  """The path of a file that exists, or `path` if none of its spellings does."""
  if path == path.strip() and '\\' not in path:
    return path
  spellings = (path, path.strip(), path.strip().replace('\\', '/'))
  return next((spelling for spelling in spellings
               if os.path.exists(os.path.join(folder, spelling))), path)


def _json_rows(path, f):
  for line, text in enumerate(f, 1):
    if text.strip():
      try:
        cells = json.loads(text)
      except (ValueError, RecursionError):
        cells = None
      if not isinstance(cells, dict):
        raise listing.wrong(path, line, 'row', text.strip(), 'a JSON object')
      yield line, cells


def _row(path, line, cells):
  """A row as `rows` yields it."""
  wrong = lambda *args: listing.wrong(path, line, *args)
  name, split = cells.get('path'), cells.get('split') or 'train'
  if not isinstance(name, str) or not name.strip() or _NO_PATH.search(name):
    raise wrong('path', name, 'the path of an image file')
  if not isinstance(split, str) or not _SPLIT.fullmatch(split.strip()):
    raise wrong('split', split, "a name such as 'train'")
  if 'label' in cells and 'labels' in cells:
    raise wrong('label', cells['label'], "either 'label' or 'labels'")
  if not {'label', 'labels'} & set(cells):
    raise wrong('row', cells, "'label' or 'labels', which may be empty")
  labels = _several(cells.get('labels', cells.get('label'))) or []
  if len(labels) > sources.MAX_LABELS:
    raise wrong('number of labels', len(labels),
                f'at most {sources.MAX_LABELS}')
  for label in labels:
    if (type(label) not in (int, str) or not str(label)   # bool is an int
        or _NEGATIVE.fullmatch(str(label))):
      raise wrong('label', label, 'the name of a class or its number from 0')
  if len(set(map(str, labels))) < len(labels):
    raise wrong('labels', labels, 'each label once')
  weights = _several(cells.get('weights'))
  try:
    weights = weights and [float(weight) for weight in weights]
    good = weights is None or len(weights) == len(labels) and all(
        0 <= weight <= 1 for weight in weights)
  except (TypeError, ValueError, OverflowError):
    good = False
  if not good:
    raise wrong('weights', weights, f"{len(labels)} in [0, 1], one for each "
                "label, separated by ';' in CSV")
  return Row(path=name, labels=labels, weights=weights, split=split.strip(),
             line=line)


def _several(value):
  """A scalar or a list as a list; None if nothing was given."""
  values = value if isinstance(value, list) else [value]
  values = [v.strip() if isinstance(v, str) else v for v in values]
  return None if values in ([None], ['']) else values
