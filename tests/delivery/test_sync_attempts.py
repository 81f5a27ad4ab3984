"""``mltrain sync`` after several attempts: points that a later attempt replaced stay here, others are sent."""

import json
from pathlib import Path

import pytest
import torch

from mltrain import CheckpointManager
from mltrain.delivery.journal import Journal
from mltrain.delivery.sync import sync
from mltrain.ownership.attempts import ATTEMPTS_FILE
from mltrain.ownership.run_folder import home_of
from tests.support import places
from tests.support.backlogs import Away, at, left_behind, steps_of


def test_points_of_an_earlier_attempt_are_kept_while_the_artifact_store_is_away(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = at(store)
    run_id = left_behind(server, 1, 2)
    server.client.log_param(run_id, "mltrain.attempt.2", json.dumps({"attempt": 2}))
    attempts = {"attempts": [{"ordinal": 1}, {"ordinal": 2, "resumed_from": "step-000000002-a01"}]}
    server.client.log_dict(run_id, attempts, ATTEMPTS_FILE)
    with monkeypatch.context() as patch:
        away = places.behind(tmp_path / "away", Away).opened()
        patch.setattr("mltrain.delivery.sync.artifacts_of", lambda *_, **__: away)
        assert [(synced.failed, synced.dropped) for synced in sync(server)] == [(True, 0)]
    assert [(synced.sent, synced.dropped) for synced in sync(server)] == [(2, 0)]
    assert steps_of(server, run_id) == [1, 2]


@pytest.mark.parametrize(("branch", "sent"), [(None, [1, 2, 3]), ("step-000000002-a01", [1, 2])])
def test_points_of_an_attempt_are_kept_if_the_next_one_has_no_record(
    branch: str | None, sent: list[int], store: Path
) -> None:
    server = at(store)
    run_id = left_behind(server, 1, 2, 3)
    server.client.log_param(run_id, "mltrain.attempt.2", json.dumps({"attempt": 2}))
    attempts = [{"ordinal": 1}, *([{"ordinal": 2, "resumed_from": branch}] if branch is not None else [])]
    server.client.log_dict(run_id, {"attempts": attempts}, ATTEMPTS_FILE)
    assert [(synced.sent, synced.dropped) for synced in sync(server)] == [(len(sent), 3 - len(sent))]
    assert steps_of(server, run_id) == sent


@pytest.mark.parametrize(
    ("branch", "sent"),
    [("step-000000002-a01", [1, 2]), ("step-000000001-a02", [1, 2, 3]), (None, [])],
    ids=["it continues this attempt", "it continues the one without a record", "it begins afresh"],
)
def test_the_next_attempt_with_a_record_ends_the_points_of_an_attempt(
    branch: str | None, sent: list[int], store: Path
) -> None:
    server = at(store)
    run_id = left_behind(server, 1, 2, 3)
    for number in (2, 3):
        server.client.log_param(run_id, f"mltrain.attempt.{number}", json.dumps({"attempt": number}))
    attempts = [{"ordinal": 1}, {"ordinal": 3, "resumed_from": branch}]
    server.client.log_dict(run_id, {"attempts": attempts}, ATTEMPTS_FILE)
    assert [synced.dropped for synced in sync(server)] == [3 - len(sent)]
    assert steps_of(server, run_id) == sent


@pytest.mark.parametrize("which", ["best", "step:1", None])
@pytest.mark.parametrize("home", ["home", "home of another machine"])
@pytest.mark.parametrize("saves", [False, True])
def test_a_loop_that_only_reads_overtakes_nothing(
    saves: bool, home: str, which: str | None, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    server = at(store)
    with CheckpointManager() as manager:
        for step in (1, 2):
            manager.save({"model": {"weight": torch.ones(2)}}, step=step)
    run_id = manager.run.id
    journal = Journal(home_of(server, run_id) / "journal.sqlite", 1)
    journal.add_points(("loss", step, 0.5, 1_000 + step) for step in (1, 2, 3))
    journal.close()
    with monkeypatch.context() as patch:
        patch.setenv("MLTRAIN_HOME", str(tmp_path / home))
        with CheckpointManager(run_id) as reader:
            if which is not None:
                reader.load(which)
            if saves:
                reader.save({"model": {"weight": torch.ones(2)}}, step=5)
    branch = 1 if which == "step:1" else 2
    sent = list(range(1, branch + 1)) if home != "home" else []  # a loop here has these points in its checkpoint
    assert [synced.failed for synced in sync(server)] in ([False], [])
    assert steps_of(server, run_id) == (sent if saves else [1, 2, 3])


def test_a_resume_that_was_refused_overtakes_nothing(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mltrain.run.opening import resume

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    server = at(store)
    with CheckpointManager() as manager:
        manager.save({"model": {"weight": torch.ones(2)}}, step=1)
    run_id = manager.run.id
    server.client.set_tag(run_id, "mltrain.newest_only_local", "step-000000001-a01 on here")
    server.client.set_tag(run_id, "mltrain.status_when_sent", "finished")
    server.client.set_terminated(run_id, "KILLED")
    resume(server, run_id, take_over=False, launcher=None).withdraw("refused")
    journal = Journal(home_of(server, run_id) / "journal.sqlite", 1)
    journal.add_points([("loss", 7, 0.5, 1_000)])
    journal.close()
    assert [(synced.sent, synced.dropped) for synced in sync(server)] == [(1, 0)]
    assert server.run(run_id).info.status == "FINISHED"
