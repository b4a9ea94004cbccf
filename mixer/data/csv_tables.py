"""Reads CSV files that list images, also those whose columns have other names.

Competitions give a file such as train.csv with the columns 'id' and 'breed',
and the photos as images/ID.jpg.
"""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import csv
import dataclasses
import itertools
import os
import re
from typing import Any
from typing import IO

from mixer.core import errors
from mixer.core.log import log
from mixer.data import listing
from mixer.images import decode_pillow

# What a column of labels is called, in lower case and without punctuation.
_LABELS = ('label', 'labels', 'class', 'classes', 'classname', 'classlabel',
           'classid', 'labelname', 'labelid', 'category', 'categories',
           'categoryid', 'target', 'targets', 'breed', 'species', 'diagnosis')
_KNOWN = ('path', 'weights', 'split')   # columns that are not labels
_BRACES = set('{}')
_COLUMN = re.compile(r'\{([^{}]*)\}')   # in a pattern of paths
_ROWS, _SHARE = 100, 0.9   # rows to look at, share of them whose files exist
_MOST_COLUMNS, _MOST_FOLDERS = 20, 20   # to look into; each look costs time
_EXAMPLE = "'?path=images/{id}.jpg,label=breed'"


@dataclasses.dataclass(frozen=True)
class Columns:
  """Where the paths and the labels of a table are.

  Attributes:
    path: the paths, with the names of columns in braces: 'images/{id}.jpg'.
    label: the column of the labels.
  """
  path: str
  label: str

  def renamed(self, row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row with 'path' and 'label' in place of the columns used."""
    used = {'labels', self.label,
            *set(_COLUMN.findall(self.path)) - {'split', 'weights'}}
    return dict({k: v for k, v in row.items() if k not in used},
                path=_fill(self.path, row), label=row[self.label])


def parts(path: str) -> tuple[str, str]:
  """Returns the file and the columns of 'FILE.csv?path=PATTERN,label=COLUMN'.

  The columns are '' if none are given.
  """
  match = re.fullmatch(r'(.*\.csv)\?(.*)', path, re.IGNORECASE | re.DOTALL)
  return (match[1], match[2]) if match else (path, '')


def rows(path: str, f: IO[str], given: str) -> Iterator[tuple[
    int, dict[str, Any]]]:
  """Yields (line, {column: text, or a list of labels or weights}).

  Args:
    path: of the file, for messages and to find the images.
    f: the file.
    given: which columns to read, as `parts` returns it.

  Raises:
    UserError: if it is no CSV, or the columns are not known.
  """
  reader, header = csv.reader(f, strict=True), None
  try:
    for cells in filter(None, reader):   # an empty line has no cells
      line = reader.line_num
      if header is None:
        header = [cell.strip() for cell in cells]
        columns = choose(path, header, given, line)
        if columns:
          log.info('%r: reading paths as %s, labels from column %r', path,
                   columns.path, columns.label)
        continue
      if len(cells) != len(header):
        raise listing.wrong(path, line, 'row', cells,
                            f'a cell for each of {header}')
      row: dict[str, Any] = dict(zip(header, cells))
      row = columns.renamed(row) if columns else row
      for key in {'label', 'labels', 'weights'} & set(row):
        row[key] = row[key].split(';')
      yield line, row
  except csv.Error as e:
    raise listing.wrong(path, reader.line_num, 'row', str(e), 'CSV') from e


def choose(path: str, header: Sequence[str], given: str = '',
           line: int = 1) -> Columns | None:
  """Returns which columns to read, or None for 'path' and 'label' or 'labels'.

  What is not given is guessed: the labels by the name of their column, the
  paths by the files that exist beside the table or one folder below.

  Raises:
    UserError: if a column is unknown, or the guess is not unique.
  """
  wrong = lambda why: listing.wrong(
      path, line, 'columns', list(header), "'path', 'labels' and optionally "
      f"'weights' and 'split', each once; {why}: give the columns after the "
      f'name of the file, such as {_EXAMPLE}')
  if len(set(header)) < len(header):
    raise wrong('a name is there twice')
  found = _given(path, header, given) if given else {}
  named = [x for x in ('labels', 'label') if x in header]
  if not found and 'path' in header and named:
    return None
  if 'path' not in found:
    paths = ['{path}'] if 'path' in header else _patterns(path, header)
    if len(paths) != 1:
      raise wrong(f'paths may be any of {paths[:5]}' if paths else
                  'no column names files beside it or one folder below')
    found['path'] = paths[0]
  if 'label' not in found:
    rest = [x for x in header if x not in (
        *_KNOWN, *_COLUMN.findall(found['path']))]
    usual = named[:1] or [x for x in rest if ''.join(
        filter(str.isalnum, x.lower())) in _LABELS] or (
            rest if len(rest) == 1 else [])
    if len(usual) != 1:
      raise wrong(f'labels may be any of {(usual or rest)[:5]}')
    found['label'] = usual[0]
  return Columns(**found)


def beside(path: str, load: Callable[[str], listing.Listing]
           ) -> listing.Listing:
  """Returns `load(path)`, and points out a CSV file that lists its images.

  Args:
    path: a folder of images.
    load: lists it.

  Raises:
    UserError: that of `load`, with the CSV file in or beside the folder.
  """
  root = listing.local(path)
  try:
    listed = load(path)
  except errors.UserError as e:
    more = advice(root) or advice(os.path.dirname(root))
    raise errors.UserError(f'{e}; {more}' if more else str(e)) from e
  if more := advice(root):
    log.info('%s', more)
  return listed


def advice(folder: str) -> str:
  """Returns which CSV file in a folder lists images, as advice; '' if none."""
  try:
    names = sorted(os.listdir(folder))
  except OSError:
    return ''
  for name in names:
    path = os.path.join(folder, name)
    if not name.lower().endswith('.csv') or name.startswith('.'):
      continue
    try:
      header = next(_read(path))
      columns = choose(path, header)
    except (errors.UserError, StopIteration):
      continue
    of = f'labels in {columns.label!r}' if columns else 'labels'
    return f'{path!r} lists images with {of}; to use it, give manifest:{path}'
  return ''


def _given(path, header, given):
  """{'path': pattern, 'label': column} as far as the user gives them."""
  found = {}
  for part in re.split(',(?=path=|label=)', given):
    key, _, value = part.partition('=')
    if key not in ('path', 'label') or not value or key in found:
      raise errors.UserError(f'data.name: {path!r} is followed by {given!r}; '
                             f'expected a form such as {_EXAMPLE}')
    if key == 'path' and value in header:
      value = f'{{{value}}}'
    for column in _COLUMN.findall(value) if key == 'path' else [value]:
      if column not in header:
        raise errors.unknown(f'data.name: column of {path!r}', column, header)
    found[key] = value
  if '{' not in found.get('path', '{'):
    raise errors.UserError(
        f'data.name: path={found["path"]!r} of {path!r} is the same for all '
        f'images; expected a column of {list(header)} in braces')
  return found


def _patterns(path, header):
  """The patterns of paths of which (nearly) all first files exist."""
  table = [dict(zip(header, cells))
           for cells in itertools.islice(_read(path), 1, _ROWS + 1)]
  folder = os.path.dirname(path)
  with os.scandir(folder) as entries:
    below = sorted(x.name for x in entries if x.is_dir()
                   and x.name[0] != '.' and not _BRACES & set(x.name))
  suffixes = [y for x in decode_pillow.SUFFIXES for y in (x, x.upper())]
  found: dict[str, str] = {}   # by the pattern in lower case
  columns = [x for x in header if x and not _BRACES & set(x)]
  for column, place, suffix in itertools.product(
      columns[:_MOST_COLUMNS], ('', *below[:_MOST_FOLDERS]), ('', *suffixes)):
    pattern = os.path.join(place, f'{{{column}}}{suffix}')
    exists = lambda row: bool(row.get(column)) and not (
        place and os.path.isabs(row[column])) and os.path.isfile(
            os.path.join(folder, _fill(pattern, row)))
    if not table or not exists(table[0]) or exists({column: column}):
      continue   # the last: a file without a header
    if sum(map(exists, table)) >= _SHARE * len(table):
      found.setdefault(pattern.lower(), pattern)
  return list(found.values())


def _read(path):
  """Yields the rows of a CSV file up to the first that is wrong."""
  with listing.open_text(path) as f:
    try:
      for cells in filter(None, csv.reader(f, strict=True)):
        yield [cell.strip() for cell in cells]
    except csv.Error:
      return


def _fill(pattern, row):
  return _COLUMN.sub(lambda match: row[match[1]], pattern)
