"""Bars for people at a terminal, and nothing for files and pipes."""

import io
import sys

import pytest

from mltrain.cli.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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
