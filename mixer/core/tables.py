"""Tables and progress bars on the terminal, printed with rich.

Cells are plain text: a part of a path that looks like rich's markup, such as
'[train]', is printed as it is.
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

# Columns of text in a pipe or a file, which have no width of their own.
_PLAIN_WIDTH = 100
_Item = TypeVar('_Item')


def styled(value: Any, style: str | None) -> text.Text:
  """Returns a cell in one of rich's styles, such as 'red' or 'dim'."""
  return text.Text(str(value), style or '')


def joined(*parts: text.Text | str) -> text.Text:
  """Returns a cell that joins parts, each of which may have its own style."""
  return text.Text.assemble(*parts)


def make(rows: Iterable[Sequence[Any]], columns: Sequence[str] = (), *,
         title: str = '', caption: str = '', left: int = 1) -> table.Table:
  """Returns a table.

  Args:
    rows: a sequence of cells for each row. A cell is made by `styled` or
      `joined`, or is any value that `str` can show.
    columns: headings; without them, all columns are left-aligned.
    title: a line above the table.
    caption: a line below the table.
    left: how many of the first columns are left-aligned. The others are
      right-aligned, for numbers.
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


def show(*tables: table.Table | text.Text,
         file: TextIO | None = None) -> None:
  """Prints tables, and lines of text as long as they are.

  Args:
    *tables: as `make` or `styled` returns them.
    file: where to print, by default standard output.
  """
  screen = console.Console(file=file)
  if not screen.is_terminal:
    screen.width = _PLAIN_WIDTH
  for one in tables:
    screen.print(one, soft_wrap=isinstance(one, text.Text))


def track(items: Iterable[_Item], title: str, total: int) -> Iterable[_Item]:
  """Yields items while a progress bar counts them.

  Args:
    items: what to yield.
    title: the text beside the bar.
    total: the number of items.
  """
  return progress.track(items, title, total=total)
