"""Progress bars on stderr, if that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mltrain.redaction import harmless

if TYPE_CHECKING:
    from mltrain.checkpoint.manifest import Manifest
    from mltrain.checkpoint.verified_files import Arrived

Advance = Callable[[str, float, float | None], None]
"""Called with a description, the amount done since the last call, and the total if known."""


class _Closable:
    """Stream that ignores writes after a hangup."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text if the stream is open."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream if it is open."""
        with suppress(OSError, ValueError):
            self._stream.flush()


def bar_console() -> Console:
    """Return a console on stderr that outlives its terminal."""
    return Console(file=cast("TextIO", _Closable(sys.stderr)), highlight=False)


@contextmanager
def progress(what: str, *, in_bytes: bool = False) -> Iterator[Advance]:
    """Show a progress bar, which pulses without a known total.

    What the project prints meanwhile goes to stderr, so that stdout has the result of the command alone.

    Args:
        what: description until the first advance.
        in_bytes: whether amounts are bytes.
    """
    if not sys.stderr.isatty():  # rich before 14.3 prints an empty line even for a bar that is switched off
        with redirect_stdout(sys.stderr):
            yield _unseen
        return
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeElapsedColumn())
    with Progress(*columns, console=bar_console(), transient=True) as bars:
        bar = bars.add_task(what, total=None)

        def advance(doing: str, amount: float, total: float | None = None) -> None:
            bars.update(bar, description=harmless(doing), advance=amount, total=total)

        yield advance


def arrived_of(advance: Advance, total: int | None = None) -> "Arrived":
    """Return a function that advances a bar by checkpoint bytes.

    Args:
        advance: of the bar.
        total: bytes of all checkpoints. If ``None``, those of the checkpoint that is read.
    """

    def arrived(manifest: "Manifest", count: int) -> None:
        advance(manifest.name, count, manifest.size if total is None else total)

    return arrived


def _unseen(doing: str, amount: float, total: float | None = None) -> None:
    """Show nothing."""
