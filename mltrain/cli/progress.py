"""Progress bars for commands that take a while: on stderr, and only where that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mltrain.redaction import harmless

Advance = Callable[[str, float, float | None], None]
"""Called with what is being done, how much more of it is done, and how much there is in all, if that is known."""


@contextmanager
def progress(what: str, *, in_bytes: bool = False) -> Iterator[Advance]:
    """Show a bar that moves as the caller advances it; with an unknown total one that tells that the command lives.

    Args:
        what: is being done, until the first advance tells more.
        in_bytes: whether amounts are bytes.
    """
    if not sys.stderr.isatty():  # rich before 14.3 prints an empty line even for a bar that is switched off
        yield _unseen
        return
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeElapsedColumn())
    console = Console(file=sys.stderr, highlight=False)
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task(what, total=None)

        def advance(doing: str, amount: float, total: float | None = None) -> None:
            bars.update(bar, description=harmless(doing), advance=amount, total=total)

        yield advance


def _unseen(doing: str, amount: float, total: float | None = None) -> None:
    """Show nothing."""
