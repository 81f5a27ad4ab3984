"""A run that a process writes to, against MLflow's own database."""

import json
import threading
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from mltrain import CheckpointManager
from mltrain.checkpoint.manifest import current_line
from mltrain.errors import RunHeld
from mltrain.ownership.attempts import ATTEMPTS_FILE
from mltrain.ownership.launcher import Launcher
from mltrain.ownership.lease import HEARTBEAT_SECONDS
from mltrain.run import adoption
from mltrain.run.opening import open_run
from mltrain.tracking.client import connect
from mltrain.tracking.tags import ATTEMPT_PREFIX
from tests.support.database import fresh_database
from tests.support.waiting import eventually, let_pass


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def state(step: int, value: float) -> dict[str, object]:
    return {"model": {"weight": torch.full((4,), value)}, "step": step}


def test_a_loop_that_rolls_itself_back_goes_on_as_the_next_attempt(uri: str, tmp_path: Path) -> None:
    manager = CheckpointManager(max_to_keep=10)
    for step in (1, 2, 3):
        manager.save(state(step, step))
    went_back = manager.load("step:1")
    assert went_back is not None
    manager.save(state(2, 20.0))
    manager.save(state(3, 30.0))
    run_id = manager.run.id
    manager.close()

    run = MlflowClient(uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert f"{ATTEMPT_PREFIX}2" in run.data.params
    assert run.data.tags["mltrain.rewound.2"] == "1"
    artifacts = Path(run.info.artifact_uri)
    attempts = json.loads((artifacts / ATTEMPTS_FILE).read_text())["attempts"]
    assert [(one["ordinal"], one["resumed_from"], one["why"]) for one in attempts] == [
        (1, None, "rolled back"),
        (2, "step-000000001-a01", "closed"),
    ]

    again = CheckpointManager(run_id)
    assert again.run.ordinal == 3
    latest = again.load_latest_checkpoint()
    assert latest is not None
    assert latest["model"]["weight"].eq(30.0).all()
    line = [(one.id.attempt, one.step) for one in current_line(again.checkpoints())]
    assert line == [(1, 1), (2, 2), (2, 3)]
    again.close()


def test_a_process_that_rolls_back_still_holds_its_run(uri: str) -> None:
    manager = CheckpointManager()
    manager.save(state(5, 1.0))
    manager.save(state(7, 1.0))
    manager.load("step:5")
    manager.save(state(6, 2.0))
    assert manager.run.ordinal == 2
    let_pass(1.5 * HEARTBEAT_SECONDS)  # the heartbeat asks who holds the run
    assert not manager.run.overtaken
    manager.close()
    (run,) = MlflowClient(uri).search_runs(["0"])
    assert json.loads(run.data.tags["mltrain.holder"])["attempt"] == 2


def test_a_request_that_comes_while_the_last_points_are_delivered_counts(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher that was asked as well calls the run FAILED; somebody has to put that right after it."""
    repaired: list[tuple[object, ...]] = []
    monkeypatch.setattr("mltrain.ownership.launcher.after", lambda *what: repaired.append(what))
    launcher = Launcher(str(MlflowClient(uri).create_run("0").info.run_id), 1)
    run = adoption.adopt(connect(), launcher, None, "project", {}, otherwise="project lr=1")
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
    assert client.get_run(run.id).info.status == "RUNNING"  # as whoever claimed it has it
    with pytest.raises(RunHeld):
        run.require_hold()


def test_a_claim_that_is_lost_writes_nothing_in_the_winners_name(uri: str) -> None:
    run, client = open_run(), MlflowClient(uri)
    client.log_param(run.id, f"{ATTEMPT_PREFIX}2", "{}")
    with pytest.raises(RunHeld):
        run.begin_attempt(None)
    assert run.overtaken
    run.close("FAILED", "overtaken", 60.0)
    assert client.get_run(run.id).info.status == "RUNNING"


def test_pictures_do_not_hold_up_the_end_and_what_is_lost_is_named(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each of these figures takes until the test lets it go."""
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
    assert "40 pictures were not made" in caplog.text
    assert "figure/0 of step 1, figure/1 of step 1" in caplog.text


def test_a_resume_warns_of_a_newer_checkpoint_that_another_host_alone_has(
    uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointManager() as manager:
        manager.save(state(1, 1.0))
    run_id = manager.run.id
    client = MlflowClient(uri)
    client.set_tag(run_id, "mltrain.newest_only_local", "step-000000002-a01 on another-host")
    client.set_tag(run_id, "mltrain.status_when_sent", "finished")
    CheckpointManager(run_id).close()
    assert "step-000000002-a01, is on another-host only" in caplog.text
    tags = client.get_run(run_id).data.tags
    assert not [key for key in tags if "only_local" in key or "when_sent" in key]


def test_the_first_metric_of_a_run_is_the_trainings_own(uri: str) -> None:
    """MLflow's comparison draws the metric that a run has first; the machine's come after it, with their own times."""
    run = open_run()
    eventually(lambda: run.outbox._early, "a record of the machine")
    run.log_metrics({"val/loss": 0.5}, 1)
    assert run.close("FINISHED", "done", 60.0)
    client = MlflowClient(uri)
    keys = list(client.get_run(run.id).data.metrics)
    assert keys[0] == "val/loss"
    assert "system/cpu_utilization_percentage" in keys
    times = [
        client.get_metric_history(run.id, key)[0].timestamp for key in ("system/cpu_utilization_percentage", "val/loss")
    ]
    assert times[0] <= times[1]


def test_what_the_machine_did_is_kept_where_nothing_was_measured(uri: str) -> None:
    run = open_run()
    eventually(lambda: run.outbox._early, "a record of the machine")
    run.close("FINISHED", "done", 60.0)
    assert "system/cpu_utilization_percentage" in MlflowClient(uri).get_run(run.id).data.metrics


def test_the_tags_of_a_run_do_not_grow_with_its_attempts(uri: str) -> None:
    """Nobody asks a run that has ended for its heartbeat, or for how attempts before the last one ended."""
    manager = CheckpointManager(metric="val/f1", mode="max")
    run_id = manager.run.id
    manager.save(state(1, 1.0), metrics={"val/f1": 0.5})
    manager.close()
    tags = MlflowClient(uri).get_run(run_id).data.tags
    own = {key for key in tags if key.startswith("mltrain.")}
    names = ("best", "best_by", "best_values", "birth", "ended.1", "holder", "latest", "retention", "status")
    assert own == {f"mltrain.{name}" for name in names}
    assert tags["mltrain.best_by"] == "max val/f1"
    for step in (2, 3):
        manager = CheckpointManager(run_id, metric="val/f1", mode="max")
        manager.save(state(step, 1.0))
        manager.close()
    tags = MlflowClient(uri).get_run(run_id).data.tags
    assert {key for key in tags if key.startswith("mltrain.")} == own - {"mltrain.ended.1"} | {"mltrain.ended.3"}
