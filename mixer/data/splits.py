"""Which examples a split names: 'train', 'train[:99%]', 'train+test[1000:]'.

The syntax is TFDS's and works for every source. As in TFDS, percentages round
to the nearest example. TFDS mixes the examples of a split when it prepares
them, so that every slice has all classes. Folders, manifests and arrays often
lie class by class, so slices of them follow a fixed permutation.
"""
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import re
from typing import Any

import numpy as np

from mixer.core import errors
from mixer.core.log import log
from mixer.data import order

_MIXED = order.key(4)   # of the permutation that slices follow
_PART = re.compile(r'(?P<name>[^\[\]+]+)'
                   r'(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?')
HELD_OUT_EVERY = 10
ALIASES = {'val': 'validation', 'valid': 'validation'}   # in lower case


@dataclasses.dataclass(frozen=True)
class Piece:
  """Consecutive positions of one stored split, or every n-th of them.

  Attributes:
    first: number of the stored split's first record in its source.
    start: first position of the piece.
    stop: last position of the piece + 1.
    every: 0, or the period at which examples are held out.
    held: whether the piece consists of the held-out examples; otherwise it
      consists of all the others.
    mix: whether slices of the piece follow the fixed permutation.
    mixed: 0, or the number of positions of the piece that this one is a slice
      of; `start` and `stop` then count in the permuted positions.
  """
  first: int
  start: int
  stop: int
  every: int = 0
  held: bool = False
  mix: bool = False
  mixed: int = 0

  def records(self, position: np.ndarray) -> np.ndarray:
    """Returns the record numbers of positions in [0, stop - start)."""
    p = position + self.start
    if self.mixed:
      p = order.permute(p, self.mixed, _MIXED)
    if self.every and self.held:
      p = p * self.every
    elif self.every:
      p = p // (self.every - 1) * self.every + p % (self.every - 1) + 1
    return p + self.first


@dataclasses.dataclass(frozen=True)
class Split:
  """The examples of a split, as a sequence of pieces.

  A source may also store a `Split` under a name, where one `Piece` is not
  enough.
  """
  spec: str
  pieces: tuple[Piece, ...]
  start = 0

  @property
  def stop(self) -> int:
    """The number of examples, so that a Split can stand for a Piece."""
    return len(self)

  @property
  def mixed(self) -> bool:
    """Whether the split has a slice in the order of the fixed permutation."""
    return any(p.mixed for p in self.pieces)

  def __len__(self) -> int:
    return sum(p.stop - p.start for p in self.pieces)

  def records(self, position: np.ndarray) -> np.ndarray:
    """Returns the record numbers of positions, ints in [0, len)."""
    position = np.asarray(position)
    ends = np.cumsum([p.stop - p.start for p in self.pieces])
    which = np.searchsorted(ends, position, side='right')
    out = np.empty_like(position)
    for w in np.unique(which):
      here = which == w
      before = ends[w - 1] if w else 0
      out[here] = self.pieces[w].records(position[here] - before)
    return out

  def head(self, most: int | None) -> 'Split':
    """Returns the first `most` examples as a slice has them, which of folders,
    manifests and arrays are a random sample; the whole split for None."""
    if most is None or len(self) <= most:
      return self
    return Split(f'{self.spec}, {most} of {len(self)}',
                 tuple(p for p in _cut(self, 0, most) if p.stop > p.start))


Stored = Mapping[str, Piece | Split]   # the splits of a source, by name


def whole(sizes: Mapping[str, int], mix: bool = False) -> dict[str, Piece]:
  """Returns {name: Piece} of stored splits that follow one another.

  Args:
    sizes: {name: number of examples}, in the order of the records.
    mix: whether slices of a split follow the fixed permutation.
  """
  out, first = {}, 0
  for name, count in sizes.items():
    out[name] = Piece(first, 0, count, mix=mix)
    first += count
  return out


def hold_out(piece: Piece, every: int) -> tuple[Piece, Piece]:
  """Splits a whole piece into (the other examples, the held-out examples).

  An example is held out if its position is a multiple of `every`.
  """
  count = piece.stop - piece.start
  held = -(-count // every)
  return (dataclasses.replace(piece, stop=count - held, every=every),
          dataclasses.replace(piece, stop=held, every=every, held=True))


def wanted(sections: Mapping[str, Mapping[str, Any]],
           name: str | None) -> tuple[str, ...]:
  """Returns all splits that a config asks of a source.

  A source without held-out splits carves them from the training split, so it
  must know them all, also those that are not opened.

  Args:
    sections: as `evaluation.suite.sections` returns them.
    name: of the source.
  """
  return tuple(section[key] for section in sections.values()
               for key in ('split', 'held_out')
               if section.get('name') == name and section.get(key))


def carve(stored: Stored, wanted: Iterable[str], source: str) -> Stored:
  """Adds a held-out split if only one split is stored and one more is wanted.

  The added split consists of every tenth example; the stored split loses them.

  Args:
    stored: the splits of a source.
    wanted: all splits that will be asked of it, such as 'train[:99%]'.
    source: its name, for the log.

  Returns:
    `stored`, perhaps with one more split.
  """
  asked = {name for spec in wanted for name in names(spec)}
  missing = sorted(asked - set(stored))
  if (len(missing) != 1 or len(stored) != 1 or not asked & set(stored)
      or missing == ['train']):   # no one trains on part of a test set
    return stored   # `select` raises an error for an unknown name
  (name, piece), = stored.items()
  assert isinstance(piece, Piece)   # only sources of several splits have Splits
  rest, held = hold_out(piece, HELD_OUT_EVERY)
  log.info(
      '%s has no split %r: every tenth example of %r is held out as %r (%d), '
      'and the others (%d) stay in %r', source, missing[0], name, missing[0],
      held.stop, rest.stop, name)
  return {name: rest, missing[0]: held}


def select(stored: Stored, spec: str, key: str,
           wanted: Iterable[str] = ('train',)) -> Split:
  """Returns the split that `spec` names.

  Args:
    stored: the splits of a source.
    spec: such as 'train[:99%]+validation'.
    key: the config key that holds `spec`, for error messages.
    wanted: all splits that the run asks of the source, for error messages.

  Raises:
    UserError: if it cannot be parsed, is unknown, or is empty.
  """
  pieces: list[Piece] = []
  for name, start, stop in parts(stored, spec, key, wanted):
    pieces += _cut(stored[name], start, stop)
  out = Split(spec, tuple(p for p in pieces if p.stop > p.start))
  if not len(out):
    sizes = ', '.join(f'{n}: {p.stop - p.start}' for n, p in stored.items())
    raise errors.UserError(f'{key}: {spec!r} holds no examples; choose another '
                           f'part of the stored splits ({sizes})')
  return out


def parts(stored: Stored, spec: str, key: str, wanted: Iterable[str] = ()
          ) -> Iterator[tuple[str, int, int]]:
  """Yields (name of a stored split, first position, last + 1) of each part.

  Args:
    stored, spec, key, wanted: as for `select`.
  """
  for part in spec.split('+'):
    match = _PART.fullmatch(part.strip())
    if not match:
      raise errors.UserError(
          f"{key}: {spec!r} is not a split; expected a form such as 'train', "
          "'train[:99%]' or 'train+validation[1000:]'")
    if match['name'] not in stored:
      raise _unknown(key, match['name'], list(stored), wanted)
    count = stored[match['name']].stop - stored[match['name']].start
    start = _bound(match['start'], count, 0)
    yield match['name'], start, max(start, _bound(match['stop'], count, count))


def _cut(stored, start, stop):
  """The pieces of the positions [start, stop) of a Piece or a Split."""
  if isinstance(stored, Piece):
    count = stored.stop - stored.start
    part = stored.mix and stop - start < count
    return [dataclasses.replace(
        stored, start=stored.start + start, stop=stored.start + stop,
        mixed=stored.mixed or (count if part else 0))]
  out, before = [], 0
  for piece in stored.pieces:
    count = piece.stop - piece.start
    out += _cut(piece, *np.clip([start - before, stop - before], 0, count)
                .tolist())
    before += count
  return out


def _unknown(key, name, stored, wanted):
  """The error for a split that is not stored, with what to set instead."""
  error = errors.unknown(key, name, stored)
  known = ALIASES.get(name.lower(), name)
  if name == 'train' and set(stored) <= {'validation', 'test'}:
    return errors.UserError(f'{error}; without a training split, this data can '
                            'only be evaluated')
  if known in stored:
    return errors.UserError(f'{error}; expected {known!r}')
  if 'train' not in stored or known not in ('validation', 'test') or (
      not key.startswith('evals.')):
    return error
  trained = any('train' in names(spec) for spec in wanted)
  others = [f'--config.{key}={other}' for other in stored
            if other not in ('train', 'all') or not trained]
  others += ["--config.data.split='train[:90%]' and "
             f"--config.{key}='train[90%:]'"] * trained
  return errors.UserError(f'{error}; set {", or ".join(others)}')


def log_shared(one: Split, other: Split, key: str, what: str) -> None:
  """Warns if two splits of one source have examples in common.

  Args:
    one, other: the splits.
    key: the config section of `other`.
    what: what `one` is for, as the end of "these examples ... too".
  """
  if any(a.first == b.first and (a.every != b.every or a.held == b.held)
         for a in one.pieces for b in other.pieces):
    from mixer.data import overlap
    if n := overlap.count(one, other):
      log.warning('%s: %d of its %d examples %s too', key, n, len(other), what)


def names(spec: str) -> list[str]:
  """Returns the names in a split such as 'train[:99%]+validation'."""
  return [part.strip().split('[')[0] for part in spec.split('+')]


def _bound(text, count, default):
  if text is None:
    return default
  value = (round(int(text[:-1]) * count / 100) if text.endswith('%')
           else int(text))
  value = value + count if value < 0 else value
  return min(max(value, 0), count)
