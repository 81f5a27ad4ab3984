"""The log of a stage: no line of it is worth a training."""

import logging
from pathlib import Path

import pytest

from mltrain.commands.result import Outcome, Silence
from mltrain.pipelines.event_log import LoggedStage
from mltrain.run.opening import create
from mltrain.run.tracked import TrackedRun
from mltrain.tracking.client import connect
from tests.support.database import fresh_database


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns")
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return create(connect(f"sqlite:///{tmp_path / 'mlflow.db'}"), None, None, "stage", {})


def test_a_place_that_takes_no_line_ends_nothing_and_is_reported_once(
    run: TrackedRun, caplog: pytest.LogCaptureFixture
) -> None:
    (run.home / "stage.log").mkdir()
    with LoggedStage("first", Silence()) as display:
        display.opened(run, "")
        display.waiting("one thing")
        logging.getLogger("mltrain").warning("a warning")
        display.ended(Outcome(run.id, 0, "done", None, None, {}))
    run.close("FINISHED", "done", 5)
    assert caplog.text.count("stage.log cannot be written") == 1


def test_warnings_stand_between_the_lines_until_the_stage_ends(run: TrackedRun) -> None:
    with LoggedStage("first", Silence()) as display:
        display.opened(run, "")
        logging.getLogger("mltrain.anything").warning("a warning")
        display.waiting("one thing")
    logging.getLogger("mltrain").warning("of nobody")
    lines = (run.home / "stage.log").read_text().splitlines()
    run.close("FINISHED", "done", 5)
    assert [line[20:] for line in lines][1:] == ["WARNING a warning", "one thing"]
