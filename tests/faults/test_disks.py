"""FAULTS B2-B4: disks that are full, read-only or failing, under a training. Small filesystems are mounted, so root is needed.

``MLTRAIN_SWEEP=full`` lets every single write of a training fail, and not only a few of them.
"""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support import places
from tests.support.equality import identical
from tests.support.example_pipelines import TinyPipeline
from tests.support.runs import FolderRun, state_at
from tests.support.waiting import eventually
from tests.support.workplace import Started, Workplace

pytestmark = pytest.mark.faults

LONG = ("epochs=1000", "sleep=0.02", "max_to_keep=3")


class Disk:
    """A small filesystem of its own."""

    def __init__(self, place: Path, options: str) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)

    def fill(self) -> None:
        """Take all of its space, down to the last byte."""
        with contextlib.suppress(OSError), (self.place / "ballast").open("ab", buffering=0) as file:
            for size in (2**16, 2**12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        continue

    def fill_inodes(self) -> None:
        """Take all of its files, not its space."""
        (self.place / "many").mkdir()
        with contextlib.suppress(OSError):
            for number in range(10**6):
                (self.place / "many" / str(number)).touch()

    def free(self) -> None:
        subprocess.run(["rm", "-rf", str(self.place / "ballast"), str(self.place / "many")], check=True)

    def read_only(self) -> None:
        """Allow no more writing, as soon as nobody is in the middle of it."""
        remount = ["mount", "-o", "remount,ro", str(self.place)]
        eventually(lambda: not subprocess.run(remount, capture_output=True).returncode, "a moment without writing")

    def unmount(self) -> None:
        subprocess.run(["umount", "-l", str(self.place)], check=True)


@pytest.fixture
def mounted() -> Iterator[Callable[..., Disk]]:
    disks: list[Disk] = []

    def mount(place: Path, options: str = "size=3m") -> Disk:
        disks.append(Disk(place, options))
        return disks[-1]

    yield mount
    for disk in disks:
        disk.unmount()


def said(started: Started, text: str, timeout: float = 60) -> None:
    """Wait until an error was reported."""

    def printed() -> bool:
        ended = started.child.code is not None
        if text in started.out.read_text() + started.err.read_text():
            return True
        assert not ended, started.err.read_text()
        return False

    eventually(printed, lambda: f"{text!r} in {started.err.read_text()[-2000:]}", timeout)


def all_intact(workplace: Workplace, run_id: str) -> int:
    done = workplace.mltrain("verify", run_id, "--json")
    assert done.code == 0, done.out
    assert done.json["damaged"] == {}
    return len(done.json["intact"])


def is_closed(workplace: Workplace, run_id: str) -> bool:
    """Whether it can be resumed, and is not RUNNING without a process."""
    return MlflowClient(workplace.uri).get_run(run_id).info.status == "KILLED"


@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_full_store_does_not_stop_the_training_and_checkpoints_go_on_when_there_is_space(
    what: str, workplace: Workplace, mounted: Callable[..., Disk]
) -> None:
    disk = mounted(workplace.folder / "mlruns", "size=3m,nr_inodes=400")
    started = workplace.start("train", "tiny.py", *LONG)
    started.until("epoch    3/")
    disk.fill() if what == "bytes" else disk.fill_inodes()
    said(started, "Free some space")
    epoch = last_epoch(started)
    started.until(f"epoch {epoch + 3:4d}/")
    run_id = run_of(started)
    before = all_intact(workplace, run_id)
    assert before >= 2, "nothing older was touched"
    disk.free()
    epoch = last_epoch(started)
    started.until(f"epoch {epoch + 3:4d}/")
    started.child.kill(signal.SIGTERM)
    done = started.wait()
    assert done.code == 75, done.err
    assert "Traceback" not in done.err
    rows = workplace.mltrain("checkpoints", run_id, "--json").json
    assert max(row["epoch"] for row in rows) >= epoch
    assert all_intact(workplace, run_id) == len(rows)


def last_epoch(started: Started) -> int:
    lines = [line for line in started.out.read_text().splitlines() if line.startswith("epoch ")]
    return int(lines[-1].split()[1].split("/")[0])


def run_of(started: Started) -> str:
    return started.out.read_text().partition("run_id=")[2].split()[0]


def test_a_last_checkpoint_that_could_not_be_kept_anywhere_is_exit_5(
    workplace: Workplace, mounted: Callable[..., Disk]
) -> None:
    disk = mounted(workplace.folder / "mlruns")
    started = workplace.start("train", "tiny.py", *LONG, MLTRAIN_GRACE_SECONDS="3")
    started.until("epoch    3/")
    disk.fill()
    said(started, "Free some space")
    started.child.kill(signal.SIGTERM)
    done = started.wait()
    assert done.code == 5, done.err
    assert "could not be kept" in done.out + done.err
    assert "Traceback" not in done.err
    run_id = run_of(started)
    assert is_closed(workplace, run_id), "no process lives, so it is not RUNNING"
    assert all_intact(workplace, run_id) >= 2
    disk.free()
    resumed = workplace.mltrain("train", "--resume-run", run_id, f"epochs={last_epoch(started) + 1}", "sleep=0")
    assert resumed.code == 0, resumed.err


def test_a_store_that_becomes_read_only_does_not_stop_the_training(
    workplace: Workplace, mounted: Callable[..., Disk]
) -> None:
    disk = mounted(workplace.folder / "mlruns")
    started = workplace.start("train", "tiny.py", *LONG, MLTRAIN_GRACE_SECONDS="3")
    started.until("epoch    3/")
    disk.read_only()
    said(started, "Read-only file system")
    epoch = last_epoch(started)
    started.until(f"epoch {epoch + 3:4d}/")
    started.child.kill(signal.SIGTERM)
    done = started.wait()
    assert done.code == 5, done.err
    assert "Traceback" not in done.err
    assert is_closed(workplace, run_of(started))
    assert all_intact(workplace, run_of(started)) >= 2


def test_a_home_without_space_loses_no_point(
    workplace: Workplace, mounted: Callable[..., Disk], undisturbed: tuple[Workplace, str]
) -> None:
    disk = mounted(workplace.folder / "home")
    started = workplace.start("train", "tiny.py", "sleep=0.3")
    started.until("epoch    1/")
    disk.fill()
    said(started, "could not be written to the journal")
    started.until("epoch    3/")
    disk.free()
    done = started.wait()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    reference, run_id = undisturbed
    assert workplace.points(done.run_id) == reference.points(run_id)
    assert identical(workplace.weights(done.run_id), reference.weights(run_id))


@pytest.mark.parametrize("place", ["mlruns", "home"])
def test_what_is_read_only_from_the_start_ends_before_the_training(
    place: str, workplace: Workplace, mounted: Callable[..., Disk]
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


def test_a_home_that_is_full_to_the_end_loses_no_point_that_the_server_takes(
    workplace: Workplace, mounted: Callable[..., Disk], undisturbed: tuple[Workplace, str]
) -> None:
    disk = mounted(workplace.folder / "home", "size=3m")
    started = workplace.start("train", "tiny.py", "sleep=0.1")
    started.until("epoch    1/4")
    disk.fill()
    done = started.wait()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    assert "mltrain sync" not in done.out
    reference, reference_id = undisturbed
    assert workplace.points(done.run_id) == reference.points(reference_id)
    assert MlflowClient(workplace.uri).get_run(done.run_id).info.status == "FINISHED"


def test_what_neither_disk_nor_server_takes_is_called_lost_and_a_resume_brings_back_the_points(
    workplace: Workplace, mounted: Callable[..., Disk], undisturbed: tuple[Workplace, str]
) -> None:
    disk = mounted(workplace.folder / "home", "size=3m")
    started = workplace.start("train", "tiny.py", "sleep=0.1", MLTRAIN_GRACE_SECONDS="2")
    started.until("epoch    1/4")
    disk.fill()
    with contextlib.closing(sqlite3.connect(workplace.folder / "mlflow.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        done = started.wait()
        database.execute("ROLLBACK")
    assert done.code == 5, done.err
    assert "LOST" in done.out
    assert MlflowClient(workplace.uri).get_run(done.run_id).info.status != "FINISHED"
    disk.free()
    resumed = workplace.mltrain("train", "--resume-run", done.run_id)
    assert resumed.code == 0, resumed.err
    reference, reference_id = undisturbed
    assert workplace.points(done.run_id) == reference.points(reference_id)
    assert MlflowClient(workplace.uri).get_run(done.run_id).info.status == "FINISHED"


def test_a_full_home_ends_no_stage_of_a_pipeline(workplace: Workplace, mounted: Callable[..., Disk]) -> None:
    tiny = TinyPipeline(workplace)
    disk = mounted(workplace.folder / "home", "size=6m")
    started = tiny.start("--mode", "resume", "first.sleep=0.1")
    started.until("epoch    1/")
    disk.fill()
    epoch = started.until("epoch    3/")
    assert epoch
    disk.free()
    done = started.wait()
    assert done.code == 0, done.err
    assert done.err.count("stage.log cannot be written") <= 1


def test_a_journal_that_is_damaged_in_the_middle_of_a_training_costs_no_step_and_no_resume(
    workplace: Workplace,
) -> None:
    started = workplace.start("train", "tiny.py", "sleep=0.3")
    started.until("epoch    1/4")
    [journal] = (workplace.folder / "home").glob("*/*/journal.sqlite")
    for file in journal.parent.glob("journal.sqlite*"):
        with file.open("r+b") as opened:
            opened.write(b"\xff" * file.stat().st_size)
    done = started.wait()
    assert "Traceback" not in done.err
    assert "epoch    4/4" in done.out
    assert (done.code, "LOST" in done.out) in ((0, False), (5, True)), done.err  # whatever had been sent by then
    resumed = workplace.mltrain("train", "--resume-run", done.run_id)
    assert resumed.code == 0, resumed.err
    assert MlflowClient(workplace.uri).get_run(done.run_id).info.status == "FINISHED"
    assert workplace.mltrain("verify", done.run_id).code == 0


def test_a_full_staging_disk_leaves_the_store_as_it_was_and_recovers(
    tmp_path: Path, mounted: Callable[..., Disk]
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


FAILING = """
import errno, os
from tiny import *
from tiny import Faulty

class Config(Config):
    nth: int = 0
    times: int = 1
    call: str = "write"

plain, calls = Faulty.__call__, []

def step(self, batch):
    if not calls:  # from the first step on: what fails before it is another matter
        arm(self.config)
    return plain(self, batch)

def arm(config):
    original = getattr(os, config.call)
    calls.append(0)
    def failing(*arguments):
        calls[0] += 1
        if config.nth <= calls[0] < config.nth + config.times:
            with open("fired", "a") as file:
                file.write("x")
            raise OSError(errno.ENOSPC if config.call == "write" else errno.EIO, "made to fail")
        return original(*arguments)
    setattr(os, config.call, failing)

Faulty.__call__ = step
"""


def failing_at(workplace: Workplace, call: str, nth: int, times: int) -> bool:
    """Train with one call of the disk failing, check the oracle, and return whether it did fail."""
    fired = workplace.folder / "fired"
    fired.unlink(missing_ok=True)
    done = workplace.mltrain("train", "failing.py", f"call={call}", f"nth={nth}", f"times={times}")
    assert done.code == 0, (nth, done.err)
    assert "Traceback" not in done.err
    happened = fired.exists()
    assert ("could not be written" in done.err) == happened, done.err
    all_intact(workplace, done.run_id)
    rows = workplace.mltrain("checkpoints", done.run_id, "--json").json
    assert rows[-1]["epoch"] == 4
    outcomes[call, nth] = done.run_id
    return happened


outcomes: dict[tuple[str, int], str] = {}


@pytest.fixture
def failing(workplace: Workplace) -> Workplace:
    (workplace.folder / "failing.py").write_text(FAILING, encoding="utf-8")
    return workplace


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_whichever_call_fails_the_training_ends_with_all_its_checkpoints(
    call: str, failing: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    reference, run_id = undisturbed
    expected, points = reference.weights(run_id), reference.points(run_id)
    if os.environ.get("MLTRAIN_SWEEP") == "full":
        numbers: Iterator[int] = iter(range(1, 1000))
    else:
        numbers = iter(sorted(random.Random(int(os.environ.get("MLTRAIN_SEED", "1"))).sample(range(1, 16), 2)))
    count = 0
    for nth in numbers:
        happened = failing_at(failing, call, nth, times=1 + nth % 5)
        found = outcomes[call, nth]
        assert identical(failing.weights(found), expected), f"after a failing {call} number {nth}"
        assert failing.points(found) == points
        if not happened:
            break
        count += 1
    assert count >= 2
    print(f"{count} calls of {call} failed, one after the other")


SLOW = """
import os, threading, time
from tiny import *
from tiny import Faulty

plain, flush, under_way = Faulty.__call__, os.fsync, threading.Event()

def slow(descriptor):
    if threading.current_thread().name.startswith("mltrain-disk"):
        under_way.set()
        time.sleep(0.5)
        under_way.clear()
    return flush(descriptor)

def step(self, batch):
    os.fsync = slow  # from the first step on
    if under_way.is_set():
        with open("meanwhile", "a") as file:
            file.write("x")
    return plain(self, batch)

Faulty.__call__ = step
"""


def test_where_each_flush_takes_half_a_second_the_training_goes_on_meanwhile(
    workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    reference, run_id = undisturbed
    (workplace.folder / "slow.py").write_text(SLOW, encoding="utf-8")
    done = workplace.mltrain("train", "slow.py")
    assert done.code == 0, done.err
    assert "could not" not in done.err
    meanwhile = len((workplace.folder / "meanwhile").read_text())
    assert meanwhile >= 3 * 5, "each of the first three epochs is followed by one that begins while it is being written"
    all_intact(workplace, done.run_id)
    assert identical(workplace.weights(done.run_id), reference.weights(run_id))
    assert workplace.points(done.run_id) == reference.points(run_id)
