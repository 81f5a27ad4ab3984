"""The log of a stage: no line of it is worth a training."""

import logging

import pytest

from mltrain.commands.result import Display, Outcome
from mltrain.pipelines.event_log import LoggedStage
from mltrain.run.opening import create
from mltrain.run.tracked import TrackedRun
from mltrain.tracking.client import TrackingClient
from tests.support.example_pipelines import TinyPipeline


@pytest.fixture
def run(server: TrackingClient) -> TrackedRun:
    return create(server, None, None, "stage", {})


def test_a_place_that_takes_no_line_ends_nothing_and_is_reported_once(
    run: TrackedRun, caplog: pytest.LogCaptureFixture
) -> None:
    (run.home / "stage.log").mkdir()
    with LoggedStage("first", Display()) as display:
        display.opened(run, "")
        display.waiting("one thing")
        logging.getLogger("mltrain").warning("a warning")
        display.ended(Outcome(run.id, 0, "done"))
    run.close("FINISHED", "done", 5)
    assert caplog.text.count("stage.log cannot be written") == 1


def test_warnings_stand_between_the_lines_until_the_stage_ends(run: TrackedRun) -> None:
    with LoggedStage("first", Display()) as display:
        display.opened(run, "")
        logging.getLogger("mltrain.anything").warning("a warning")
        display.waiting("one thing")
    logging.getLogger("mltrain").warning("of nobody")
    lines = (run.home / "stage.log").read_text().splitlines()
    run.close("FINISHED", "done", 5)
    assert [line[20:] for line in lines][1:] == ["WARNING a warning", "one thing"]


def test_the_log_of_a_stage_can_be_followed(tiny: TinyPipeline) -> None:
    started = tiny.start("--mode", "resume", "first.sleep=0.1")
    started.until("Training on")
    follower = tiny.start("--follow", "first")
    follower.until("epoch 1 of 3")
    assert started.child.code is None  # it came while the stage was still training
    assert started.wait().code == 0
    followed = follower.wait()
    assert followed.code == 0
    assert "epoch 3 of 3 " in followed.out
    artifact = tiny.artifacts(tiny.run_of("first")) / "stage.log"
    assert "epoch 3 of 3 " in artifact.read_text()
