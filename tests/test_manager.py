"""The public face of checkpoints, in a handwritten loop."""

import errno
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mltrain.checkpoint.manifest import Manifest, Point
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import StorageError, UnsupportedValue, UsageError
from mltrain.manager import CheckpointManager
from tests.support.disks import refuse
from tests.support.equality import identical
from tests.support.runs import FolderRun, state_at, train


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


@pytest.mark.parametrize("listener", ["a word", None])
def test_what_cannot_be_called_after_a_commit_is_refused(listener: Any, local: FolderRun) -> None:
    with local.manager() as manager, pytest.raises(UsageError, match="Expected a function"):
        manager.when_committed(listener)


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


def test_after_each_commit_all_listeners_are_called(run: FolderRun) -> None:
    told: list[tuple[int, int | None]] = []
    others: list[int] = []

    def committed(manifest: Manifest, best: Manifest | None, store: Any) -> None:
        told.append((manifest.step, best.step if best is not None else None))

    with run.manager() as manager:
        manager.when_committed(committed)
        manager.when_committed(lambda manifest, best, store: others.append(manifest.step))
        train(manager, 1, 3, loss=lambda epoch: abs(epoch - 2))
    assert told == [(1, 1), (2, 2), (3, 2)]
    assert others == [1, 2, 3]


def test_the_error_of_a_listener_keeps_no_other_from_being_called(
    run: FolderRun, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(new: Manifest, best: Manifest | None, store: CheckpointStore) -> None:
        raise ZeroDivisionError

    told = []
    with run.manager() as manager:
        manager.when_committed(fails)
        manager.when_committed(lambda new, best, store: told.append(new.epoch))
        train(manager, 1, 2)
    assert told == [1, 2]
    assert "ZeroDivisionError" in caplog.text


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


@pytest.mark.parametrize("state", [nn.Linear(2, 2), [torch.ones(2)], None])
def test_a_state_that_is_no_dictionary_is_refused(state: Any, local: FolderRun) -> None:
    with local.manager() as manager:
        for save in (manager.save, manager.save_interrupt_checkpoint, manager.prepare):
            with pytest.raises(UsageError, match=r"state=.* Expected a dictionary of tensors and plain values"):
                save(state)
        with pytest.raises(UsageError, match="Expected a dictionary"):
            manager.save_best_model(state, 0.5)


@pytest.mark.parametrize("metric", ["abc", None, torch.ones(2)])
def test_a_best_metric_that_is_no_number_is_refused(metric: Any, local: FolderRun) -> None:
    with (
        local.manager() as manager,
        pytest.raises(UsageError, match=r"as the metric 'val/loss'. Expected one real number"),
    ):
        manager.save_best_model(state_at(1), metric)


@pytest.mark.parametrize("which", [None, 3, 1.5])
def test_a_checkpoint_is_named_by_text_or_its_identity(which: Any, local: FolderRun) -> None:
    with local.manager() as manager:
        identity = manager.save_epoch_checkpoint(state_at(1), 1)
        with pytest.raises(UsageError, match="does not name a checkpoint"):
            manager.load(which)
        assert manager.load(identity)["epoch"] == 1  # type: ignore[arg-type,index]


def test_a_save_after_the_end_is_refused(local: FolderRun) -> None:
    manager = CheckpointManager(local)
    manager.save({"weight": torch.ones(1)}, step=1)
    manager.close()
    with pytest.raises(UsageError, match="is closed and saves nothing more"):
        manager.save({"weight": torch.ones(1)}, step=2)
    assert [one.step for one in manager.checkpoints()] == [1]


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


def test_what_was_just_saved_is_what_is_loaded(run: FolderRun) -> None:
    with run.manager() as manager:
        for epoch in range(1, 4):
            manager.save_epoch_checkpoint(state_at(epoch), epoch)
            assert manager.load_latest_checkpoint()["epoch"] == epoch  # type: ignore[index]


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(
    local: FolderRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, "fsync", errno.EROFS)
    with pytest.raises(StorageError, match="Mount it writable"):
        local.manager()
