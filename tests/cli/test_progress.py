"""Terminals show progress bars; files and pipes do not."""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from mltrain import CheckpointManager
from mltrain.cli import _options, app
from mltrain.cli.progress import Advance, progress
from mltrain.tracking.client import TrackingClient
from tests.support.workplace import Workplace

ERASED_LINE = "\r\x1b[2K"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Restore the root logger and all levels that programs set."""
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


@pytest.fixture
def advances(monkeypatch: pytest.MonkeyPatch, root_logger: logging.Logger) -> list[tuple[str, float, float | None]]:
    """What commands in this process report to their bars."""
    seen: list[tuple[str, float, float | None]] = []

    @contextmanager
    def recording(what: str, *, in_bytes: bool = False) -> Iterator[Advance]:
        yield lambda doing, amount, total=None: seen.append((doing, amount, total))

    for module in ("checkpoints", "model", "prune"):
        monkeypatch.setattr(f"mltrain.cli.{module}.progress", recording)
    return seen


@pytest.mark.parametrize("command", ["verify", "inspect", "pull --to model", "prune --keep Latest(1) --dry-run"])
def test_a_bar_moves_within_each_checkpoint_and_each_file(
    command: str,
    server: TrackingClient,
    advances: list[tuple[str, float, float | None]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    with CheckpointManager() as manager:
        for epoch in (1, 2):
            manager.save_epoch_checkpoint({"model": {"weight": torch.ones(3 * 2**18)}}, epoch)
    with suppress(SystemExit):
        app([*command.split(), manager.run.id], standalone_mode=False)
    totals = {total for _, _, total in advances}
    assert [sum(amount for _, amount, _ in advances)] == [*totals]
    assert len([amount for _, amount, _ in advances if amount == 2**20]) >= 3, "of the 3 MB of weights"


def test_the_bar_of_an_evaluation_moves_while_the_checkpoint_is_read(
    trained: tuple[Workplace, str],
    advances: list[tuple[str, float, float | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workplace, run_id = trained
    monkeypatch.chdir(workplace.folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", workplace.uri)
    monkeypatch.setenv("MLTRAIN_HOME", str(workplace.folder / "home"))
    app(["evaluate", run_id], standalone_mode=False)
    ((checkpoint, total),) = {(doing, total) for doing, _, total in advances}
    files = {file.name: file.stat().st_size for file in workplace.folder.glob(f"**/checkpoints/{checkpoint}/*")}
    assert total == sum(files.values()) - files["manifest.json"]
    assert 0.5 * total < sum(amount for _, amount, _ in advances) <= total
