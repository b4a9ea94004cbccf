"""Self-contained HTML pages in one style, light and dark, on any screen."""
from collections.abc import Iterable
from collections.abc import Sequence
import html

_STYLE = '''
:root { color-scheme: light dark;
  --page: light-dark(#f6f7f9, #101216); --card: light-dark(#fff, #1a1d23);
  --line: light-dark(#dfe3e8, #2c313a); --text: light-dark(#1b1f24, #e8eaed);
  --dim: light-dark(#646c78, #98a1ae); --mark: light-dark(#3867d6, #7aa2ff);
  --bad: light-dark(#c8402f, #ff8a75) }
* { box-sizing: border-box; margin: 0 }
body { background: var(--page); color: var(--text); padding: 2.5rem 1.5rem;
  font: 15px/1.5 system-ui, sans-serif; max-width: 1400px; margin: auto }
h1 { font-size: 1.5rem; line-height: 1.25; font-weight: 650;
  overflow-wrap: anywhere }
p { color: var(--dim); max-width: 46rem; margin-top: .5rem;
  overflow-wrap: anywhere }
.facts { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0 }
.card { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .75rem 1.1rem; max-width: 100%;
  overflow-x: auto }
.card > b { display: block; font-size: 1.5rem; font-weight: 650;
  font-variant-numeric: tabular-nums }
.card > span { color: var(--dim); font-size: .8rem }
h2 { font-size: 1.1rem; font-weight: 650; margin-top: 1rem }
main, .grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)) }
.grid, section > .card, section > details { margin-top: .75rem }
section > .card, details > .card { width: fit-content }
.small { grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)) }
section { grid-column: 1 / -1; min-width: 0 }
figure { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; padding: .75rem; min-width: 0; break-inside: avoid }
figure img { border-radius: 6px; background: light-dark(#eceff3, #0b0d10) }
figure > img { display: block; width: 100%; aspect-ratio: 1;
  object-fit: contain }
figure svg { display: block; width: 100%; height: auto; fill: currentColor }
.pixels { image-rendering: pixelated }
figcaption { color: var(--dim); font-size: .8rem; margin-top: .5rem;
  line-height: 1.4 }
figcaption * { display: block; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap }
figcaption b { color: var(--text); font-weight: 600 }
table { border-collapse: collapse; font-size: .85rem;
  font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem; text-align: right; vertical-align: top;
  border-top: 1px solid var(--line) }
th { color: var(--dim); font-weight: 500 }
thead th { border-top: 0; white-space: nowrap }
th:first-child { padding-left: 0 }
.text :is(th, td) { text-align: left; overflow-wrap: anywhere }
.text th { white-space: nowrap }
tbody th, :is(th, td):first-child { text-align: left }
summary { cursor: pointer; color: var(--dim) }
@media (max-width: 480px) { body { padding: 1.25rem .75rem }
  .card { padding: .6rem .7rem } th, td { padding: .2rem .35rem }
  thead th { white-space: normal }
  .text th { white-space: normal; min-width: 7rem } }
@media print { :root { color-scheme: light }
  body { max-width: none; padding: 0; print-color-adjust: exact }
  h2 { break-after: avoid } .card { overflow: visible }
  tr { break-inside: avoid } }
'''


def make(title: str, about: str, facts: Iterable[str], items: Iterable[str],
         style: str = '') -> str:
  """Returns a page that needs no other file and no network.

  Args:
    title: the heading, plain text.
    about: a paragraph below it, plain text.
    facts: HTML of small cards in a row, as `fact` makes them.
    items: HTML of the page's main items. They are laid out in a grid with as
      many columns as the screen is wide enough for.
    style: CSS for what is in `facts` and `items`. It may use the colours
      --page, --card, --line, --text, --dim, --mark and --bad, which have a
      light and a dark variant.
  """
  return f'''<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}{style}</style>
<h1>{escape(title)}</h1>
<p>{escape(about)}</p>
<div class="facts">{"".join(facts)}</div>
<main>
{"".join(items)}
</main>
</html>
'''


def fact(value: str, label: str) -> str:
  """Returns a card with a large value and a label, both plain text."""
  return card(f'<b>{escape(value)}</b>', label)


def card(content: str, label: str) -> str:
  """Returns a card with HTML content and a plain-text label below it."""
  return f'<div class="card">{content}<span>{escape(label)}</span></div>'


def section(title: str, content: str, about: str = '') -> str:
  """Returns a part of a page as wide as the page.

  Args:
    title: its heading, plain text.
    content: HTML.
    about: a paragraph below the heading, plain text.
  """
  paragraph = f'<p>{escape(about)}</p>' if about else ''
  return f'<section><h2>{escape(title)}</h2>{paragraph}{content}</section>\n'


def table(rows: Iterable[Sequence[object]], columns: Sequence[str] = (),
          text: bool = False) -> str:
  """Returns a table in a card.

  Args:
    rows: the cells of each row, plain text; the first heads the row.
    columns: headings, plain text.
    text: whether all cells are text, which is left-aligned and wrapped; if not,
      those after the first are numbers.
  """
  head = ''.join(f'<th>{escape(column)}</th>' for column in columns)
  body = ''.join(
      f'<tr><th>{escape(first)}</th>'
      f'{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
      for first, *rest in rows)
  return (f'<div class="card"><table{" class=text" if text else ""}>'
          f'{f"<thead><tr>{head}</tr></thead>" if head else ""}'
          f'<tbody>{body}</tbody></table></div>')


def details(summary: str, content: str) -> str:
  """Returns HTML content that is shown on a click on a line of plain text."""
  return (f'<details><summary>{escape(summary)}</summary>{content}</details>')


def grid(figures: Iterable[str], small: bool = False) -> str:
  """Returns figures in as many columns as the screen is wide enough for."""
  return (f'<div class="grid{" small" if small else ""}">'
          f'{"".join(figures)}</div>')


def escape(text: object) -> str:
  """Returns plain text as HTML, also for use in a quoted attribute.

  Bytes of a file name that are not text are shown as '\\udcff'.
  """
  return html.escape(str(text).encode(errors='backslashreplace').decode())
