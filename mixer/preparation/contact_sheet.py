"""An HTML page of near-duplicates: one file, with its images inside."""
import base64
import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import html
import io
import os
from typing import Any

import numpy as np
from PIL import Image

_THUMBNAIL_SIZE = 200   # longest side, in pixels

# The page's frame: its colours and text, for any page.
_FRAME_STYLE = '''
:root { color-scheme: light dark;
  --page: light-dark(#f6f7f9, #101216); --card: light-dark(#fff, #1a1d23);
  --line: light-dark(#dfe3e8, #2c313a); --text: light-dark(#1b1f24, #e8eaed);
  --dim: light-dark(#646c78, #98a1ae); --mark: light-dark(#3867d6, #7aa2ff) }
* { box-sizing: border-box; margin: 0 }
body { background: var(--page); color: var(--text); padding: 2.5rem 1.5rem;
  font: 15px/1.5 system-ui, sans-serif; max-width: 1400px; margin: auto }
h1 { font-size: 1.5rem; line-height: 1.25; font-weight: 650 }
p { color: var(--dim); max-width: 46rem; margin-top: .5rem }
'''

# Boxes with facts, and the pairs of images.
_STYLE = '''
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0 }
.fact, figure { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px }
.fact { padding: .75rem 1.1rem; max-width: 100%; overflow-x: auto }
.fact b { display: block; font-size: 1.5rem; font-weight: 650;
  font-variant-numeric: tabular-nums }
.fact span, figcaption, .bars { color: var(--dim); font-size: .8rem }
.bars { display: flex; align-items: flex-end; gap: 3px; height: 5rem;
  text-align: center; font-variant-numeric: tabular-nums }
.bars div { width: 1.6rem }
.bars i { display: block; background: var(--mark); border-radius: 3px 3px 0 0;
  min-height: 1px }
main { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)) }
figure { padding: .75rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem }
.pair img { width: 100%; aspect-ratio: 1; object-fit: contain;
  border-radius: 6px; background: light-dark(#eceff3, #0b0d10) }
figcaption { margin-top: .5rem; line-height: 1.4 }
figcaption * { display: block; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap }
figcaption b { color: var(--text); font-weight: 600 }
'''

_BODY = '''<p>{about}</p>
<div class="facts">{facts}</div>
<main>
{pairs}
</main>
'''

_PAIR = '''<figure>
<div class="pair"><img alt="removed" src="{left}"><img alt="its match"
 src="{right}"></div>
<figcaption><b>{distance} bits, {against}{more}</b>
<span title="{name}">{short}</span><span title="{match}">{match_short}</span>
</figcaption>
</figure>'''


def make_page(source: str, removed: Sequence[Mapping[str, Any]], *,
              searched: int, distance: int, most_pairs: int,
              thumbnails: Callable[[Mapping[str, Any]], tuple[str, str]]
              ) -> str:
  """Returns an HTML page that shows the removed images beside their matches.

  Args:
    source: the name of the set that was searched.
    removed: the lines of removed.jsonl.
    searched: number of records that were searched.
    distance: the largest number of bits in which duplicates differ.
    most_pairs: how many pairs to show at most, the least alike ones: among them
      are the images that were removed by mistake, if there are any.
    thumbnails: gives for a line the data URIs of the image and of its match.
  """
  shown = sorted(removed, key=lambda r: (-r['distance'], r['record']))
  shown = shown[:most_pairs]
  counts = collections.Counter(r['against'] for r in removed)
  facts = [_fact(searched, 'records searched'),
           *(_fact(n, f'look like {name}') for name, n in counts.items()),
           _histogram([r['distance'] for r in removed], distance)]
  about = (
      f'The left image of each pair is a record of {source}, the right one is '
      'the nearest test image: their hashes differ in at most '
      f'{distance} of 128 bits. The least alike pairs come first: check these. '
      f'The page shows {len(shown):,} of {len(removed):,} pairs; removed.jsonl '
      'lists all of them.')
  body = _BODY.format(
      about=html.escape(about), facts='\n'.join(facts),
      pairs='\n'.join(_pair(line, *thumbnails(line)) for line in shown))
  return _page(f'{len(removed):,} near-duplicates in {source}', body, _STYLE)


def thumbnail(pixels_HWC: np.ndarray) -> str:
  """Returns a small JPEG of an image uint8 [H, W, 1 or 3], as a data URI."""
  image = Image.fromarray(pixels_HWC.squeeze(-1) if pixels_HWC.shape[-1] == 1
                          else pixels_HWC)
  image.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
  out = io.BytesIO()
  image.save(out, 'JPEG', quality=85)
  return 'data:image/jpeg;base64,' + base64.b64encode(out.getvalue()).decode()


def _page(title: str, body: str, style: str) -> str:
  """Returns a whole HTML page that loads nothing from elsewhere.

  Args:
    title: plain text, shown in the window and as the heading.
    body: HTML that follows the heading.
    style: CSS for the body.
  """
  title = html.escape(title)
  return f'''<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_FRAME_STYLE.rstrip()}{style}</style>
<h1>{title}</h1>
{body}</html>
'''


def _fact(number: int, what: str) -> str:
  """Returns a box with a number and what it counts."""
  return (f'<div class="fact"><b>{number:,}</b><span>{html.escape(what)}</span>'
          '</div>')


def _histogram(distances: Iterable[int], most: int) -> str:
  """Returns a box with a bar for each distance: how many pairs have it."""
  counts = collections.Counter(distances)
  highest = max(counts.values(), default=1)
  bars = ''.join(
      f'<div title="{counts[d]:,} pairs"><i style="height:'
      f'{3 * counts[d] / highest:.2f}rem"></i>{d}</div>'
      for d in range(most + 1))
  return (f'<div class="fact"><div class="bars">{bars}</div>'
          '<span>bits that differ</span></div>')


def _pair(line: Mapping[str, Any], left: str, right: str) -> str:
  """Returns a figure of two images with their names below."""
  name, match = html.escape(line['name']), html.escape(line['match_name'])
  others = line['matches'] - 1
  more = f', {others} more match' + ('es' if others > 1 else '')
  return _PAIR.format(
      left=left, right=right, distance=line['distance'],
      against=html.escape(line['against']), more=more if others else '',
      name=name, short=os.path.basename(name),
      match=match, match_short=os.path.basename(match))
