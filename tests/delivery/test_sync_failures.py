"""``mltrain sync`` completes what a failure left."""

import shutil
from pathlib import Path

import pytest
import torch

from mltrain import CheckpointManager
from mltrain.delivery.journal import Journal
from mltrain.delivery.sync import Synced, sync
from mltrain.errors import TrackingError
from mltrain.ownership.run_folder import home_of
from mltrain.tracking.client import TrackingClient
from tests.support import places
from tests.support.backlogs import Away, at, left_behind


def test_a_status_that_the_server_did_not_take_is_set_by_the_next_sync(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = at(store)
    run_id = left_behind(server, 1)
    journal = Journal(home_of(server, run_id) / "journal.sqlite", 1)
    for key in ("mltrain.status", "mltrain.ended.1"):
        journal.log_item("tag", key, "finished")
    journal.close()

    def refuse(*_: object) -> None:
        raise TrackingError("made to fail")

    with monkeypatch.context() as patch:
        patch.setattr(TrackingClient, "set_terminated", refuse)
        assert [synced.failed for synced in sync(server)] == [True]
    assert server.run(run_id).info.status == "RUNNING"
    assert [synced.failed for synced in sync(server)] == [False]
    assert server.run(run_id).info.status == "FINISHED"
    assert list(sync(server)) == [Synced(run_id)]


def test_what_waits_for_a_deleted_run_is_counted_and_sent_once_it_is_restored(store: Path) -> None:
    server = at(store)
    run_id = left_behind(server, 1, 2)
    server.client.delete_run(run_id)
    [synced] = sync(server)
    assert (synced.run_id, synced.left, synced.failed) == (run_id, 2, True)
    assert f"2 records in {home_of(server, run_id)} cannot be sent" in synced.said
    server.client.restore_run(run_id)
    assert [synced.sent for synced in sync(server)] == [2]


def test_a_deleted_run_of_which_everything_was_sent_is_no_failure(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, run_id = at(store), staged_run(store, monkeypatch)
    server.client.delete_run(run_id)
    assert list(sync(server)) == [Synced(run_id)]
    server.client.restore_run(run_id)
    server.client.delete_tag(run_id, "mltrain.latest")
    server.client.delete_run(run_id)
    [synced] = sync(server)
    assert synced.failed
    assert "step-000000001-a01 in " in synced.said


def test_records_are_sent_and_the_run_is_closed_if_the_artifact_store_refuses(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, run_id = at(store), staged_run(store, monkeypatch)
    journal = Journal(home_of(server, run_id) / "journal.sqlite", 1)
    journal.add_points([("loss", 1, 0.5, 1_000)])
    journal.close()
    server.client.update_run(run_id, "RUNNING")
    with monkeypatch.context() as patch:
        away = places.behind(tmp_path / "away", Away).opened()
        patch.setattr("mltrain.delivery.sync.artifacts_of", lambda *_, **__: away)
        [synced] = sync(server)
    assert (synced.sent, synced.left, synced.failed) == (1, 0, True)
    assert "made to fail" in synced.said
    assert server.run(run_id).info.status == "FINISHED"


def staged_run(store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a finished run whose checkpoint is also staged here."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    with CheckpointManager() as manager:
        manager.save({"model": {"weight": torch.ones(2)}}, step=1)
    root = manager.run.artifacts.local_root
    assert root is not None
    shutil.copytree(root / "checkpoints", home_of(at(store), manager.run.id) / "staging")
    return manager.run.id
