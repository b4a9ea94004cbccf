"""Recognises folders of splits by name: 'Training', 'val2017', 'test_set'."""
from collections.abc import Sequence
import re

from mixer.data import listing

# In lower case and without punctuation. The groups are those of
# `listing.STORED`.
_SPLIT = re.compile('(?:(train|training)|(val|valid|validation)|'
                    '(test|testing|eval|evaluation))'
                    '(?:set|data|images|[0-9]{4}){0,2}')


def of(name: str) -> str:
  """Returns the split that a folder is called after; '' for any other."""
  match = _SPLIT.fullmatch(''.join(filter(str.isalnum, name.lower())))
  return listing.STORED[(match.lastindex or 1) - 1] if match else ''


def alike(names: Sequence[str]) -> bool:
  """Returns whether classes seem to be splits: 'seg_train' and 'seg_test'.

  Either all names have a word for a split, and not all the same, or two names
  differ in such a word alone.
  """
  found: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
  for name in names:
    words = re.split(r'[\W_]+', name)
    rest = tuple(word.lower() for word in words if not of(word))
    found.setdefault(rest, set()).add(
        tuple(filter(None, map(of, words))))
  kinds = set().union(*found.values())
  return () not in kinds and len(kinds) > 1 or any(
      len(several - {()}) > 1 for several in found.values())
