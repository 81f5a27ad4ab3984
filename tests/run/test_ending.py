"""The end of a run: what is delivered, what is lost, and the status."""

import threading

import pytest
from mlflow import MlflowClient

from mltrain.errors import RunHeld
from mltrain.ownership.launcher import Launcher
from mltrain.run import adoption
from mltrain.run.opening import open_run
from mltrain.tracking.client import connect
from mltrain.tracking.tags import ATTEMPT_PREFIX


def test_a_request_that_comes_while_the_last_points_are_delivered_counts(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupted launcher calls the run FAILED afterwards. The run has to be corrected."""
    repaired: list[tuple[object, ...]] = []
    monkeypatch.setattr("mltrain.ownership.launcher.after", lambda *what: repaired.append(what))
    launcher = Launcher(str(MlflowClient(uri).create_run("0").info.run_id), 1)
    run = adoption.adopt(connect(), launcher, None, "project", {}, fallback="project lr=1")
    drain, asked = run.outbox.sender.drain, []

    def interrupted_drain(seconds: float) -> bool:
        asked.append(True)
        return drain(seconds)

    monkeypatch.setattr(run.outbox.sender, "drain", interrupted_drain)
    assert run.close("FINISHED", "done", 60.0, interrupted=lambda: bool(asked))
    assert [what[1:] for what in repaired] == [(1, run.id, "FINISHED", 1)]


def test_a_run_that_was_closed_is_not_closed_again(uri: str) -> None:
    run = open_run()
    assert run.close("FINISHED", "done", 60.0)
    assert run.close("FAILED", "an error after it", 60.0)
    assert MlflowClient(uri).get_run(run.id).info.status == "FINISHED"


def test_a_claim_that_comes_while_the_run_is_closed_is_the_end_of_its_hold(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, client = open_run(), MlflowClient(uri)
    drain = run.outbox.sender.drain

    def overtaken_drain(seconds: float) -> bool:
        delivered = drain(seconds)
        client.log_param(run.id, f"{ATTEMPT_PREFIX}2", "{}")
        return delivered

    monkeypatch.setattr(run.outbox.sender, "drain", overtaken_drain)
    assert not run.close("FINISHED", "done", 60.0)
    assert client.get_run(run.id).info.status == "RUNNING"  # as the process that claimed it left it
    with pytest.raises(RunHeld):
        run.require_hold()


def test_pictures_do_not_hold_up_the_end_and_what_is_lost_is_named(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each of these figures takes until the test frees it."""
    go = threading.Event()

    class Slow:
        def savefig(self) -> None:
            raise AssertionError("it is drawn on a canvas of its own")

        def set_canvas(self, canvas: object) -> None:
            go.wait(60)
            raise OSError("too late")

    run = open_run()
    run.log_pictures({f"figure/{number}": Slow() for number in range(40)}, 1, 1)
    run.close("KILLED", "stopped", 1.0)  # it returns though no picture is made
    go.set()
    assert "40 pictures not made" in caplog.text
    assert "figure/0 of step 1, figure/1 of step 1" in caplog.text
