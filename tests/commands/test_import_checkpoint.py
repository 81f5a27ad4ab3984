"""An import that fails or is interrupted leaves no run; the next one begins afresh."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from mltrain import CheckpointManager
from mltrain.cli.maintenance import import_
from mltrain.commands import import_checkpoint
from mltrain.commands.import_checkpoint import Report, import_file
from mltrain.errors import StateMismatch
from mltrain.tracking.client import connect
from tests.support import tiny
from tests.support.trainings_of_tiny import TINY


def runs() -> set[str]:
    client = MlflowClient()
    return {run.info.run_id for run in client.search_runs([one.experiment_id for one in client.search_experiments()])}


def interrupted(*given: object, **named: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def file(store: Path, tmp_path: Path) -> Path:
    net = tiny.build(tiny.Config()).step.parts()["model"]  # type: ignore[attr-defined]
    torch.save({"model": net.state_dict(), "epoch": 1}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


@pytest.mark.parametrize("project", [None, TINY], ids=["no project", "a project"])
def test_an_interrupted_import_leaves_no_run(project: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = runs()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CheckpointManager, "save", interrupted)
        import_file(file, connect(), project, {}, None)
    assert runs() == before
    report = import_file(file, connect(), project, {}, None)
    assert runs() - before == {report.run_id}


def test_weights_that_do_not_fit_leave_no_run(file: Path) -> None:
    before = runs()
    with pytest.raises(StateMismatch):
        import_file(file, connect(), TINY, {"hidden": 9}, None)
    assert runs() == before


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_stays_until_the_file_is_imported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, during = Terminal(), list[Any]()

    def imported(*given: object) -> Report:
        during.append(sys.stderr)
        return Report()

    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(import_checkpoint, "import_file", imported)
    import_(file, [], None, as_json=False)
    assert during != [shown], "a bar replaces the stream, to print above itself"
    assert "importing net.pth" in shown.getvalue()
