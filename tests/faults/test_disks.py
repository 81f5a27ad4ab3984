"""FAULTS B2-B4: stores and staging disks that are full or read-only under a training. Mounting small ones needs root."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import places
from tests.support.mounted import MountedDisk
from tests.support.runs import FolderRun, state_at
from tests.support.waiting import eventually
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults

LONG = ("epochs=1000", "sleep=0.02", "max_to_keep=3")


def is_closed(workplace: Workplace, run_id: str) -> bool:
    """Whether a run can be resumed and is not RUNNING."""
    return workplace.status(run_id) == "KILLED"


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_full_store_does_not_stop_the_training_and_checkpoints_go_on_when_there_is_space(
    what: str, workplace: Workplace, mounted: Callable[..., MountedDisk]
) -> None:
    disk = mounted(workplace.folder / "mlruns", "size=3m,nr_inodes=400")
    started = workplace.start("train", "tiny.py", *LONG)
    started.until("epoch    3/")
    disk.fill() if what == "bytes" else disk.fill_inodes()
    started.until_reported("Free some space")
    epoch = started.last_epoch
    started.until(f"epoch {epoch + 3:4d}/")
    run_id = started.run_id
    before = workplace.intact(run_id)
    assert before >= 2, "nothing older was touched"
    disk.free()
    epoch = started.last_epoch
    started.until(f"epoch {epoch + 3:4d}/")
    started.child.kill(signal.SIGTERM)
    done = started.wait()
    assert done.code == 75, done.err
    assert "Traceback" not in done.err
    rows = workplace.mltrain("checkpoints", run_id, "--json").json
    assert max(row["epoch"] for row in rows) >= epoch
    assert workplace.intact(run_id) == len(rows)


def test_a_last_checkpoint_that_could_not_be_kept_anywhere_is_exit_5(
    workplace: Workplace, mounted: Callable[..., MountedDisk]
) -> None:
    disk = mounted(workplace.folder / "mlruns")
    started = workplace.start("train", "tiny.py", *LONG, MLTRAIN_GRACE_SECONDS="3")
    started.until("epoch    3/")
    disk.fill()
    started.until_reported("Free some space")
    started.child.kill(signal.SIGTERM)
    done = started.wait()
    assert done.code == 5, done.err
    assert "could not be kept" in done.out + done.err
    assert "Traceback" not in done.err
    run_id = started.run_id
    assert is_closed(workplace, run_id), "no process lives, so it is not RUNNING"
    assert workplace.intact(run_id) >= 2
    disk.free()
    resumed = workplace.mltrain("train", "--resume-run", run_id, f"epochs={started.last_epoch + 1}", "sleep=0")
    assert resumed.code == 0, resumed.err


def test_a_store_that_becomes_read_only_does_not_stop_the_training(
    workplace: Workplace, mounted: Callable[..., MountedDisk]
) -> None:
    disk = mounted(workplace.folder / "mlruns")
    started = workplace.start("train", "tiny.py", *LONG, MLTRAIN_GRACE_SECONDS="3")
    started.until("epoch    3/")
    disk.read_only()
    started.until_reported("Read-only file system")
    epoch = started.last_epoch
    started.until(f"epoch {epoch + 3:4d}/")
    started.child.kill(signal.SIGTERM)
    done = started.wait()
    assert done.code == 5, done.err
    assert "Traceback" not in done.err
    assert is_closed(workplace, started.run_id)
    assert workplace.intact(started.run_id) >= 2


@pytest.mark.parametrize("place", ["mlruns", "home"])
def test_what_is_read_only_from_the_start_ends_before_the_training(
    place: str, workplace: Workplace, mounted: Callable[..., MountedDisk]
) -> None:
    disk = mounted(workplace.folder / place)
    first = workplace.mltrain("train", "tiny.py", "epochs=1")
    assert first.code == 0, first.err
    disk.read_only()
    for words in (("tiny.py",), ("--resume-run", first.run_id, "epochs=2")):
        done = workplace.mltrain("train", *words)
        assert done.code == 5, done.err
        assert "Traceback" not in done.err
        assert "epoch " not in done.out, "not a step was trained"


def test_a_full_staging_disk_leaves_the_store_as_it_was_and_recovers(
    tmp_path: Path, mounted: Callable[..., MountedDisk]
) -> None:
    run = FolderRun(tmp_path, place=places.behind(tmp_path / "artifacts"))
    disk = mounted(run.staging, "size=256k")
    manager = run.manager(max_to_keep=2)
    for epoch in (1, 2):
        manager.save_epoch_checkpoint(state_at(epoch), epoch)
    assert manager.wait(60)
    disk.fill()
    manager.save_epoch_checkpoint(state_at(3), 3)
    manager.save_epoch_checkpoint(state_at(4), 4)  # takes the place of the third, which could not be kept
    eventually(lambda: manager.failure is not None, "a failure")
    assert [manifest.epoch for manifest in manager.checkpoints()] == [1, 2]
    disk.free()
    assert manager.wait(60)
    assert [manifest.epoch for manifest in manager.checkpoints()] == [2, 4]
    manager.close()
