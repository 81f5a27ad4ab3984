"""A run in progress, against MLflow's own database."""

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from mltrain import CheckpointManager
from mltrain.checkpoint.manifest import current_line
from mltrain.errors import RunHeld, StorageError
from mltrain.ownership.attempts import ATTEMPTS_FILE
from mltrain.run.opening import open_run, resume
from mltrain.run.tracked import TrackedRun
from mltrain.tracking.client import connect
from mltrain.tracking.tags import ATTEMPT_PREFIX, HEARTBEAT_TAG
from tests.support.waiting import eventually


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


def heartbeat(uri: str) -> str:
    (run,) = MlflowClient(uri).search_runs(["0"])
    return str(run.data.tags.get(HEARTBEAT_TAG))


def test_a_process_that_rolls_back_still_holds_its_run(uri: str) -> None:
    manager = CheckpointManager()
    manager.save(state(5, 1.0))
    manager.save(state(7, 1.0))
    manager.load("step:5")
    manager.save(state(6, 2.0))
    assert manager.run.ordinal == 2
    before = heartbeat(uri)
    eventually(lambda: heartbeat(uri) != before, "a heartbeat, which asks who holds the run")
    assert not manager.run.overtaken
    manager.close()
    (run,) = MlflowClient(uri).search_runs(["0"])
    assert json.loads(run.data.tags["mltrain.holder"])["attempt"] == 2


def test_a_claim_that_is_lost_writes_nothing_in_the_winners_name(uri: str) -> None:
    run, client = open_run(), MlflowClient(uri)
    client.log_param(run.id, f"{ATTEMPT_PREFIX}2", "{}")
    with pytest.raises(RunHeld):
        run.begin_attempt(None)
    assert run.overtaken
    run.close("FAILED", "overtaken", 60.0)
    assert client.get_run(run.id).info.status == "RUNNING"


@pytest.mark.parametrize("saves", [True, False])
def test_a_resume_warns_of_a_newer_checkpoint_that_another_host_alone_has_and_only_a_save_replaces_it(
    saves: bool, uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    with CheckpointManager() as manager:
        manager.save(state(1, 1.0))
    run_id = manager.run.id
    client = MlflowClient(uri)
    client.set_tag(run_id, "mltrain.newest_only_local", "step-000000002-a01 on another-host")
    client.set_tag(run_id, "mltrain.status_when_sent", "finished")
    client.set_terminated(run_id, "KILLED")
    with CheckpointManager(run_id) as manager:
        manager.load("best")
        if saves:
            manager.save(state(3, 1.0))
    assert "step-000000002-a01, is only on another-host" in caplog.text
    run = client.get_run(run_id)
    assert bool([key for key in run.data.tags if "only_local" in key or "when_sent" in key]) != saves
    assert run.info.status == ("FINISHED" if saves else "KILLED")


def test_the_tags_of_a_run_do_not_grow_with_its_attempts(uri: str) -> None:
    """Old heartbeats and old endings of attempts are not needed."""
    manager = CheckpointManager(metric="val/f1", mode="max")
    run_id = manager.run.id
    manager.save(state(1, 1.0), metrics={"val/f1": 0.5})
    manager.close()
    tags = MlflowClient(uri).get_run(run_id).data.tags
    own = {key for key in tags if key.startswith("mltrain.")}
    names = ("at_best", "best", "best_by", "birth", "ended.1", "holder", "latest", "retention", "status")
    assert own == {f"mltrain.{name}" for name in names}
    assert tags["mltrain.best_by"] == "max val/f1"
    for step in (2, 3):
        manager = CheckpointManager(run_id, metric="val/f1", mode="max")
        manager.save(state(step, 1.0))
        manager.close()
    tags = MlflowClient(uri).get_run(run_id).data.tags
    resumed = own - {"mltrain.ended.1"} | {"mltrain.ended.3", "mltrain.resumed_from"}
    assert {key for key in tags if key.startswith("mltrain.")} == resumed


@pytest.mark.parametrize("which", ["latest", "step:1", None])
def test_a_loop_records_the_checkpoint_that_it_continues_from(which: str | None, uri: str) -> None:
    with CheckpointManager() as manager:
        for step in (1, 2):
            manager.save(state(step, step))
    run_id = manager.run.id
    origin = f"step-{1 if which == 'step:1' else 2:09}-a01"
    again = CheckpointManager(run_id)
    if which is not None:
        again.load(which)
    again.save(state(3, 3.0))
    again.load("best")  # later than this attempt's own save, so the attempt did not begin here
    again.close()

    run = MlflowClient(uri).get_run(run_id)
    attempts = json.loads((Path(run.info.artifact_uri) / ATTEMPTS_FILE).read_text())["attempts"]
    assert [one["resumed_from"] for one in attempts] == [None, origin]
    assert run.data.tags["mltrain.resumed_from"] == origin


def test_an_attempt_that_this_disk_does_not_record_at_once_is_no_reader(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CheckpointManager() as manager:
        manager.save(state(1, 1.0))
    again = CheckpointManager(manager.run.id)
    again.load()

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("mltrain.run.record.replace_file", full)
        again.save(state(2, 2.0))
    again.close()
    artifacts = Path(MlflowClient(uri).get_run(manager.run.id).info.artifact_uri)
    attempts = json.loads((artifacts / ATTEMPTS_FILE).read_text())["attempts"]
    assert [(one["resumed_from"], one["withdrawn"]) for one in attempts] == [
        (None, False),
        ("step-000000001-a01", False),
    ]


def test_a_load_after_a_takeover_keeps_the_record_of_the_other_process(uri: str) -> None:
    with CheckpointManager() as manager:
        manager.save(state(1, 1.0))
    run_id = manager.run.id
    again = CheckpointManager(run_id)
    again.load()
    assert isinstance(again.run, TrackedRun)
    other = resume(connect(), run_id, take_over=True, launcher=None)
    other.record.attempt()
    again.run.hold.lease.overtaken.set()  # as its next heartbeat does
    again.load("step:1")
    recorded = Path(MlflowClient(uri).get_run(run_id).info.artifact_uri) / ATTEMPTS_FILE
    assert [one["ordinal"] for one in json.loads(recorded.read_text())["attempts"]] == [1, 2, 3]
    again.close()
    other.close("FINISHED", "done", 5)
