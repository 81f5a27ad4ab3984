"""A commit on a disk that refuses, fails or fills."""

import errno
import os
import threading
from pathlib import Path

import pytest

from mltrain.checkpoint.codec import encode
from mltrain.checkpoint.manifest import Manifest, Point
from mltrain.checkpoint.store import CheckpointStore
from tests.support.benches import Bench, Gate, steps
from tests.support.disks import refuse
from tests.support.places import behind
from tests.support.runs import RUN_ID, FolderRun, manifest_of, snapshot_of, state_at


def test_a_disk_that_fails_once_is_tried_again(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = refuse(monkeypatch, "fsync", errno.EIO, once=True)
    here.save(1)
    assert here.settled()
    assert failed
    assert (here.committed, here.committer.failure) == ([1], None)


def test_a_full_disk_does_not_end_the_training_and_is_kept_as_the_reason(
    here: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    here.save(1)
    assert here.settled()
    with monkeypatch.context() as patch:
        refuse(patch, "write", errno.ENOSPC)
        here.save(2)
        here.settled()
        assert here.committer.idle
    assert "Free some space" in str(here.committer.failure)
    assert here.committer.newest_committed is not None
    assert here.committer.newest_committed.step == 1
    assert caplog.text.count("could not be written (try") == 2
    assert steps(here.store.manifests()) == [1], "nothing older was touched"
    assert list(Path(here.store.spool.root).iterdir()) == []  # type: ignore[union-attr]
    here.save(3)
    assert here.settled()
    assert here.committer.failure is None
    assert here.committed == [1, 3]


def test_a_mistake_in_the_background_is_kept_as_the_reason(
    here: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mistake(step: int) -> list[Point]:
        raise KeyError("nobody knows")

    with monkeypatch.context() as patch:
        patch.setattr(here.run, "pending", mistake)
        here.save(1)
        here.settled()
    assert "nobody knows" in str(here.committer.failure)
    assert "nobody knows" in caplog.text
    here.save(2)
    assert here.settled()
    assert (here.committed, here.committer.failure) == ([2], None)


def test_a_failing_clean_up_does_not_stop_the_next_checkpoint(
    here: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(manifest: Manifest) -> None:
        raise ZeroDivisionError(f"while pruning after {manifest.step}")

    monkeypatch.setattr(here, "announced", failing)
    for step in (1, 2):
        here.save(step)
    assert here.settled()
    assert steps(here.store.manifests()) == [1, 2]
    assert "while pruning after 2" in caplog.text


class Full:
    """A disk without space until somebody frees some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused = threading.Semaphore(0)
        self.full = True
        write = os.write

        def written(descriptor: int, content: bytes) -> int:
            if self.full:
                self.refused.release()
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(descriptor, content)

        monkeypatch.setattr(os, "write", written)

    def was_tried(self, times: int) -> bool:
        return all(self.refused.acquire(timeout=60) for _ in range(times))


def test_a_checkpoint_is_kept_as_soon_as_there_is_space_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(FolderRun(tmp_path), disk_retry_seconds=60)
    disk = Full(monkeypatch)
    bench.save(1)
    assert disk.was_tried(3), "twice at once, and again after a while"
    assert not bench.committer.idle
    disk.full = False
    assert bench.settled()
    assert (bench.committed, bench.committer.failure, manifest_of(1).id in bench.committer.lost) == ([1], None, False)
    bench.committer.close()


def test_what_waits_for_space_gives_way_to_a_newer_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(FolderRun(tmp_path), disk_retry_seconds=10**6)
    disk = Full(monkeypatch)
    for step in (1, 2):
        bench.save(step)
        assert disk.was_tried(2)
    disk.full = False
    bench.save(3)
    assert bench.settled()
    assert bench.committed[-1] == 3
    assert manifest_of(1).id in bench.committer.lost
    bench.committer.close()


def test_a_process_that_is_told_to_end_does_not_wait_for_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(FolderRun(tmp_path), disk_retry_seconds=10**6)
    disk = Full(monkeypatch)
    bench.save(1)
    assert disk.was_tried(2)
    bench.committer.close()
    bench.committer.settle()
    assert "No space left" in str(bench.committer.failure)


def test_training_goes_on_while_the_disk_takes_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, reached, fsync = threading.Event(), threading.Event(), os.fsync

    def flushed(descriptor: int) -> None:
        reached.set()
        assert slow.wait(60)
        fsync(descriptor)

    bench = Bench(FolderRun(tmp_path))
    monkeypatch.setattr(os, "fsync", flushed)
    bench.save(1)  # returns
    assert reached.wait(60)
    assert bench.store.manifests() == []
    slow.set()
    assert bench.settled()
    bench.committer.close()


def test_over_its_budget_staging_loses_what_the_policy_values_least(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(tmp_path / "artifacts")
    run = FolderRun(tmp_path, place=behind(tmp_path / "artifacts", lambda _: gate))
    one = len(b"".join(bytes(p) for f in encode(snapshot_of(state_at(1))).files for p in f.content))
    manager = run.manager(staging_gigabytes=3.5 * one / 1e9)
    for epoch in range(1, 8):
        manager.save_epoch_checkpoint(state_at(epoch), epoch, {"val/loss": abs(epoch - 3.0)})
        if epoch == 1:
            assert gate.reached.wait(60)
    assert not manager.wait(0.01)
    manager.committer.settle()
    kept = steps(manager.store.staged())
    assert kept == [1, 3, 6, 7], "the best and the newest that fit in, and the one on its way"
    assert "epoch 2 (step-000000002-a01) was removed from this disk before it could be uploaded" in caplog.text
    assert "mltrain.dropped.step-000000002-a01" in run.tags
    gate.open.set()
    assert manager.wait(60), "what was dropped is not waited for"
    assert steps(CheckpointStore(RUN_ID, manager.store.artifacts).manifests()) == [1, 3, 6, 7]
    manager.close()
