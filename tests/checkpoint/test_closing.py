"""The end of a manager: what was saved is waited for, and the status of the run says what became of it."""

import errno
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.checkpoint.closing import Closing
from mltrain.checkpoint.committer import Committer
from mltrain.errors import StorageError, UsageError
from tests.support import places
from tests.support.benches import Bench
from tests.support.disks import refuse
from tests.support.runs import FolderRun, state_at


def test_a_disk_that_takes_nothing_is_reported_at_the_end(local: FolderRun, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = local.manager()
    with monkeypatch.context() as patch:
        refuse(patch, "fsync", errno.ENOSPC)
        manager.save(state_at(1))
        manager.committer.make_way()
    with pytest.raises(StorageError, match="Free some space"):
        manager.close()
    assert local.status == "KILLED", "the run is let go of nevertheless, and its newest checkpoint is nowhere"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (KeyboardInterrupt(), "KILLED"),
        (ZeroDivisionError(), "FAILED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(), "FINISHED"),
        (SystemExit(1), "FAILED"),
        (SystemExit("a message"), "FAILED"),
        (SystemExit(""), "FAILED"),
    ],
)
def test_a_block_waits_for_what_was_saved_and_lets_go_of_the_run(
    error: BaseException | None, status: str, run: FolderRun
) -> None:
    def block() -> None:
        with run.manager() as manager:
            manager.save(state_at(1))
            if error is not None:
                raise error

    if error is None:
        block()
    else:
        with pytest.raises(type(error)):
            block()
    assert run.status == status
    assert "checkpoints/step-000000001-a01/manifest.json" in run.place.files.all()


def test_an_unknown_status_is_refused_and_the_manager_stays_open(run: FolderRun) -> None:
    manager = run.manager()
    with pytest.raises(UsageError, match=r"status='DONE' is invalid. Expected FINISHED, FAILED or KILLED"):
        manager.close("DONE")  # type: ignore[arg-type]
    manager.save(state_at(1))
    manager.close()
    assert run.status == "FINISHED"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_reads_and_neither_saves_nor_prunes_nor_waits_nor_closes(tmp_path: Path) -> None:
    loop = f"""
import os, sys, torch
from mltrain.checkpoint.retention import Policy
from mltrain.errors import UsageError
from tests.support.runs import *
class Newest(Policy, named=False):
    number = 9
    def keep(self, manifests, context):
        return frozenset(manifest.id for manifest in manifests[-Newest.number :])
manager = FolderRun(Path({str(tmp_path)!r})).manager(policy=Newest())
with manager:
    train(manager, 1, 2)
    Newest.number = 1
    child = os.fork()
    if child == 0:
        assert manager.load("epoch:1")["epoch"] == 1
        calls = {{
            "save": lambda: manager.save(state_at(3)),
            "prune": manager.prune,
            "continue": lambda: manager.continue_from(manager.checkpoints()[0]),
            "listen": lambda: manager.when_committed(print),
        }}
        for call in calls.values():
            try:
                call()
            except UsageError as error:
                print(error, flush=True)
        assert not manager.wait()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert epochs(manager) == [1, 2]
    train(manager, 3, 3)
    assert epochs(manager) == [3]
"""
    ended = subprocess.run([sys.executable, "-c", loop], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    refused = re.findall(r"cannot (.*) in a process that was forked", ended.stdout)
    assert refused == ["save", "prune", "continue from a checkpoint", "register a listener"]


def test_closing_twice_is_closing_once(run: FolderRun) -> None:
    with run.manager() as manager:
        manager.save(state_at(1))
        manager.close()
    manager.close()
    assert run.status == "FINISHED"


class Refusing(LocalArtifactRepository):  # type: ignore[misc]
    """A store that takes no checkpoints."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        if "checkpoints" in (artifact_path or ""):
            raise PermissionError("made to fail")  # which no second try mends
        super().log_artifact(local_file, artifact_path)


def test_a_run_whose_newest_checkpoint_the_store_does_not_take_is_not_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLTRAIN_GRACE_SECONDS", "0")
    run = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts", Refusing))
    with run.manager() as manager:
        for epoch in (1, 2):
            manager.save_epoch_checkpoint(state_at(epoch), epoch)
    assert run.status == "KILLED"
    assert run.only_local == ("step-000000002-a01", "FINISHED")
    assert "mltrain sync" in caplog.text


@pytest.mark.parametrize(("grace", "refusals"), [(0.0, 0), (600.0, 3)])
def test_a_store_that_takes_what_it_is_sent_is_waited_for_however_long_and_one_that_refuses_is_tried_again(
    grace: float, refusals: int, tmp_path: Path
) -> None:
    class Slow(LocalArtifactRepository):
        def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise PermissionError("made to fail")
            asked.release()
            let.wait()
            super().log_artifact(local_file, artifact_path)

    asked, let = threading.Semaphore(0), threading.Event()
    run = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts", Slow))
    bench = Bench(run)
    bench.save(1)
    end = Closing(run, bench.committer, 0.0, retry_seconds=0.0)
    closing = threading.Thread(target=end.close, args=("FINISHED", grace))
    closing.start()
    asked.acquire()
    closing.join(1.0)
    assert closing.is_alive(), "it waits longer than the grace while the store works"
    let.set()
    closing.join()
    assert (run.status, run.only_local) == ("FINISHED", None)


def test_a_store_that_refuses_is_not_waited_for_once_the_grace_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals, let = 1, threading.Event()

    class Away(LocalArtifactRepository):
        def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise PermissionError("made to fail")
            let.wait()
            super().log_artifact(local_file, artifact_path)

    monkeypatch.setenv("MLTRAIN_GRACE_SECONDS", "0")
    run = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts", Away))
    manager = run.manager()
    for epoch in (1, 2):
        manager.save_epoch_checkpoint(state_at(epoch), epoch)
    manager.close()  # while the second upload is under way
    let.set()
    assert (run.status, run.only_local) == ("KILLED", ("step-000000002-a01", "FINISHED"))


def test_the_wait_for_a_store_that_refuses_takes_no_processor_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def wait(self: Committer, seconds: float) -> bool:
        asked.append(seconds)
        return waited(self, seconds)

    waited = Committer.wait
    monkeypatch.setattr(Committer, "wait", wait)
    bench = Bench(FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts", Refusing)))
    bench.save(1)
    Closing(bench.run, bench.committer, 0.0).close("FINISHED", 1.0)
    assert sum(asked) <= 1.5, "no more often than once in the time for which it polls"


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
