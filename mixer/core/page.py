"""Self-contained HTML pages in one style, light and dark, on any screen."""
from collections.abc import Iterable
import html

_STYLE = '''
:root { color-scheme: light dark;
  --page: light-dark(#f6f7f9, #101216); --card: light-dark(#fff, #1a1d23);
  --line: light-dark(#dfe3e8, #2c313a); --text: light-dark(#1b1f24, #e8eaed);
  --dim: light-dark(#646c78, #98a1ae); --mark: light-dark(#3867d6, #7aa2ff) }
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
main { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)) }
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
      --page, --card, --line, --text, --dim and --mark, which have a light and a
      dark variant.
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


def escape(text: object) -> str:
  """Returns plain text as HTML, also for use in a quoted attribute."""
  return html.escape(str(text))
