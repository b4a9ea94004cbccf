"""Finds labels that are probably not what the author of the data meant.

They are the names of class folders, or the labels of a manifest without a file
classes.txt, which would say what the classes are.
"""
import collections
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import os
import re
import unicodedata

from mixer.core import errors
from mixer.core.log import log
from mixer.data import listing

NUMBER = re.compile('[0-9]{1,18}')
_FRACTION = re.compile(r'-?[0-9]*\.[0-9]+')
_WHOLE = re.compile(r'[0-9]+\.0+')
_LIST = re.compile(r'''[\[{](.*['",0-9].*)?[\]}]''')
_MISSING = ('nan', 'none', 'null', 'na', 'n/a', '<na>', 'nat')


def check(path: str, lines: Mapping[str, int]) -> None:
  """Refuses labels that cannot be classes, and warns about doubtful ones.

  Args:
    path: of the manifest, for messages.
    lines: {label: the first line that has it}.

  Raises:
    UserError: if a label is a printed list or a whole number with a fraction,
      if one stands for a missing value among numbers, or if two are the same
      text in different Unicode forms.
  """
  def wrong(label, expected):
    return listing.wrong(path, lines[label], 'label', label, expected)

  missing = [x for x in lines if x.casefold() in _MISSING]
  numbers = sum(bool(NUMBER.fullmatch(x) or _FRACTION.fullmatch(x))
                for x in lines)
  if missing and numbers and numbers + len(missing) == len(lines):
    raise wrong(missing[0], 'a number as in the other rows, or an empty field '
                'for an image without labels')
  for label in lines:
    if _LIST.fullmatch(label):
      raise wrong(label, "a class; several labels are separated by ';' in CSV")
    if _WHOLE.fullmatch(label):
      raise wrong(label, f'a class number without a fraction, such as '
                  f'{label.partition(".")[0]!r}')
  same, alike = twins(lines)
  for one, other in same:
    raise wrong(other, f'{one!r} as in line {lines[one]}, which is the same '
                'text in another Unicode form')
  def say(found, what, *more):
    if found:
      log.warning('%r, line %d: ' + what, path, lines[found[0]], found[0],
                  *more)

  say(missing, '%r is read as the name of a class; leave the field empty for '
      'an image without labels')
  say([x for x in lines if _FRACTION.fullmatch(x)],
      '%r is read as the name of a class, although it is a number')
  say([other for _, other in alike], '%r is another class than %r, although '
      'only case, spaces or Unicode differ (and %d more such pairs)',
      alike[0][0] if alike else '', len(alike) - 1)
  joined = list(_joined(lines))
  say(joined, "%r is read as one class, and so are %d more that look like "
      "several; separate several labels by ';' in CSV, give a list in JSONL",
      len(joined) - 1)


def check_folders(where: str, names: Iterable[str]) -> None:
  """Refuses, or warns about, class folders that are probably one class.

  Args:
    where: the folder that holds them.
    names: of the class folders.

  Raises:
    UserError: if two are the same text in different Unicode forms.
  """
  same, alike = twins(names)
  for one, other in same:
    raise errors.UserError(
        f'data.name: the class folders {one!r} and {other!r} in {where!r} are '
        'the same text in two Unicode forms; put their images into one')
  if alike:
    log.warning('%r: %r is another class than %r, although only case, spaces '
                'or Unicode differ (and %d more such pairs)', where,
                alike[0][1], alike[0][0], len(alike) - 1)


def check_below(where: str, root: str, paths: Iterable[str]) -> None:
  """Warns if all classes hold the same folders and no images beside them.

  Args:
    where: the folder of the classes.
    root: the folder that the paths are relative to.
    paths: of all images of the classes.
  """
  below: dict[str, set[str]] = {}
  for path in paths:
    name, *rest = os.path.relpath(os.path.join(root, path), where).split(os.sep)
    if len(rest) < 2:
      return
    below.setdefault(name, set()).add(rest[0])
  first, *others = below.values()
  if len(first) > 1 and others and all(other == first for other in others):
    log.warning('%r: the classes are %s, and all of them hold the folders %s; '
                'if those are the classes, leave out the level above them',
                where, list(below)[:5], sorted(first)[:5])


def twins(names: Iterable[str]) -> tuple[list[tuple[str, str]],
                                         list[tuple[str, str]]]:
  """Returns the pairs of class names that are probably one class.

  Args:
    names: different names.

  Returns:
    (pairs of the same text in two Unicode forms; pairs that differ in case,
    spaces or Unicode only).
  """
  names = list(names)
  return list(_same(names, lambda x: unicodedata.normalize('NFC', x))), list(
      _same(names, _loosely))


def _loosely(label: str) -> str:
  folded = unicodedata.normalize('NFKC', label).casefold()
  return ' '.join(re.split(r'[\s_-]+', folded))


def _same(labels, form) -> Iterator[tuple[str, str]]:
  """Pairs of different labels that have the same form."""
  first: dict[str, str] = {}
  for label in labels:
    one = first.setdefault(form(label), label)
    if one != label:
      yield one, label


def _joined(labels: Collection[str]) -> Iterator[str]:
  """Labels whose parts are labels too, as if several were in one field."""
  for mark in '|;,/+& ':   # a ';' occurs in JSONL only
    parts = {x: {part.strip() for part in x.split(mark)} for x in labels}
    uses = collections.Counter(
        part for several in parts.values() for part in several)
    # Names such as 'red car', 'red bus', 'blue car' share words. With commas,
    # that is less likely than a list.
    known = lambda part: part in labels or mark == ',' and uses[part] > 1
    for label, several in parts.items():
      if len(several) > 1 and '' not in several and (
          mark in '|;' or all(map(known, several))):
        yield label
