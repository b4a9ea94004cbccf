"""Finds the files that a manifest lists in several rows."""
from collections.abc import Iterable
from collections.abc import Mapping
import os
from typing import Any

from mixer.core.log import log
from mixer.data import listing


def check(path: str, table: Iterable[Mapping[str, Any]]) -> None:
  """Refuses files with different labels in a split, points out other repeats.

  Args:
    path: of the manifest.
    table: its rows.

  Raises:
    UserError: if a file has two rows of one split with different labels.
  """
  rows_of: dict[str, list[Mapping[str, Any]]] = {}
  for row in table:
    rows_of.setdefault(os.path.normpath(os.path.join(
        os.path.dirname(path), row['path'])), []).append(row)
  again = [found for found in rows_of.values() if len(found) > 1]
  for found in again:
    by_split: dict[str, Mapping[str, Any]] = {}
    for row in found:
      first = by_split.setdefault(row['split'], row)
      if set(map(str, first['labels'])) != set(map(str, row['labels'])):
        raise listing.wrong(
            path, row['line'], 'labels', row['labels'], 'the labels '
            f'{first["labels"]} as in line {first["line"]}, which has the same '
            "path; several labels of an image are one row, separated by ';' in "
            'CSV')
  for what, several in (
      ('in several splits', [
          r for r in again if r[0]['split'] != r[-1]['split']]),
      ('several times in a split', [
          r for r in again if len({x['split'] for x in r}) < len(r)])):
    if several:
      first, last = several[0][0], several[0][-1]
      log.warning('%r: %d images are listed %s, such as %r in lines %d and %d',
                  path, len(several), what, first['path'], first['line'],
                  last['line'])
