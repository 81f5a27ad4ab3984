"""Bars for people at a terminal, and nothing for files and pipes."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest

from mltrain.cli import _options
from mltrain.cli.progress import progress

ERASED_LINE = "\r\x1b[2K"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Give the root logger back as it was, with those whose levels the program sets."""
    names = (None, "mltrain", "projects", "alembic", "urllib3", "mlflow.store.db.utils")
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in names}
    handlers = root.handlers[:]
    root.handlers = []  # those of pytest are not closed
    yield root
    root.handlers = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_only_a_terminal_sees_a_bar(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress("looking", in_bytes=True) as advance:
        advance("step-000000003-a01", 500, 1000)
    shown = stream.getvalue()
    assert ("step-000000003-a01" in shown) == stream.isatty()
    assert bool(shown) == stream.isatty()


def test_a_bar_ends_with_what_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    with pytest.raises(ValueError, match="damaged"), progress("looking"):
        raise ValueError("damaged")
    assert sys.stderr is shown, "rich has put it back"


def test_a_warning_is_printed_above_the_bar_and_not_into_it(
    monkeypatch: pytest.MonkeyPatch, root_logger: logging.Logger
) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    _options(verbose=False, version=False)
    with progress("looking") as advance:
        advance("first", 1, 2)
        logging.getLogger("mltrain").warning("one is damaged")
    bar, _, after = shown.getvalue().partition("WARNING one is damaged")
    assert bar.endswith(ERASED_LINE), "the bar makes room for the line"
    assert "first" in after.partition("\n")[2], "and is drawn again below it"
