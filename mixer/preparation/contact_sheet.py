"""A contact sheet of near-duplicates: one HTML file that needs nothing else."""
import base64
import collections
import html
import io
import os

from PIL import Image

_SIDE = 200   # of a thumbnail, at most

_PAGE = '''<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark;
  --page: light-dark(#f6f7f9, #101216); --card: light-dark(#fff, #1a1d23);
  --line: light-dark(#dfe3e8, #2c313a); --text: light-dark(#1b1f24, #e8eaed);
  --dim: light-dark(#646c78, #98a1ae); --mark: light-dark(#3867d6, #7aa2ff) }}
* {{ box-sizing: border-box; margin: 0 }}
body {{ background: var(--page); color: var(--text); padding: 2.5rem 1.5rem;
  font: 15px/1.5 system-ui, sans-serif; max-width: 1400px; margin: auto }}
h1 {{ font-size: 1.5rem; line-height: 1.25; font-weight: 650 }}
p {{ color: var(--dim); max-width: 46rem; margin-top: .5rem }}
.facts {{ display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0 }}
.fact, figure {{ background: var(--card); border: 1px solid var(--line);
  border-radius: 10px }}
.fact {{ padding: .75rem 1.1rem; max-width: 100%; overflow-x: auto }}
.fact b {{ display: block; font-size: 1.5rem; font-weight: 650;
  font-variant-numeric: tabular-nums }}
.fact span, figcaption, .bars {{ color: var(--dim); font-size: .8rem }}
.bars {{ display: flex; align-items: flex-end; gap: 3px; height: 5rem;
  text-align: center; font-variant-numeric: tabular-nums }}
.bars div {{ width: 1.6rem }}
.bars i {{ display: block; background: var(--mark); border-radius: 3px 3px 0 0;
  min-height: 1px }}
main {{ display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)) }}
figure {{ padding: .75rem }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: .5rem }}
.pair img {{ width: 100%; aspect-ratio: 1; object-fit: contain;
  border-radius: 6px; background: light-dark(#eceff3, #0b0d10) }}
figcaption {{ margin-top: .5rem; line-height: 1.4 }}
figcaption * {{ display: block; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap }}
figcaption b {{ color: var(--text); font-weight: 600 }}
</style>
<h1>{title}</h1>
<p>{about}</p>
<div class="facts">{facts}</div>
<main>
{pairs}
</main>
</html>
'''

_PAIR = '''<figure>
<div class="pair"><img alt="removed" src="{left}"><img alt="its match"
 src="{right}"></div>
<figcaption><b>{distance} bits, {against}{more}</b>
<span title="{name}">{short}</span><span title="{match}">{match_short}</span>
</figcaption>
</figure>'''


def page(source, removed, *, searched, distance, show, thumbnails):
  """The whole page.

  Args:
    source: name of the set that was searched.
    removed: the lines of removed.jsonl.
    searched: records that were.
    distance: most bits in which duplicates differ.
    show: how many pairs, the least alike ones.
    thumbnails: a line -> data URIs of the image and its match.
  """
  shown = sorted(removed, key=lambda r: (-r['distance'], r['record']))[:show]
  against = collections.Counter(r['against'] for r in removed)
  facts = [_fact(n, f'look like {name}') for name, n in against.items()]
  bars = _bars([r['distance'] for r in removed], distance)
  about = (
      f'Left is a record of {html.escape(source)}, right the test image it is '
      f'nearest to: their hashes differ in at most {distance} of 128 bits. The '
      'least alike come first, as those to look at. Shown are '
      f'{len(shown):,} of {len(removed):,}; removed.jsonl has all.')
  return _PAGE.format(
      title=html.escape(f'{len(removed):,} near-duplicates in {source}'),
      about=about,
      facts='\n'.join([_fact(searched, 'records searched'), *facts, bars]),
      pairs='\n'.join(_pair(r, *thumbnails(r)) for r in shown))


def thumbnail(pixels_HWC):
  """A data URI of an image uint8 [H, W, C]."""
  image = Image.fromarray(pixels_HWC.squeeze(-1) if pixels_HWC.shape[-1] == 1
                          else pixels_HWC)
  image.thumbnail((_SIDE, _SIDE))
  out = io.BytesIO()
  image.save(out, 'JPEG', quality=85)
  return 'data:image/jpeg;base64,' + base64.b64encode(out.getvalue()).decode()


def _fact(number, what):
  return (f'<div class="fact"><b>{number:,}</b><span>{html.escape(what)}</span>'
          '</div>')


def _bars(distances, most):
  """How many pairs differ in how many bits."""
  counts = collections.Counter(distances)
  top = max(counts.values(), default=1)
  bars = ''.join(
      f'<div title="{counts[d]:,} pairs"><i style="height:'
      f'{3 * counts[d] / top:.2f}rem"></i>{d}</div>' for d in range(most + 1))
  return (f'<div class="fact"><div class="bars">{bars}</div>'
          '<span>bits that differ</span></div>')


def _pair(line, left, right):
  name, match = html.escape(line['name']), html.escape(line['match_name'])
  others = line['matches'] - 1
  return _PAIR.format(
      left=left, right=right, distance=line['distance'],
      against=html.escape(line['against']),
      more=f', {others} more match' if others else '',
      name=name, short=os.path.basename(name),
      match=match, match_short=os.path.basename(match))
