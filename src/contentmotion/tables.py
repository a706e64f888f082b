"""Tables for people: on a terminal as wide as it allows, in a pipe whole; no number is ever cut."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from contentmotion.config.common import printable

WHOLE = 1_000_000  # columns that a pipe has
MAX_WORD = 24  # characters of a word that is not broken

Row = Sequence[str]


def print_table(
    headings: Row, rows: Sequence[Row], *, title: str = "", text: Collection[int] = (0,), console: Console | None = None
) -> None:
    """Prints a table.

    A column of text is wrapped where the terminal is narrow; a number is not. Where that is not enough, rows become
    columns, as many side by side as there is room for. Rows that begin with the same cell form a group.

    Args:
        headings: One a column; none at all for a table of names and values.
        rows: Cells, as many a row as there are headings. Line breaks in them are kept.
        title: A line above it.
        text: Numbers of the columns that hold text, which goes to the left; all others hold numbers.
        console: stdout when None.
    """
    console = console or Console()
    width = console.width
    if not console.is_terminal:
        console.width = WHOLE
    if title:
        console.print(title, style="italic", markup=False, highlight=False, soft_wrap=True)
    cells = [[printable(cell) for cell in row] for row in rows]
    for table in _fitting(list(headings), cells, set(text), console.width):
        console.print(table, highlight=False)
    console.width = width


def markdown_table(headings: Row, rows: Sequence[Row]) -> str:
    """A table as markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def number(value: float) -> str:
    """Three digits that count, no exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _fitting(headings: list[str], rows: list[list[str]], text: set[int], width: int) -> list[Table]:
    """The table; or, where it is too wide, several of the same rows turned on their sides."""
    lines = ([headings] if headings else []) + rows
    widths, fits = _widths(lines, text, width)
    if fits or not headings:
        return [_draw(headings, rows, text, widths)]
    names = [heading.replace("-\n", "").replace("\n", " ") for heading in headings]
    tables: list[Table] = []
    while rows:
        for count in range(len(rows), -1, -1):
            # One row whose text has to be broken, too, where not even one fits otherwise.
            turned = [list(line) for line in zip(names, *rows[: count or 1], strict=True)]
            words = {0} if count else {0, 1}
            widths, fits = _widths(turned, words, width)
            if fits or not count:
                tables.append(_draw(turned[0], turned[1:], words, widths))
                rows = rows[count or 1 :]
                break
    return tables


def _widths(lines: list[list[str]], text: set[int], width: int) -> tuple[list[int], bool]:
    """Of each column, in characters, so that the table fits, and whether it does: if not, they are the least.

    Numbers stay whole; text, and the first line's cells in every column, are broken between words.
    """
    columns = range(len(lines[0]))

    def least_of(cell: str, whole: bool) -> int:
        parts = cell.split("\n") if whole else cell.split()
        return max((cell_len(part) if whole else min(cell_len(part), MAX_WORD) for part in parts), default=1)

    least = [max(least_of(line[k], n > 0 and k not in text) for n, line in enumerate(lines)) for k in columns]
    widths = [max(cell_len(part) for line in lines for part in line[k].split("\n")) for k in columns]
    while sum(widths) + 3 * len(columns) + 1 > width:  # with its frame
        room, k = max((widths[k] - least[k], k) for k in columns)
        if room <= 0:
            return least, False
        widths[k] -= 1
    return widths, True


def _draw(headings: list[str], rows: list[list[str]], text: set[int], widths: list[int]) -> Table:
    groups = [row[0] for row in rows]
    grouped = len(set(groups)) < len(groups)
    table = Table(show_header=bool(headings), show_lines=any("\n" in cell for row in rows for cell in row))
    for k, width in enumerate(widths):
        justify = "left" if k in text else "right"
        table.add_column(Text(headings[k]) if headings else "", justify=justify, width=width, overflow="fold")
    for n, row in enumerate(rows):
        again = grouped and n > 0 and groups[n - 1] == row[0]
        if grouped and n > 0 and not again:
            table.add_section()
        table.add_row(*(Text("" if again and k == 0 else cell) for k, cell in enumerate(row)))
    return table
