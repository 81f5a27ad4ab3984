"""The public face of checkpoints, in a loop written by hand."""

import json
import logging
import math
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from torch import nn

from mltrain.checkpoint.manifest import Manifest, Point
from mltrain.checkpoint.policies import Best, Latest
from mltrain.checkpoint.policy_text import parse
from mltrain.errors import NoCheckpoint, StorageError, UnsupportedValue, UsageError
from mltrain.manager import CheckpointManager
from tests.support import places
from tests.support.runs import FolderRun, cut_short, epochs, state_at, train
from tests.support.values import identical


def test_a_loop_goes_on_where_another_one_stopped(run: FolderRun) -> None:
    with run.manager() as manager:
        assert manager.load_latest_checkpoint() is None
        train(manager, 1, 3)
    with run.next_attempt().manager() as manager:
        state = manager.load_latest_checkpoint()
        assert identical(state, state_at(3))
        train(manager, 4, 5)
        assert [manifest.name for manifest in manager.checkpoints()][-2:] == [
            "step-000000004-a02",
            "step-000000005-a02",
        ]
        loaded, newest = manager.checkpoints()[-3:-1]
    assert newest.parent == loaded.id
    assert newest.ancestry == (loaded.id,)


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 4)])
def test_the_best_is_derived_from_a_metric_and_a_mode(mode: str, best: int, run: FolderRun) -> None:
    with run.manager(metric="score", mode=mode) as manager:
        for epoch in (1, 2, 3, 4):
            manager.save_epoch_checkpoint(state_at(epoch), epoch, {"score": float(epoch)})
        manager.wait()
        assert manager.load_best_model()["epoch"] == best  # type: ignore[index]


@pytest.mark.parametrize("listener", ["a word", None])
def test_what_cannot_be_called_after_a_commit_is_refused(listener: Any, local: FolderRun) -> None:
    with local.manager() as manager, pytest.raises(UsageError, match="Expected a function"):
        manager.when_committed(listener)


def test_the_best_can_be_declared(run: FolderRun) -> None:
    with run.manager(max_to_keep=1) as manager:
        for epoch in range(1, 6):
            manager.save_epoch_checkpoint(state_at(epoch), epoch)
            if epoch in (1, 3):
                manager.save_best_model(state_at(epoch), 0.9, epoch)
        manager.wait()
        assert epochs(manager) == [3, 5], "one copy of its bytes, under the name of its epoch"
    with run.next_attempt().manager() as manager:
        assert manager.load_best_model()["epoch"] == 3  # type: ignore[index]


def marked(manager: CheckpointManager) -> list[tuple[int, bool, dict[str, float]]]:
    return [(m.epoch, m.best, m.metrics) for m in manager.checkpoints()]


def test_of_several_declared_bests_each_counts_with_the_metric_it_was_given(run: FolderRun) -> None:
    with run.manager(policy=Latest(1) | Best(2)) as manager:
        for epoch in range(1, 8):
            manager.save_epoch_checkpoint(state_at(epoch), epoch, {"train/loss": float(epoch)})
            if epoch in (1, 2, 5):
                manager.save_best_model(state_at(epoch), epoch / 10)
        manager.wait()
        expected = [
            (2, True, {"train/loss": 2.0, "val/loss": 0.2}),
            (5, True, {"train/loss": 5.0, "val/loss": 0.5}),
            (7, False, {"train/loss": 7.0}),
        ]
        assert marked(manager) == expected
        assert manager.best().epoch == 5  # type: ignore[union-attr]
    assert run.tags["mltrain.best"] == "step-000000005-a01"
    with without_staging(run).manager(policy=Latest(1) | Best(2)) as manager:
        assert marked(manager) == expected
        assert manager.load_best_model()["epoch"] == 5  # type: ignore[index]
        train(manager, 8, 9)
        assert epochs(manager) == [2, 5, 9]


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ({"step": 7}, {"step": 7}),
        ({"step": 7, "kind": "step"}, {"step": 7, "kind": "epoch", "epoch": 1}),
        ({"state": {"step": 7}}, {"step": 7, "kind": "interrupted"}),
        ({"epoch": 7}, {"state": {"epoch": 7}}),
        ({"epoch": 7, "kind": "epoch"}, {"step": 7}),
    ],
    ids=str,
)
def test_a_step_that_is_saved_again_as_the_best_is_the_best(
    first: dict[str, Any], again: dict[str, Any], local: FolderRun
) -> None:
    with local.manager(max_to_keep=1, mode="max") as manager:
        saved(manager, **first, metrics={"a": 1.0})
        saved(manager, **again, best=True, metrics={"val/loss": 0.5})
        saved(manager, **again, metrics={"b": 2.0})
        saved(manager, step=8)
        saved(manager, step=9)
        manager.wait()
        assert [(m.step, m.best, m.metrics) for m in manager.checkpoints()] == [
            (7, True, {"a": 1.0, "val/loss": 0.5, "b": 2.0}),
            (9, False, {}),
        ]


def test_what_an_older_version_declared_best_still_is(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 3, loss=float)
    run.place.files.write("best.json", b'{"checkpoint": "step-000000002-a01"}')
    with run.next_attempt().manager() as manager:
        assert manager.load_best_model()["epoch"] == 2  # type: ignore[index]
        manager.load_latest_checkpoint()
        manager.save_epoch_checkpoint(state_at(4), 4)
        manager.save_best_model(state_at(4), 0.5, 4)
        manager.wait()
        declared = json.loads(run.place.files.read("best.json"))
        assert declared["checkpoint"] == "step-000000004-a02", "which an older version reads"
        assert [m.epoch for m in manager.checkpoints() if m.best] == [2, 4]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"7", b'{"notes": 7}', b'{"notes": [{"checkpoint": 7}]}', b"[" * 100_000, b"\xff"]
)
def test_a_record_of_declarations_that_is_none_declares_nothing(content: bytes, local: FolderRun) -> None:
    local.place.files.write("best.json", content)
    with local.manager() as manager:
        train(manager, 1, 1)
        assert manager.best() is None


def test_what_is_gone_leaves_the_record_of_declarations(run: FolderRun) -> None:
    with run.manager(policy=Latest(1) | Best(1)) as manager:
        for epoch in range(1, 6):
            manager.save_epoch_checkpoint(state_at(epoch), epoch)
            manager.save_best_model(state_at(epoch), 0.1, epoch)
        manager.wait()
    rows = json.loads(run.place.files.read("best.json"))["notes"]
    assert len(rows) <= 2
    assert rows[-1] == {"checkpoint": "step-000000005-a01", "best": True, "metrics": [["val/loss", 0.1]]}


def test_a_best_model_that_was_not_saved_before_is_saved(run: FolderRun) -> None:
    with run.manager(max_to_keep=1) as manager:
        manager.save_best_model(state_at(2), {"val/iou": 0.5})
        manager.save_epoch_checkpoint(state_at(3), 3)
        manager.wait()
        assert [(m.epoch, m.best, m.metrics) for m in manager.checkpoints()] == [
            (2, True, {"val/iou": 0.5}),
            (3, False, {}),
        ]
        assert manager.load_best_model()["epoch"] == 2  # type: ignore[index]


def test_an_interrupted_state_is_the_newest_and_is_used_once(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 2)
        manager.save_interrupt_checkpoint(state_at(2, batch=7))
    for _ in range(2):  # loading does not destroy it
        with run.next_attempt().manager() as manager:
            assert manager.load_latest_checkpoint()["batch"] == 7  # type: ignore[index]
    resumed = run.next_attempt().next_attempt()
    with resumed.manager() as manager:
        manager.load_latest_checkpoint()
        train(manager, 3, 3)
        assert [(m.kind, m.epoch) for m in manager.checkpoints()] == [("epoch", 1), ("epoch", 2), ("epoch", 3)]
    assert [removal["rule"] for removal in resumed.removals] == ["interrupted, and superseded by a later commit"]


def test_there_is_no_latest_best_or_interrupted_at_first(run: FolderRun) -> None:
    with run.manager() as manager:
        assert [manager.load(which) for which in ("latest", "best", "interrupted")] == [None, None, None]
        assert (manager.best(), manager.checkpoints()) == (None, [])
        train(manager, 1, 1)
        assert manager.load_best_model() is None, "nothing was measured or declared"


def test_what_does_not_exist_is_named_with_what_does(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 2)
        for which in ("epoch:7", "step:7", "step-000000007-a01"):
            with pytest.raises(NoCheckpoint, match=r"epoch 1 \(step-000000001-a01\), epoch 2"):
                manager.load(which)
        with pytest.raises(UsageError, match="does not name a checkpoint"):
            manager.load("newest")


@pytest.mark.parametrize(("which", "epoch"), [("epoch:2", 2), ("step:3", 3), ("step-000000001-a01", 1), ("latest", 4)])
def test_a_state_is_loaded_by_epoch_step_or_name(which: str, epoch: int, run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 4)
        assert manager.load(which)["epoch"] == epoch  # type: ignore[index]


def test_two_saves_of_one_step_make_one_checkpoint(run: FolderRun) -> None:
    with run.manager() as manager:
        first = manager.save(state_at(1), step=10, kind="step")
        assert manager.save(state_at(1), step=10, kind="epoch") == first
        assert manager.save({**state_at(1), "step": 10}, kind="interrupted") == first
        manager.wait()
        assert len(manager.checkpoints()) == 1


def test_the_step_is_taken_from_the_state(run: FolderRun) -> None:
    with run.manager() as manager:
        names = [
            manager.save({"global_step": 5}),
            manager.save({"step": 7, "epoch": 2}),
            manager.save({"epoch": 9}),
            manager.save({"epoch": 9, "x": 1}, kind="interrupted"),
            manager.save({"x": 1}),
            manager.save({"x": 2}),
        ]
        manager.wait()
        assert [identity.step for identity in names] == [5, 7, 9, 10, 11, 12]
        assert [(m.step, m.epoch) for m in manager.checkpoints()] == [(5, 0), (7, 2), (9, 9), (11, 9), (12, 9)]


def test_an_epoch_in_the_middle_of_which_one_was_interrupted_is_counted_on(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 2)
        manager.save_interrupt_checkpoint({"model": {"w": torch.ones(1)}, "epoch": 2})
    with run.next_attempt().manager() as manager:
        manager.load_latest_checkpoint()
        assert manager.save_epoch_checkpoint(state_at(3), 3).step > 3
        assert manager.save_epoch_checkpoint(state_at(4), 4).step > 4
        manager.wait()
        assert epochs(manager) == [1, 2, 3, 4]


def test_a_rolled_back_run_goes_on_from_there_and_abandons_the_rest(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 5)
    back = run.next_attempt()
    with back.manager() as manager:
        manager.load("epoch:2")
        assert epochs(manager) == [1, 2, 3, 4, 5], "nothing goes before something newer is committed"
        train(manager, 3, 3)
        assert [manifest.name for manifest in manager.checkpoints()] == [
            *("step-000000001-a01", "step-000000002-a01", "step-000000003-a02")
        ]
    assert {removal["rule"] for removal in back.removals} == {"abandoned: the run was rolled back before it"}


NET = {"model": {"weight": torch.ones(3)}}
BACK: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([{"step": 100}, {"step": 200}], {"step": 50}, "step 50 cannot be saved after step 200"),
    ([{"step": 100}, {"step": 200}], {"step": 199, "kind": "interrupted"}, "step 199 .* after step 200"),
    ([{"step": 100}, {"step": 200}], {"step": 100, "best": True}, "step 100 .* after step 200"),
    ([{"state": {"step": 100}}, {"state": {"step": 200}}], {"state": {"step": 10}}, "step 10 .* after step 200"),
    ([{"state": {"global_step": 7}}], {"state": {"global_step": 3}, "epoch": 9}, "step 3 .* after step 7"),
    ([{"epoch": 1}, {"epoch": 5}], {"epoch": 1}, "epoch 1 .* after epoch 5"),
    ([{"epoch": 5}], {"state": {"epoch": 4}, "kind": "interrupted"}, "epoch 4 .* after epoch 5"),
]


def saved(manager: CheckpointManager, state: dict[str, Any] | None = None, **named: Any) -> None:
    manager.save({**NET, **(state or {})}, **named)


@pytest.mark.parametrize(("before", "back", "says"), BACK, ids=[str(back) for _, back, _ in BACK])
def test_without_a_load_nothing_goes_back_and_nothing_is_removed(
    before: list[dict[str, Any]], back: dict[str, Any], says: str, local: FolderRun
) -> None:
    with local.manager() as manager:
        for named in before:
            saved(manager, **named)
        with pytest.raises(UsageError, match=says):
            saved(manager, **back)
        saved(manager)
        manager.wait()
        assert len(manager.checkpoints()) == len(before) + 1
    assert (local.attempts, local.removals) == ([], [])
    later = local.next_attempt()
    with later.manager() as manager:  # a new process that has loaded nothing knows no better
        with pytest.raises(UsageError, match=r"load_latest_checkpoint\(\)"):
            saved(manager, **back)
        manager.wait()
        assert len(manager.checkpoints()) == len(before) + 1
    assert later.removals == []


def test_a_run_that_is_continued_without_a_load_goes_on_from_its_newest_checkpoint(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 3, loss=float)
    other = without_staging(run)
    with other.manager() as manager:
        with pytest.raises(UsageError, match="epoch 3 cannot be saved after epoch 3"):
            manager.save_epoch_checkpoint(state_at(3), 3)
        assert manager.load("interrupted") is None
        train(manager, 4, 5, loss=float)
        assert epochs(manager) == [1, 2, 3, 4, 5]
        assert manager.best().epoch == 1  # type: ignore[union-attr]
    assert other.removals == []


def test_a_smaller_step_than_the_loaded_one_is_no_way_back_either(run: FolderRun) -> None:
    with run.manager() as manager:
        for step in (100, 200, 300):
            manager.save(state_at(step), step=step)
        manager.load("step:200")
        with pytest.raises(UsageError, match="step 50 cannot be saved after step 200"):
            manager.save(state_at(50), step=50)
        manager.save(state_at(200, again=True), step=200)
        manager.wait()
        assert [m.name for m in manager.checkpoints()][-1] == "step-000000200-a02"


def test_a_loop_may_look_at_an_earlier_state_and_go_on(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 4, loss=lambda epoch: abs(epoch - 2))
        assert manager.load_best_model()["epoch"] == 2  # type: ignore[index]
        train(manager, 5, 6)
        assert epochs(manager)[-2:] == [5, 6]
        assert manager.load_latest_checkpoint()["epoch"] == 6  # type: ignore[index]
    with run.next_attempt().manager() as manager:
        assert manager.load_latest_checkpoint()["epoch"] == 6  # type: ignore[index]


def damage(run: FolderRun, step: int, file: str = "model.safetensors") -> None:
    path = f"checkpoints/step-{step:09d}-a01/{file}"
    run.place.files.write(path, run.place.files.read(path)[:-1])


def without_staging(run: FolderRun) -> FolderRun:
    """Return the next attempt as on another machine: what was staged here is not there."""
    other = run.next_attempt()
    other.staging = other.folder / "another machine"
    return other


@pytest.mark.parametrize("file", ["model.safetensors", "state.json", "manifest.json"])
def test_of_a_damaged_latest_the_one_before_is_used_and_that_is_said(
    file: str, run: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    with run.manager() as manager:
        train(manager, 1, 3)
    damage(run, 3, file)
    other = without_staging(run)
    with other.manager() as manager, caplog.at_level(logging.WARNING):
        assert manager.load_latest_checkpoint()["epoch"] == 2  # type: ignore[index]
    assert "step-000000003-a01 is damaged" in caplog.text
    assert "step-000000003-a01" in other.tags["mltrain.damaged.step-000000003-a01"]


def configured(manager: CheckpointManager, first: int, last: int) -> None:
    for epoch in range(first, last + 1):
        params = b'{"lr": %d}' % epoch
        manager.save(state_at(epoch), epoch=epoch, kind="epoch", extra={"params.json": params})
    assert manager.wait(60)


def changed(run: FolderRun, step: int, how: str) -> None:
    path = f"checkpoints/step-{step:09d}-a01/params.json"
    content = bytearray(run.place.files.read(path))
    if how == "missing":
        run.place.files.drop(path)
    else:
        content[3] ^= 1
        run.place.files.write(path, bytes(content))


@pytest.mark.parametrize("how", ["missing", "one bit"])
def test_a_configuration_is_verified_before_a_checkpoint_is_chosen(how: str, run: FolderRun) -> None:
    with run.manager() as manager:
        configured(manager, 1, 3)
    changed(run, 3, how)
    other = without_staging(run)
    with other.manager() as manager:
        manifest, (parts, params) = manager.reader.load_configured()
        assert (manifest.step, parts["epoch"], params) == (2, 2, {"lr": 2})
        manager.continue_from(manifest)
        assert manager.reader.load()[1]["epoch"] == 3, "a loop that reads no configuration needs none"
        peeked = manager.peek()
        assert peeked is not None
        assert peeked["epoch"] == 2, "the next save continues from it"
        train(manager, 3, 3)
        assert [m.name for m in manager.checkpoints()][2:] == ["step-000000003-a01", "step-000000003-a02"]
    assert "params.json" in other.tags["mltrain.damaged.step-000000003-a01"]
    with other.next_attempt().manager() as manager:  # only who finds a checkpoint damaged leaves it to be looked at
        manager.load_latest_checkpoint()
        train(manager, 4, 4)
        assert [m.name for m in manager.checkpoints()][2:] == ["step-000000003-a02", "step-000000004-a03"]


def test_a_checkpoint_without_a_configuration_is_passed_over_unless_it_was_imported(
    local: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    with local.manager() as manager:
        manager.save(state_at(1), step=1, kind="imported")
        assert manager.wait(60)
        assert manager.reader.load_configured()[1][1] is None
        configured(manager, 2, 2)
        manager.save(state_at(3), step=3)
        manager.save(state_at(4), step=4, extra={"params.json": b"[1]"})
        manager.save(state_at(5), step=5, extra={"params.json": b"{lr"})
        assert manager.wait(60)
        _, (parts, params) = manager.reader.load_configured()
        assert (parts["epoch"], params) == (2, {"lr": 2})
    assert "step-000000003-a01 has no params.json" in caplog.text
    assert "step-000000004-a01" in caplog.text
    with FolderRun(local.folder / "by hand").manager() as manager:
        train(manager, 1, 2)
        with pytest.raises(NoCheckpoint, match="has a configuration"):
            manager.reader.load_configured()


@pytest.mark.parametrize("file", ["model.safetensors", "manifest.json"])
def test_when_all_are_damaged_training_does_not_start_afresh(file: str, run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 2)
    damage(run, 1, file)
    damage(run, 2, file)
    with without_staging(run).manager() as manager, pytest.raises(NoCheckpoint, match="is usable"):
        manager.load_latest_checkpoint()


def test_a_damaged_one_that_was_asked_for_by_name_is_not_replaced_by_another(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 3)
    damage(run, 2)
    with without_staging(run).manager() as manager:
        for which in ("epoch:2", "step:2", "step-000000002-a01"):
            with pytest.raises(NoCheckpoint):
                manager.load(which)


def test_a_checkpoint_that_only_reached_this_disk_is_the_newest(tmp_path: Path) -> None:
    here = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts"))
    with here.manager() as manager:
        train(manager, 1, 1)
    cut_short(here, 1)
    with here.next_attempt().manager() as manager:
        assert manager.load_latest_checkpoint()["epoch"] == 1  # type: ignore[index]


def test_the_best_that_only_reached_this_disk_is_uploaded_before_the_next(tmp_path: Path) -> None:
    here = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts"))
    with here.manager(max_to_keep=1) as manager:
        train(manager, 1, 2, loss=lambda epoch: abs(epoch - 2))
    cut_short(here, 2)
    with here.next_attempt().manager(max_to_keep=1) as manager:
        assert manager.load_latest_checkpoint()["epoch"] == 2  # type: ignore[index]
        train(manager, 3, 4, loss=lambda epoch: abs(epoch - 2))
    with without_staging(here.next_attempt()).manager() as manager:
        assert epochs(manager) == [2, 4]
        assert manager.load_best_model()["epoch"] == 2  # type: ignore[index]


def test_what_only_reached_this_disk_and_is_no_longer_wanted_is_not_uploaded(tmp_path: Path) -> None:
    here = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts"))
    with here.manager(max_to_keep=1) as manager:
        train(manager, 1, 2, loss=float)
    cut_short(here, 2)
    second = here.next_attempt()
    with second.manager(max_to_keep=1) as manager:
        manager.load_latest_checkpoint()
        train(manager, 3, 3, loss=float)
        assert epochs(manager) == [1, 3]
    assert second.removals == []


def test_litter_of_an_interrupted_process_is_removed_at_the_start(run: FolderRun) -> None:
    litter = run.staging / "step-000000001-a01.0123abcd.tmp"
    litter.mkdir(parents=True)
    (litter / "model.safetensors").write_bytes(b"half")
    with run.manager():
        assert not litter.exists()


def test_what_the_server_has_not_acknowledged_travels_with_the_checkpoint(run: FolderRun) -> None:
    run.points = [Point(key="loss", step=step, value=0.5, timestamp=1000 + step) for step in (1, 2, 3)]
    with run.manager() as manager:
        manager.save(state_at(1), step=2)
        manager.wait()
        assert [point.step for point in manager.checkpoints()[0].pending] == [1, 2]


def test_after_each_commit_the_caller_is_told(run: FolderRun) -> None:
    told: list[tuple[int, int | None]] = []

    def committed(manifest: Manifest, best: Manifest | None, store: Any) -> None:
        told.append((manifest.step, best.step if best is not None else None))

    with run.manager() as manager:
        manager.when_committed(committed)
        train(manager, 1, 3, loss=lambda epoch: abs(epoch - 2))
    assert told == [(1, 1), (2, 2), (3, 2)]


def test_a_state_that_cannot_be_stored_is_refused_at_once_and_the_next_one_is_saved(run: FolderRun) -> None:
    with run.manager() as manager:
        with pytest.raises(UnsupportedValue, match=r"^optimizer\.hook is a builtins\.function"):
            manager.save({"optimizer": {"hook": train}}, step=1)
        manager.save(state_at(1), step=1)
        manager.wait()
        assert len(manager.checkpoints()) == 1


@pytest.mark.parametrize("name", ["notes.txt", "../evil.json", "/tmp/evil.json", "manifest.json", "state.json"])
def test_a_further_file_with_a_name_that_could_not_be_read_back_is_refused(name: str, run: FolderRun) -> None:
    with run.manager() as manager:
        with pytest.raises(UsageError, match=re.escape(repr(name))):
            manager.save(state_at(1), extra={name: b""})
        manager.save(state_at(1), extra={"notes.json": b"{}"})
        manager.wait()
        assert "notes.json" in manager.checkpoints()[0].files


def test_a_disk_that_takes_nothing_is_reported_at_the_end(local: FolderRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mltrain.checkpoint.committer.DISK_RETRY_SECONDS", 0)
    manager = local.manager()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        manager.save(state_at(1))
        manager.wait()
    with pytest.raises(StorageError, match="Free some space"):
        manager.close()
    assert local.status == "KILLED", "the run is let go of nevertheless, and its newest checkpoint is nowhere"


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (ZeroDivisionError, "FAILED")]
)
def test_a_block_waits_for_what_was_saved_and_lets_go_of_the_run(
    error: type[BaseException] | None, status: str, run: FolderRun
) -> None:
    def block() -> None:
        with run.manager() as manager:
            manager.save(state_at(1))
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(error):
            block()
    assert run.status == status
    assert "checkpoints/step-000000001-a01/manifest.json" in run.place.files.all()


def test_a_save_after_the_end_is_refused(local: FolderRun) -> None:
    manager = CheckpointManager(local)
    manager.save({"weight": torch.ones(1)}, step=1)
    manager.close()
    with pytest.raises(UsageError, match="is closed and saves nothing more"):
        manager.save({"weight": torch.ones(1)}, step=2)
    assert [one.step for one in manager.checkpoints()] == [1]


def test_closing_twice_is_closing_once(run: FolderRun) -> None:
    with run.manager() as manager:
        manager.save(state_at(1))
        manager.close()
    manager.close()
    assert run.status == "FINISHED"


def test_everything_it_does_is_logged(run: FolderRun, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), run.manager(max_to_keep=1) as manager:
        train(manager, 1, 2)
        manager.load_latest_checkpoint()
    assert re.search(r"Saved epoch 1 \(step-000000001-a01, \d+\.\d MB\) in \d+\.\d\d s", caplog.text)
    assert "Removed epoch 1 (step-000000001-a01): not kept by Latest(1) | Best(1)" in caplog.text
    assert f"Loaded epoch 2 (step-000000002-a01) of run {run.id}" in caplog.text


def test_a_real_loop_ends_bit_identical_with_and_without_an_interruption(tmp_path: Path) -> None:
    def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 1))
        return net, torch.optim.AdamW(net.parameters())

    def run(manager: CheckpointManager, last: int) -> nn.Module:
        net, optimizer = parts()
        begin = 0
        state = manager.load_latest_checkpoint()
        if state is not None:
            net.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["rng"])
            begin = state["epoch"]
        for epoch in range(begin + 1, last + 1):
            for _ in range(3):
                optimizer.zero_grad()
                net(torch.randn(16, 4)).square().mean().backward()
                optimizer.step()
            now = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
            manager.save_epoch_checkpoint({**now, "epoch": epoch}, epoch)
        return net

    with FolderRun(tmp_path / "straight").manager() as manager:
        expected = run(manager, 6)
    broken = FolderRun(tmp_path / "broken")
    with broken.manager() as manager:
        run(manager, 3)
    with broken.next_attempt().manager() as manager:
        got = run(manager, 6)
    assert identical(dict(got.state_dict()), dict(expected.state_dict()))


def test_tensors_are_loaded_onto_the_device_that_was_given(run: FolderRun) -> None:
    with run.manager(device="meta") as manager:
        train(manager, 1, 1)
        assert manager.load_latest_checkpoint()["model"]["weight"].device.type == "meta"  # type: ignore[index]


def test_a_loop_may_go_back_in_the_same_process_and_its_new_line_counts(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 4)
        assert manager.load("epoch:2")["epoch"] == 2  # type: ignore[index]
        manager.save_epoch_checkpoint(state_at(3, again=True), 3)
        manager.save_epoch_checkpoint(state_at(4, again=True), 4)
        manager.wait()
        assert manager.failure is None
        names = [manifest.name for manifest in manager.checkpoints()]
        assert names == [*(f"step-00000000{step}-a01" for step in (1, 2)), "step-000000003-a02", "step-000000004-a02"]
        assert manager.load_latest_checkpoint()["again"]  # type: ignore[index]
    assert run.attempts == ["step-000000002-a01"]
    assert {removal["rule"] for removal in run.removals} == {"abandoned: the run was rolled back before it"}


def test_a_step_that_lies_before_saved_ones_begins_a_new_attempt_as_well(run: FolderRun) -> None:
    with run.manager() as manager:
        for step in (2, 4):
            manager.save(state_at(step), step=step)
        manager.wait()
        manager.load("step:2")
        manager.save(state_at(3), step=3)
        manager.wait()
        assert manager.load_latest_checkpoint()["epoch"] == 3  # type: ignore[index]
        assert run.attempts == ["step-000000002-a01"]


def test_what_was_just_saved_is_what_is_loaded(run: FolderRun) -> None:
    with run.manager() as manager:
        for epoch in range(1, 4):
            manager.save_epoch_checkpoint(state_at(epoch), epoch)
            assert manager.load_latest_checkpoint()["epoch"] == epoch  # type: ignore[index]


def test_a_step_that_could_not_be_kept_is_saved_when_it_is_saved_again(
    local: FolderRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mltrain.checkpoint.committer.DISK_RETRY_SECONDS", 0)
    with local.manager() as manager:
        train(manager, 1, 1)
        with monkeypatch.context() as patch:
            patch.setattr("os.fsync", full)
            manager.save_epoch_checkpoint(state_at(2), 2)
            manager.wait()
        assert manager.failure is not None
        manager.save_epoch_checkpoint(state_at(2), 2)
        manager.save_interrupt_checkpoint(state_at(2))
        assert manager.wait(60)
        assert [(m.name, m.parent.name if m.parent else None) for m in manager.checkpoints()] == [
            ("step-000000001-a01", None),
            ("step-000000002-a01", "step-000000001-a01"),
            ("step-000000003-a01", "step-000000002-a01"),
        ]
    assert local.attempts == []


@pytest.mark.parametrize(
    "given",
    [
        *(
            {"epoch": -1},
            {"step": -1},
            {"step": 10**9},
            {"epoch": 1.5},
            {"step": True},
            {"step": "7"},
            {"step": 10**5000},
        ),
        *({"kind": "weekly"}, {"metrics": {"x": 1.0}, "data": {"d": 7}}),
    ],
    ids=lambda given: ",".join(given),
)
def test_what_cannot_be_a_step_or_an_epoch_is_refused_where_it_is_given(given: Any, run: FolderRun) -> None:
    with run.manager() as manager:
        with pytest.raises(UsageError, match="cannot be saved"):
            manager.save({"model": {"w": torch.ones(1)}}, **given)
        with pytest.raises(UsageError, match="epoch: -3"):
            manager.save({"epoch": -3})
        manager.save(state_at(1))
        manager.wait()
        assert epochs(manager) == [1]


@pytest.mark.parametrize("number", [np.int64(7), np.uint8(7), torch.tensor(7)], ids=["int64", "uint8", "tensor"])
def test_counters_may_be_whole_numbers_of_any_library(number: Any, run: FolderRun) -> None:
    with run.manager() as manager:
        assert manager.save({"x": 1, "step": number, "epoch": number}).step == 7
        assert manager.save({"x": 1}, step=number + 1, epoch=number).step == 8
        manager.wait()
        assert [(m.step, m.epoch) for m in manager.checkpoints()] == [(7, 7), (8, 7)]


def torn(run: FolderRun, step: int) -> None:
    path = f"checkpoints/step-{step:09d}-a01/manifest.json"
    run.place.files.write(path, run.place.files.read(path)[:-200])


def test_a_first_manifest_cut_short_is_no_checkpoint_and_nothing_is_called_damaged(
    run: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    with run.manager() as manager:
        train(manager, 1, 1)
    torn(run, 1)
    other = without_staging(run)
    other.tags = {}  # nobody was told that it is committed: its writing was interrupted
    with other.manager() as manager:
        assert manager.load_latest_checkpoint() is None
        assert "never committed" in caplog.text
        train(manager, 1, 2)
        assert epochs(manager) == [1, 2]
    assert not [tag for tag in other.tags if tag.startswith("mltrain.damaged")]


def test_a_manifest_cut_short_after_its_commit_was_announced_is_damage(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 1)
    torn(run, 1)
    with without_staging(run).manager() as manager, pytest.raises(NoCheckpoint, match="is usable"):
        manager.load_latest_checkpoint()


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(
    local: FolderRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(descriptor: int) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.fsync", read_only)
    with pytest.raises(StorageError, match="Mount it writable"):
        local.manager()


@pytest.mark.parametrize("where", ["on this machine", "elsewhere"])
def test_a_process_that_ends_without_closing_completes_what_it_saved(where: str, tmp_path: Path) -> None:
    place = "places.folder" if where == "on this machine" else "places.behind"
    script = (
        "from tests.support.runs import *\n"
        f"folder = Path({str(tmp_path)!r})\n"
        f"run = FolderRun(folder, place={place}(folder / 'artifacts'))\n"
        "run.manager().save(state_at(1))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    with FolderRun(tmp_path, 2).manager() as manager:
        assert epochs(manager) == [1]


class Refusing(LocalArtifactRepository):  # type: ignore[misc]
    """A store that takes no checkpoints."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        if "checkpoints" in (artifact_path or ""):
            raise OSError("made to fail")
        super().log_artifact(local_file, artifact_path)


def test_a_run_whose_newest_checkpoint_the_store_does_not_take_is_not_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts", Refusing))
    with run.manager() as manager:
        for epoch in (1, 2):
            manager.save_epoch_checkpoint(state_at(epoch), epoch)
    assert run.status == "KILLED"
    assert run.only_local == ("step-000000002-a01", "FINISHED")
    assert "mltrain sync" in caplog.text


def test_a_manager_that_shall_not_wait_leaves_the_upload_to_sync(tmp_path: Path) -> None:
    taken = threading.Event()

    class Slow(LocalArtifactRepository):
        def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
            taken.wait()
            super().log_artifact(local_file, artifact_path)

    run = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts", Slow))
    manager = run.manager()
    manager.save_epoch_checkpoint(state_at(1), 1)
    manager.close("KILLED", wait=False)
    assert (run.status, run.only_local) == ("KILLED", ("step-000000001-a01", "KILLED"))
    taken.set()
    assert [manifest.epoch for manifest in run.next_attempt().manager().checkpoints()] == [1]


def test_a_metric_that_is_not_among_those_saved_is_named_once_with_the_nearest(
    run: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    with run.manager(metric="acuracy", policy=parse("Latest(2) | Best(1, 'val/iuo')")) as manager:
        manager.save_epoch_checkpoint(state_at(1), 1)
        assert "among" not in caplog.text, "nothing was measured yet"
        for epoch in (2, 3):
            manager.save_epoch_checkpoint(state_at(epoch), epoch, {"accuracy": 0.5, "val/iou": 0.5})
    assert caplog.text.count("'acuracy', which decides what is best or kept") == 1
    assert "Did you mean 'accuracy'?" in caplog.text
    assert "Did you mean 'val/iou'?" in caplog.text


def test_the_default_metric_may_be_absent(run: FolderRun, caplog: pytest.LogCaptureFixture) -> None:
    with run.manager() as manager:
        manager.save_epoch_checkpoint(state_at(1), 1, {"accuracy": 0.5})
    assert "among" not in caplog.text


def test_a_deciding_metric_that_is_not_finite_is_warned_of_once_and_a_later_finite_value_counts(
    run: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    with run.manager(policy=parse("Latest(2) | Best(1, 'val/iou', 'max')")) as manager:
        for epoch in (1, 2):
            manager.save_epoch_checkpoint(
                state_at(epoch), epoch, {"val/loss": math.nan, "val/iou": 0.5, "other": math.nan}
            )
        manager.save_epoch_checkpoint(state_at(2), 2, {"val/iou": math.inf})  # measured after it was saved
        manager.save_epoch_checkpoint(state_at(3), 3, {"val/loss": 0.5, "val/iou": 0.4})
        manager.wait()
        best = manager.best()
        assert best is not None and best.step == 3
    assert caplog.text.count("The metric 'val/loss', which decides what is best or kept, is nan.") == 1
    assert caplog.text.count("The metric 'val/iou', which decides what is best or kept, is inf.") == 1
    assert "other" not in caplog.text
