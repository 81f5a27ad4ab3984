"""Tables for people: as wide as the terminal, never cut when the output goes to a file."""

import sys
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mltrain.redaction import harmless


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text under column names."""
    rows = list(rows)
    if not rows:
        print(f"{title}: none.")
        return
    grid = Table(title=f"{title} ({len(rows)})", box=None, title_justify="left", header_style="bold")
    for column in columns:
        grid.add_column(Text(harmless(column)), no_wrap=True, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(harmless(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 400
    Console(width=width, highlight=False).print(grid)
