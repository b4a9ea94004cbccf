"""Finds labels of a manifest that are probably not what its author meant.

None of it applies to manifests with a file classes.txt, which says what the
classes are.
"""
import collections
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import re
import unicodedata

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
  for one, other in _same(lines, lambda x: unicodedata.normalize('NFC', x)):
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
  alike = list(_same(lines, _loosely))
  say([other for _, other in alike], '%r is another class than %r, although '
      'only case, spaces or Unicode differ (and %d more such pairs)',
      alike[0][0] if alike else '', len(alike) - 1)
  joined = list(_joined(lines))
  say(joined, "%r is read as one class, and so are %d more that look like "
      "several; separate several labels by ';'", len(joined) - 1)


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
  for mark in '|,/+& ':
    parts = {x: {part.strip() for part in x.split(mark)} for x in labels}
    uses = collections.Counter(
        part for several in parts.values() for part in several)
    # Names such as 'red car', 'red bus', 'blue car' share words. With commas,
    # that is less likely than a list.
    known = lambda part: part in labels or mark == ',' and uses[part] > 1
    for label, several in parts.items():
      if len(several) > 1 and '' not in several and (
          mark == '|' or all(map(known, several))):
        yield label
