"""What is declared of a checkpoint after its commit."""

import json
from typing import Any

import pytest

from mltrain.checkpoint.policies import Best, Latest
from mltrain.manager import CheckpointManager
from tests.support.runs import FolderRun, epochs, saved, state_at, train, without_staging


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
