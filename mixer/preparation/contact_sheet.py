"""A contact sheet of near-duplicates: one HTML file that needs nothing else."""
import base64
import collections
import io
import os

from PIL import Image

from mixer.core import page

_SIDE = 200   # of a thumbnail, at most

_STYLE = '''
.bars { display: flex; align-items: flex-end; gap: 3px; height: 5rem;
  text-align: center; color: var(--dim); font-size: .8rem;
  font-variant-numeric: tabular-nums }
.bars div { width: 1.6rem }
.bars i { display: block; background: var(--mark); border-radius: 3px 3px 0 0;
  min-height: 1px }
figure { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .75rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem }
.pair img { width: 100%; aspect-ratio: 1; object-fit: contain;
  border-radius: 6px; background: light-dark(#eceff3, #0b0d10) }
figcaption { color: var(--dim); font-size: .8rem; margin-top: .5rem;
  line-height: 1.4 }
figcaption * { display: block; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap }
figcaption b { color: var(--text); font-weight: 600 }
'''

_PAIR = '''<figure>
<div class="pair"><img alt="removed" src="{left}"><img alt="its match"
 src="{right}"></div>
<figcaption><b>{distance} bits, {against}{more}</b>
<span title="{name}">{short}</span><span title="{match}">{match_short}</span>
</figcaption>
</figure>'''


def make(source, removed, *, searched, distance, show, thumbnails):
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
  facts = [page.fact(f'{searched:,}', 'records searched')]
  facts += [page.fact(f'{n:,}', f'look like {name}')
            for name, n in against.items()]
  about = (
      f'Left is a record of {source}, right the test image it is '
      f'nearest to: their hashes differ in at most {distance} of 128 bits. The '
      'least alike come first, as those to look at. Shown are '
      f'{len(shown):,} of {len(removed):,}; removed.jsonl has all.')
  return page.make(
      f'{len(removed):,} near-duplicates in {source}', about,
      [*facts, _bars([r['distance'] for r in removed], distance)],
      [_pair(r, *thumbnails(r)) for r in shown], _STYLE)


def thumbnail(pixels_HWC):
  """A data URI of an image uint8 [H, W, C]."""
  image = Image.fromarray(pixels_HWC.squeeze(-1) if pixels_HWC.shape[-1] == 1
                          else pixels_HWC)
  image.thumbnail((_SIDE, _SIDE))
  out = io.BytesIO()
  image.save(out, 'JPEG', quality=85)
  return 'data:image/jpeg;base64,' + base64.b64encode(out.getvalue()).decode()


def _bars(distances, most):
  """How many pairs differ in how many bits."""
  counts = collections.Counter(distances)
  top = max(counts.values(), default=1)
  bars = ''.join(
      f'<div title="{counts[d]:,} pairs"><i style="height:'
      f'{3 * counts[d] / top:.2f}rem"></i>{d}</div>' for d in range(most + 1))
  return page.card(f'<div class="bars">{bars}</div>', 'bits that differ')


def _pair(line, left, right):
  name, match = page.escape(line['name']), page.escape(line['match_name'])
  others = line['matches'] - 1
  return _PAIR.format(
      left=left, right=right, distance=line['distance'],
      against=page.escape(line['against']),
      more=f', {others} more match' if others else '',
      name=name, short=os.path.basename(name),
      match=match, match_short=os.path.basename(match))
