"""The background writer: the training waits for a copy into memory and a busy local disk, and for nothing else."""

import errno
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.spool import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.checkpoint.writer import Writer
from mltrain.errors import UnsupportedValue
from mltrain.tracking import persistence
from mltrain.tracking.artifacts import RemoteArtifacts
from tests.checkpoint.runs import RUN_ID, manifest_of, state_at, store_in
from tests.values import identical


class Gate(LocalArtifactRepository):
    """An artifact store that answers when the gate is open, and refuses what it is told to."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        super().__init__(str(folder))
        self.open = threading.Event()
        self.reached = threading.Event()
        self.refuses = ""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self.reached.set()
        assert self.open.wait(60)
        if self.refuses and self.refuses in str(artifact_path):
            raise PermissionError("403 Forbidden")
        super().log_artifact(local_file, artifact_path)


class Bench:
    """A writer, and what it said it has committed."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store
        self.committed: list[int] = []
        self.writer = Writer(store, lambda manifest: self.committed.append(manifest.step))

    def save(self, step: int, **more: Any) -> None:
        self.writer.submit(state_at(step, **more), lambda: manifest_of(step), {"params.json": b"{}"})

    def settled(self) -> bool:
        return self.writer.drain(60)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(store_in(tmp_path))
    yield bench
    bench.writer.close()


@pytest.fixture
def far(tmp_path: Path) -> Iterator[tuple[Bench, Gate]]:
    gate = Gate(tmp_path / "artifacts")
    bench = Bench(CheckpointStore(RUN_ID, RemoteArtifacts(gate), Spool(tmp_path / "spool")))
    yield bench, gate
    gate.open.set()
    bench.settled()
    bench.writer.close()


def steps(manifests: list[Manifest]) -> list[int]:
    return [manifest.step for manifest in manifests]


def test_what_is_submitted_is_committed_in_order(here: Bench) -> None:
    for step in range(1, 6):
        here.save(step)
    assert here.settled()
    assert here.committed == [1, 2, 3, 4, 5]
    assert steps(here.store.manifests()) == [1, 2, 3, 4, 5]
    assert here.writer.newest_committed == here.writer.newest_staged == here.store.manifests()[-1]
    assert here.writer.idle


def test_a_state_may_change_as_soon_as_it_is_submitted(here: Bench) -> None:
    weights = torch.zeros(1000)
    for step in range(1, 6):
        weights.fill_(step)
        here.writer.submit({"model": {"w": weights}}, lambda step=step: manifest_of(step), {})
        weights.fill_(-1)
    assert here.settled()
    for manifest in here.store.manifests():
        assert identical(here.store.load(manifest), {"model": {"w": torch.full((1000,), float(manifest.step))}})


def test_the_manifest_is_made_when_the_state_is_written(here: Bench) -> None:
    makers: list[str] = []

    def make() -> Manifest:
        makers.append(threading.current_thread().name)
        return manifest_of(1)

    here.writer.submit(state_at(1), make, {})
    assert here.settled()
    assert all(name.startswith("mltrain-disk") for name in makers)
    assert len(makers) == 1


def test_a_state_that_cannot_be_stored_is_refused_where_it_is_submitted(here: Bench) -> None:
    with pytest.raises(UnsupportedValue, match=r"^optimizer is a builtins\.object"):
        here.save(1, optimizer=object())
    here.save(2)
    assert here.settled()
    assert here.committed == [2]


def test_training_goes_on_while_the_artifact_store_does_not_answer(far: tuple[Bench, Gate]) -> None:
    bench, gate = far
    for step in range(1, 6):
        bench.save(step)
    assert gate.reached.wait(60)
    assert not bench.writer.drain(0.01)
    assert bench.committed == []
    assert bench.writer.newest_committed is None
    assert not bench.writer.idle
    gate.open.set()
    assert bench.settled()
    assert bench.committed == [1, 2, 3, 4, 5]


def test_everything_is_complete_on_this_disk_while_it_waits_for_the_store(far: tuple[Bench, Gate]) -> None:
    bench, gate = far
    bench.save(1)
    bench.save(2)
    assert gate.reached.wait(60)
    bench.save(3)
    bench.writer.submit(state_at(4), lambda: manifest_of(4), {})  # returns when the third is on the disk
    assert steps(bench.store.staged())[:3] == [1, 2, 3]


def test_what_could_not_be_uploaded_stays_staged_until_a_later_one_is_committed(
    far: tuple[Bench, Gate], caplog: pytest.LogCaptureFixture
) -> None:
    bench, gate = far
    gate.open.set()
    gate.refuses = "step-000000002"
    bench.save(1)
    bench.save(2)
    with caplog.at_level(logging.ERROR):
        assert not bench.settled(), "not all is committed"
    assert "step-000000002-a01 is complete on this disk" in caplog.text
    assert (bench.writer.idle, bench.committed) == (True, [1])
    assert bench.writer.newest_staged is not None
    assert (bench.writer.newest_staged.step, bench.writer.failure) == (2, None)
    assert steps(bench.store.staged()) == [1, 2]
    bench.save(3)
    assert bench.settled()
    assert steps(bench.store.staged()) == [3]
    assert bench.committed == [1, 3]


def test_a_disk_that_fails_once_is_tried_again(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, failed = os.fsync, []

    def once(descriptor: int) -> None:
        if not failed:
            failed.append(True)
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", once)
    here.save(1)
    assert here.settled()
    assert failed
    assert (here.committed, here.writer.failure) == ([1], None)


def test_a_full_disk_does_not_end_the_training_and_is_kept_as_the_reason(
    here: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    here.save(1)
    assert here.settled()

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        here.save(2)
        here.settled()
        assert here.writer.idle
    assert "Free some space" in str(here.writer.failure)
    assert here.writer.newest_committed is not None
    assert here.writer.newest_committed.step == 1
    assert caplog.text.count("could not be written (try") == 2
    assert steps(here.store.manifests()) == [1], "nothing older was touched"
    assert list(Path(here.store.spool.root).iterdir()) == []  # type: ignore[union-attr]
    here.save(3)
    assert here.settled()
    assert here.writer.failure is None
    assert here.committed == [1, 3]


def test_a_mistake_in_the_background_is_kept_as_the_reason(here: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def mistake() -> Manifest:
        raise KeyError("nobody knows")

    here.writer.submit(state_at(1), mistake, {})
    here.settled()
    assert "nobody knows" in str(here.writer.failure)
    assert "nobody knows" in caplog.text
    here.save(2)
    assert here.settled()
    assert (here.committed, here.writer.failure) == ([2], None)


def test_a_failing_clean_up_does_not_stop_the_next_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_in(tmp_path)

    def failing(manifest: Manifest) -> None:
        raise ZeroDivisionError(f"while pruning after {manifest.step}")

    writer = Writer(store, failing)
    for step in (1, 2):
        writer.submit(state_at(step), lambda step=step: manifest_of(step), {})
    assert writer.drain(60)
    writer.close()
    assert steps(store.manifests()) == [1, 2]
    assert "while pruning after 2" in caplog.text


def test_a_job_runs_after_what_was_submitted_before_it(here: Bench) -> None:
    here.save(1)
    here.writer.run(lambda: here.committed.append(-1))
    here.save(2)
    assert here.settled()
    assert here.committed == [1, -1, 2]


def test_a_checkpoint_of_the_same_step_twice_is_said_and_the_first_stays(here: Bench) -> None:
    here.save(1)
    here.writer.submit(state_at(9), lambda: manifest_of(1), {})
    here.settled()
    assert "exists already" in str(here.writer.failure)
    (manifest,) = here.store.manifests()
    assert identical(here.store.load(manifest), state_at(1))


def test_an_upload_is_tried_again_while_the_store_is_away_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stumbling(LocalArtifactRepository):
        stumbles = 0

        def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
            self.stumbles += 1
            if self.stumbles % 2:
                raise ConnectionResetError("reset by peer")
            super().log_artifact(local_file, artifact_path)

    monkeypatch.setattr(persistence, "RETRY_SECONDS", 30)
    (tmp_path / "artifacts").mkdir()
    repository = Stumbling(str(tmp_path / "artifacts"))
    bench = Bench(CheckpointStore(RUN_ID, RemoteArtifacts(repository), Spool(tmp_path / "spool")))
    bench.writer.submit(state_at(1), lambda: manifest_of(1), {})
    assert bench.settled()
    bench.writer.close()
    assert bench.committed == [1]
    assert repository.stumbles >= 6
