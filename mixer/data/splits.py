"""Which examples a split means: 'train', 'train[:99%]', 'train+test[1000:]'.

The syntax is that of TFDS, for every source alike; percentages round to the
nearest example as there.
"""
import dataclasses
import re

import numpy as np

from mixer.core import errors
from mixer.core.log import log

_PART = re.compile(r'(?P<name>[^\[\]+]+)'
                   r'(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?')
HELD_OUT_EVERY = 10


@dataclasses.dataclass(frozen=True)
class Piece:
  """Consecutive positions of one stored split, perhaps thinned out.

  Attributes:
    first: number of the stored split's first record in its source.
    start, stop: the positions it spans.
    every: 0, or the period at which examples are held out.
    held: whether the piece is the held-out examples or all the others.
  """
  first: int
  start: int
  stop: int
  every: int = 0
  held: bool = False

  def records(self, position):
    """The record numbers of positions in [0, stop - start)."""
    p = position + self.start
    if self.every and self.held:
      p = p * self.every
    elif self.every:
      p = p // (self.every - 1) * self.every + p % (self.every - 1) + 1
    return p + self.first


@dataclasses.dataclass(frozen=True)
class Split:
  """The examples of a split as a sequence of pieces.

  A source may store one under a name too, where a `Piece` does not do.
  """
  spec: str
  pieces: tuple
  start = 0

  @property
  def stop(self):
    return len(self)

  def __len__(self):
    return sum(p.stop - p.start for p in self.pieces)

  def records(self, position):
    """The record numbers of positions, an int array in [0, len)."""
    position = np.asarray(position)
    ends = np.cumsum([p.stop - p.start for p in self.pieces])
    which = np.searchsorted(ends, position, side='right')
    out = np.empty_like(position)
    for w in np.unique(which):
      here = which == w
      before = ends[w - 1] if w else 0
      out[here] = self.pieces[w].records(position[here] - before)
    return out


def whole(sizes):
  """Named stored splits, in their order: {name: count} -> {name: Piece}."""
  out, first = {}, 0
  for name, count in sizes.items():
    out[name] = Piece(first, 0, count)
    first += count
  return out


def hold_out(piece, every):
  """A whole piece as (the others, the held-out ones): index % every == 0."""
  count = piece.stop - piece.start
  held = -(-count // every)
  return (Piece(piece.first, 0, count - held, every, False),
          Piece(piece.first, 0, held, every, True))


def carve(stored, wanted, source):
  """Adds a held-out split where `wanted` ones are missing and only one is
  stored: every tenth example, which the training split then leaves out."""
  asked = {name for spec in wanted for name in _names(spec)}
  missing = sorted(asked - set(stored))
  if len(missing) != 1 or len(stored) != 1 or not asked & set(stored):
    return stored   # an unknown name is an error of its own
  (name, piece), = stored.items()
  rest, held = hold_out(piece, HELD_OUT_EVERY)
  log.info(
      '%s has no split %r: every tenth example of %r is held out as %r (%d), '
      'and the others (%d) stay in %r', source, missing[0], name, missing[0],
      held.stop, rest.stop, name)
  return {name: rest, missing[0]: held}


def select(stored, spec, key):
  """The split that `spec` names, among the pieces `stored`.

  Raises:
    UserError: if it cannot be read, is unknown, or is empty.
  """
  pieces = []
  for part in spec.split('+'):
    match = _PART.fullmatch(part.strip())
    if not match:
      raise errors.UserError(
          f"{key}: {spec!r} is no split; expected forms such as 'train', "
          "'train[:99%]' or 'train+validation[1000:]'")
    if match['name'] not in stored:
      raise errors.unknown(key, match['name'], list(stored))
    piece = stored[match['name']]
    count = piece.stop - piece.start
    start = _bound(match['start'], count, 0)
    stop = max(start, _bound(match['stop'], count, count))
    pieces += _cut(piece, start, stop)
  out = Split(spec, tuple(p for p in pieces if p.stop > p.start))
  if not len(out):
    sizes = ', '.join(f'{n}: {p.stop - p.start}' for n, p in stored.items())
    raise errors.UserError(f'{key}: {spec!r} holds no examples ({sizes})')
  return out


def _cut(stored, start, stop):
  """The pieces of the positions [start, stop) of a Piece, or of a Split."""
  if isinstance(stored, Piece):
    return [dataclasses.replace(
        stored, start=stored.start + start, stop=stored.start + stop)]
  out, before = [], 0
  for piece in stored.pieces:
    count = piece.stop - piece.start
    out += _cut(piece, *np.clip([start - before, stop - before], 0, count)
                .tolist())
    before += count
  return out


def _names(spec):
  return [part.strip().split('[')[0] for part in spec.split('+')]


def _bound(text, count, default):
  if text is None:
    return default
  value = (round(int(text[:-1]) * count / 100) if text.endswith('%')
           else int(text))
  value = value + count if value < 0 else value
  return min(max(value, 0), count)
