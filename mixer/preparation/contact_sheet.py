"""An HTML page of near-duplicates: one file, with its images inside."""
import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

from mixer.core import page

_STYLE = '''
.bars { display: flex; align-items: flex-end; gap: 3px; height: 5rem;
  text-align: center; color: var(--dim); font-size: .8rem;
  font-variant-numeric: tabular-nums }
.bars div { width: 1.6rem }
.bars i { display: block; background: var(--mark); border-radius: 3px 3px 0 0;
  min-height: 1px }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem }
.pair img { width: 100%; aspect-ratio: 1; object-fit: contain }
'''

_PAIR = '''<figure>
<div class="pair"><img alt="removed" src="{left}"><img alt="its match"
 src="{right}"></div>
<figcaption><b>{distance} bits, {against}{more}</b>
<span title="{name}">{short}</span><span title="{match}">{match_short}</span>
</figcaption>
</figure>'''


def make_page(source: str, removed: Sequence[Mapping[str, Any]], *,
              listed: str, searched: int, distance: int, most_pairs: int,
              thumbnails: Callable[[Mapping[str, Any]], tuple[str, str]]
              ) -> str:
  """Returns an HTML page that shows the removed images beside their matches.

  Args:
    source: the name of the set that was searched.
    removed: what was removed, as lines of JSON.
    listed: the name of the file that holds them.
    searched: number of records that were searched.
    distance: the largest number of bits in which duplicates differ.
    most_pairs: how many pairs to show at most, the least alike ones: among them
      are the images that were removed by mistake, if there are any.
    thumbnails: gives for a line the data URIs of the image and of its match.
  """
  shown = sorted(removed, key=lambda r: (-r['distance'], r['record']))
  shown = shown[:most_pairs]
  counts = collections.Counter(r['against'] for r in removed)
  facts = [page.fact(f'{searched:,}', 'records searched'),
           *(page.fact(f'{n:,}', f'look like {name}')
             for name, n in counts.items()),
           _histogram([r['distance'] for r in removed], distance)]
  about = (
      f'The left image of each pair is a record of {source}, the right one is '
      'the nearest test image: their hashes differ in at most '
      f'{distance} of 128 bits. The least alike pairs come first: check these. '
      f'The page shows {len(shown):,} of {len(removed):,} pairs; {listed} '
      'lists all of them.')
  return page.make(
      f'{len(removed):,} near-duplicates in {source}', about, facts,
      [_pair(line, *thumbnails(line)) for line in shown], _STYLE)


def _histogram(distances: Iterable[int], most: int) -> str:
  """Returns a box with a bar for each distance: how many pairs have it."""
  counts = collections.Counter(distances)
  highest = max(counts.values(), default=1)
  bars = ''.join(
      f'<div title="{counts[d]:,} pairs"><i style="height:'
      f'{3 * counts[d] / highest:.2f}rem"></i>{d}</div>'
      for d in range(most + 1))
  return page.card(f'<div class="bars">{bars}</div>', 'bits that differ')


def _pair(line: Mapping[str, Any], left: str, right: str) -> str:
  """Returns a figure of two images with their names below."""
  name, match = page.escape(line['name']), page.escape(line['match_name'])
  others = line['matches'] - 1
  more = f', {others} more match' + ('es' if others > 1 else '')
  return _PAIR.format(
      left=left, right=right, distance=line['distance'],
      against=page.escape(line['against']), more=more if others else '',
      name=name, short=os.path.basename(name),
      match=match, match_short=os.path.basename(match))
