"""``mltrain sync``: what waits on this machine is sent, run by run, whatever is wrong with one of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from mltrain import CheckpointManager
from mltrain.delivery.creation import RunSpec
from mltrain.delivery.journal import Journal
from mltrain.delivery.sync import Synced, sync
from mltrain.ownership.run_folder import home_of, known_home, remember_home
from mltrain.run.tracked import TrackedRun
from mltrain.tracking.client import TrackingClient
from tests.support.backlogs import at, left_behind, steps_of
from tests.support.database import fresh_database


def harm_journal(home: Path) -> None:
    (home / "journal.sqlite").write_bytes(b"\xff" * 5000)


def harm_lock(home: Path) -> None:
    (home / "lock").unlink(missing_ok=True)
    (home / "lock").mkdir()


def harm_birth(home: Path) -> None:
    (home / "birth.json").mkdir()


def harm_staging(home: Path) -> None:
    (home / "staging" / "step-000000001-a01").mkdir(parents=True)
    (home / "staging" / "step-000000001-a01" / "manifest.json").write_bytes(b"\xff")


def harm_home(home: Path) -> None:
    shutil.rmtree(home)
    home.write_text("no folder")


@pytest.mark.parametrize("harm", [harm_journal, harm_lock, harm_birth, harm_staging, harm_home])
def test_what_is_wrong_with_one_run_keeps_no_other_from_being_sent(harm: Callable[[Path], None], store: Path) -> None:
    server = at(store)
    runs = sorted(left_behind(server, 1, 2) for _ in range(3))
    harm(home_of(server, runs[0]))
    found = {synced.run_id: synced for synced in sync(server)}
    assert [steps_of(server, run_id) for run_id in runs[1:]] == [[1, 2], [1, 2]]
    if harm is harm_journal:
        assert found[runs[0]].failed
        assert "damaged" in found[runs[0]].said
    else:
        assert not any(found[run_id].failed for run_id in runs[1:])
    assert not any(synced.failed for synced in sync(server) if synced.run_id != runs[0])


def test_what_waits_for_another_address_is_sent_where_the_run_is_found(store: Path, tmp_path: Path) -> None:
    there = at(store)
    run_id = left_behind(there, 1, 2, 3)
    moved = tmp_path / "moved.db"
    store.rename(moved)
    here = at(moved)
    assert [synced.sent for synced in sync(here)] == [3]
    assert steps_of(here, run_id) == [1, 2, 3]
    assert known_home(here, run_id) == known_home(there, run_id)  # a resume finds what was staged there


def test_what_waits_for_another_store_is_listed_and_stays(store: Path, tmp_path: Path) -> None:
    there = at(store)
    run_id = left_behind(there, 1)
    record(there, run_id)
    fresh_database(tmp_path / "other.db", tmp_path / "other")
    here = at(tmp_path / "other.db")
    left_behind(here)
    waiting = [synced for synced in sync(here) if synced.address]
    assert [(synced.run_id, synced.left, str(store) in synced.address) for synced in waiting] == [(run_id, 1, True)]
    assert [synced.sent for synced in sync(there)] == [1]


def test_a_copy_of_a_database_that_is_still_there_is_another_store(store: Path, tmp_path: Path) -> None:
    there = at(store)
    run_id = left_behind(there, 1)
    record(there, run_id)
    shutil.copy(store, tmp_path / "copy.db")
    here = at(tmp_path / "copy.db")
    assert [synced.sent for synced in sync(here)] == [0]
    assert steps_of(here, run_id) == []
    assert known_home(here, run_id) != known_home(there, run_id)
    assert [synced.sent for synced in sync(here, address=f"sqlite:///{store}")] == [1]
    assert steps_of(here, run_id) == [1]


def test_a_run_that_was_never_created_is_created_at_another_address_when_that_is_named(
    store: Path, tmp_path: Path
) -> None:
    there = at(store)
    birth = RunSpec(None, "late", {})
    home = home_of(there, birth.id)
    birth.save(home)
    journal = Journal(home / "journal.sqlite", 1)
    journal.add_points([("loss", 1, 0.5, 1_000)])
    journal.close()
    record(there, birth.id)
    moved = tmp_path / "moved.db"
    store.rename(moved)
    here = at(moved)
    assert [(synced.run_id, synced.left) for synced in sync(here) if synced.address] == [(birth.id, 1)]
    created = next(synced for synced in sync(here, address=f"sqlite:///{store}"))
    assert steps_of(here, created.run_id) == [1]
    assert known_home(here, created.run_id) == home


def record(server: TrackingClient, run_id: str) -> None:
    from mltrain.ownership.run_folder import record_address

    record_address(server.uri, home_of(server, run_id))


def test_a_home_of_a_version_that_recorded_no_address_is_listed_too(store: Path, tmp_path: Path) -> None:
    run_id = left_behind(at(store), 1)
    store.unlink()
    fresh_database(tmp_path / "other.db", tmp_path / "other")
    [waiting] = sync(at(tmp_path / "other.db"))
    assert (waiting.run_id, waiting.left) == (run_id, 1)
    assert str(known_home(at(store), run_id).parent) in waiting.address


def test_a_live_run_sends_by_itself(store: Path) -> None:
    server = at(store)
    left_behind(server, 1)
    run_id = left_behind(server, 1)
    from mltrain.ownership.host_lock import take_lock

    lock = take_lock(home_of(server, run_id), run_id, take_over=False)
    found = {synced.run_id: synced for synced in sync(server)}
    lock.release()
    assert "by itself" in found[run_id].said
    assert "mltrain sync" in found[run_id].said  # which may hold the folder as well
    assert steps_of(server, run_id) == []


@pytest.mark.parametrize("harm", [harm_journal, harm_lock])
def test_what_is_wrong_with_a_home_does_not_keep_its_run_from_being_resumed(
    harm: Callable[[Path], None], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    with CheckpointManager() as manager:
        manager.save({"model": {"weight": torch.ones(2)}}, step=1)
    run_id = manager.run.id
    harm(home_of(at(store), run_id))
    with CheckpointManager(run_id) as again:
        assert again.load_latest_checkpoint() is not None
        again.save({"model": {"weight": torch.ones(2)}}, step=2)
    assert MlflowClient(f"sqlite:///{store}").get_run(run_id).info.status == "FINISHED"


def test_a_damaged_record_of_a_birth_does_not_keep_the_created_run_from_being_found(store: Path) -> None:
    from mltrain.run.preparation import created_as

    server = at(store)
    run_id = left_behind(server)
    born = home_of(server, "b" * 32)
    remember_home(run_id, born)
    (born / "birth.json").write_text("{")
    shutil.rmtree(born.parent / run_id)
    assert created_as(server, run_id) == run_id
    assert created_as(server, "b" * 32) == run_id


def test_a_newest_checkpoint_that_only_this_machine_has_is_sent_and_then_the_run_is_finished(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact store takes no checkpoint: a folder stands where its file would be."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    server = at(store)
    manager = CheckpointManager()
    run: TrackedRun = manager.run  # type: ignore[assignment]
    manager.save({"model": {"weight": torch.ones(2)}}, step=1)
    assert manager.wait(60)
    run.mark_only_local("step-000000001-a01", "FINISHED")
    manager.close("KILLED")
    assert server.run(run.id).info.status == "KILLED"
    journal = Journal(run.home / "journal.sqlite", 1)
    journal.log_item("tag", "a", "b")  # something to send
    journal.close()
    assert [synced.failed for synced in sync(server)] == [False]
    after = server.run(run.id)
    assert after.info.status == "FINISHED"
    assert after.data.tags["mltrain.status"] == "finished"
    assert not [key for key in after.data.tags if "only_local" in key or "when_sent" in key]


@pytest.mark.parametrize("before", [False, True], ids=["this sync uploads them", "a killed sync uploaded them"])
def test_the_newest_and_the_best_checkpoint_are_recorded_once_they_are_sent(
    before: bool, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoints of an outage: complete on this machine, and no tag tells of them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    server = at(store)
    with CheckpointManager(metric="val/loss") as manager:
        for step, loss in ((1, 0.5), (2, 0.25), (3, 0.75)):
            manager.save({"model": {"weight": torch.ones(2)}}, step=step, metrics={"val/loss": loss})
    run_id = manager.run.id
    root = manager.run.artifacts.local_root
    assert root is not None
    for step in (2, 3):
        name = f"step-{step:09d}-a01"
        (home_of(server, run_id) / "staging").mkdir(exist_ok=True)
        made, staged = root / "checkpoints" / name, home_of(server, run_id) / "staging" / name
        shutil.copytree(made, staged) if before else made.rename(staged)
    for key in ("mltrain.latest", "mltrain.best"):
        server.client.set_tag(run_id, key, "step-000000001-a01")
    uploaded = () if before else ("step-000000002-a01", "step-000000003-a01")
    assert [synced.uploaded for synced in sync(server)] == [uploaded]
    tags = server.run(run_id).data.tags
    assert (tags["mltrain.latest"], tags["mltrain.best"]) == ("step-000000003-a01", "step-000000002-a01")


def test_a_staged_checkpoint_that_another_store_may_have_is_not_called_waiting(store: Path, tmp_path: Path) -> None:
    there = at(store)
    run_id = left_behind(there)
    record(there, run_id)
    harm_staging(home_of(there, run_id))  # any folder that looks complete
    fresh_database(tmp_path / "other.db", tmp_path / "other")
    said = [synced.said for synced in sync(at(tmp_path / "other.db")) if synced.address]
    assert len(said) == 1
    assert "may lack" in said[0]
    assert "waits" not in said[0]


def test_nothing_is_written_twice(store: Path) -> None:
    server = at(store)
    run_id = left_behind(server, 1, 2)
    assert [synced.sent for synced in sync(server)] == [2]
    assert list(sync(server)) == [Synced(run_id)]
