"""Tables and progress bars on the terminal: rich's home.

Every cell is shown as it is: what looks like rich's own markup, such as
'[train]' in a path, stays text.
"""
from collections.abc import Iterable
from collections.abc import Sequence
from typing import Any
from typing import TextIO
from typing import TypeVar

from rich import box
from rich import console
from rich import progress
from rich import table
from rich import text

# Of a pipe or a file, which has no width of its own.
_PLAIN_WIDTH = 100
_Item = TypeVar('_Item')


def styled(value: Any, style: str | None) -> text.Text:
  """Returns a cell in one of rich's styles, such as 'red' or 'dim'."""
  return text.Text(str(value), style or '')


def joined(*parts: text.Text | str) -> text.Text:
  """Returns one cell made of parts that may have styles of their own."""
  return text.Text.assemble(*parts)


def make(rows: Iterable[Sequence[Any]], columns: Sequence[str] = (), *,
         title: str = '', caption: str = '', left: int = 1) -> table.Table:
  """Returns a table.

  Args:
    rows: one sequence of cells for each row; a cell that is not from `styled`
      or `joined` is shown as `str` makes it.
    columns: the headings; without any the table has no heading, and its columns
      are left-aligned.
    title: the line above.
    caption: the line below.
    left: how many of the first columns are left-aligned; the others are
      right-aligned, as numbers want it.
  """
  out = table.Table(
      box=box.SIMPLE_HEAD if columns else box.SIMPLE,
      title=text.Text(title) if title else None, title_justify='left',
      caption=text.Text(caption) if caption else None, caption_justify='left',
      show_header=bool(columns))
  for i, column in enumerate(columns):
    out.add_column(text.Text(column), justify='left' if i < left else 'right',
                   overflow='fold')
  for row in rows:
    out.add_row(*(cell if isinstance(cell, text.Text) else text.Text(str(cell))
                  for cell in row))
  return out


def show(*tables: table.Table, file: TextIO | None = None) -> None:
  """Prints tables, by default to standard output."""
  screen = console.Console(file=file)
  if not screen.is_terminal:
    screen.width = _PLAIN_WIDTH
  for one in tables:
    screen.print(one)


def track(items: Iterable[_Item], title: str, total: int) -> Iterable[_Item]:
  """Yields the items while a progress bar counts them."""
  return progress.track(items, title, total=total)
