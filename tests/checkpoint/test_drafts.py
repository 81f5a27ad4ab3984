"""Drafts hold progress, line and expected metrics of a save."""

import errno
import math
from typing import Any

import numpy as np
import pytest
import torch

from mltrain.checkpoint.policies import parse
from mltrain.errors import UnsupportedValue, UsageError
from tests.support.disks import refuse
from tests.support.runs import FolderRun, epochs, saved, state_at, train, without_staging


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


BACK: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([{"step": 100}, {"step": 200}], {"step": 50}, "step 50 cannot be saved after step 200"),
    ([{"step": 100}, {"step": 200}], {"step": 199, "kind": "interrupted"}, "step 199 .* after step 200"),
    ([{"step": 100}, {"step": 200}], {"step": 100, "best": True}, "step 100 .* after step 200"),
    ([{"state": {"step": 100}}, {"state": {"step": 200}}], {"state": {"step": 10}}, "step 10 .* after step 200"),
    ([{"state": {"global_step": 7}}], {"state": {"global_step": 3}, "epoch": 9}, "step 3 .* after step 7"),
    ([{"epoch": 1}, {"epoch": 5}], {"epoch": 1}, "epoch 1 .* after epoch 5"),
    ([{"epoch": 5}], {"state": {"epoch": 4}, "kind": "interrupted"}, "epoch 4 .* after epoch 5"),
]


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


def test_a_step_that_could_not_be_kept_is_saved_when_it_is_saved_again(
    local: FolderRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local.manager() as manager:
        train(manager, 1, 1)
        with monkeypatch.context() as patch:
            refuse(patch, "fsync", errno.ENOSPC)
            manager.save_epoch_checkpoint(state_at(2), 2)
            manager.committer.make_way()
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
        with pytest.raises(UsageError, match="epoch=-3"):
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


def test_a_metric_that_is_not_among_those_saved_is_named_once_with_the_nearest(
    run: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    with run.manager(metric="acuracy", policy=parse("Latest(2) | Best(1, 'val/iuo')")) as manager:
        manager.save_epoch_checkpoint(state_at(1), 1)
        assert "among" not in caplog.text, "nothing was measured yet"
        for epoch in (2, 3):
            manager.save_epoch_checkpoint(state_at(epoch), epoch, {"accuracy": 0.5, "val/iou": 0.5})
    assert caplog.text.count("'acuracy', which decides which checkpoint is best or kept") == 1
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
    assert caplog.text.count("The metric 'val/loss', which decides which checkpoint is best or kept, is nan.") == 1
    assert caplog.text.count("The metric 'val/iou', which decides which checkpoint is best or kept, is inf.") == 1
    assert "other" not in caplog.text


def test_the_first_save_of_an_attempt_records_its_origin_and_a_load_does_not(run: FolderRun) -> None:
    with run.manager() as manager:
        train(manager, 1, 2)
    again = run.next_attempt()
    with again.manager() as manager:
        manager.load("epoch:2")
        manager.load("epoch:1")
        with pytest.raises(UnsupportedValue):
            manager.save({"model": object()}, step=3)
        assert again.origins == []
        train(manager, 3, 4)
        manager.load("epoch:3")
    manager.load("epoch:1")
    assert (run.origins, again.origins) == (["the start"], ["step-000000001-a01"])
