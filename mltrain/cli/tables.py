"""Prints tables, fitted to a terminal or in full."""

import shutil
import sys
from collections.abc import Iterable, Sequence

from rich.cells import cell_len

from mltrain.redaction import harmless

_GAP = "  "


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text under column names."""
    grid = [[harmless(cell) for cell in row] for row in (columns, *rows)]
    if len(grid) == 1:
        print(f"{title}: none.")
        return
    print(f"{title} ({len(grid) - 1})")
    if fits(grid):
        _print_lines(grid)
    else:
        _print_folded(grid)


def table_that_fits(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], rest: str) -> None:
    """Print the columns that fit, and name the others.

    Args:
        title: heading of the table.
        columns: names of the columns, most important first.
        rows: the text of each column.
        rest: a sentence on how to see all columns.
    """
    rows = list(rows)
    fitting = len(columns)
    if sys.stdout.isatty():
        taken, fitting = 0, 0
        for width in _widths([columns, *rows]):
            taken += width + len(_GAP)
            if taken - len(_GAP) > _terminal():
                break
            fitting += 1
    fitting = max(2, fitting)
    table(title, columns[:fitting], [row[:fitting] for row in rows])
    if rows and fitting < len(columns):
        print(f"Too wide for this terminal: {', '.join(map(harmless, columns[fitting:]))}. {rest}")


def fits(grid: Sequence[Sequence[str]]) -> bool:
    """Whether each row fits on one line of the output."""
    return not sys.stdout.isatty() or sum(_widths(grid)) + len(_GAP) * (len(grid[0]) - 1) <= _terminal()


def shortest(identities: Sequence[str]) -> list[str]:
    """Return the shortest distinct prefixes, at least eight digits long."""
    length = next((n for n in range(8, 32) if len({one[:n] for one in identities}) == len(set(identities))), 32)
    return [one[:length] for one in identities]


def _terminal() -> int:
    return shutil.get_terminal_size().columns


def _widths(grid: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(cell_len, column)) for column in zip(*grid, strict=True)]


def _print_lines(grid: Sequence[Sequence[str]]) -> None:
    """Print one line per row, much faster than rich."""
    widths = _widths(grid)
    bold, normal = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
    for number, row in enumerate(grid):
        cells = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        line = _GAP.join(cells).rstrip()
        print(f"{bold}{line}{normal}" if number == 0 else line)


def _print_folded(grid: Sequence[Sequence[str]]) -> None:
    """Print the table with long cells wrapped over several lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    folded = Table(box=None, header_style="bold", pad_edge=False, padding=(0, len(_GAP), 0, 0))
    names = min(max(cell_len(row[0]) for row in grid), _terminal() // 2)
    for number, column in enumerate(grid[0]):
        folded.add_column(Text(column), overflow="fold", min_width=1 if number else names)
    for row in grid[1:]:
        folded.add_row(*map(Text, row))
    Console(highlight=False).print(folded)
