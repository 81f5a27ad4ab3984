"""FAULTS B2-B4: a home that is full or damaged while the run trains. Mounting a small filesystem needs root."""

import contextlib
import sqlite3
from collections.abc import Callable

import pytest

from tests.support.equality import identical
from tests.support.example_pipelines import TinyPipeline
from tests.support.mounted import MountedDisk
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults


def test_a_home_without_space_loses_no_point(
    workplace: Workplace, mounted: Callable[..., MountedDisk], undisturbed: tuple[Workplace, str]
) -> None:
    disk = mounted(workplace.folder / "home")
    started = workplace.start("train", "tiny.py", "sleep=0.3")
    started.until("epoch    1/")
    disk.fill()
    started.until_reported("could not be written to the journal")
    started.until("epoch    3/")
    disk.free()
    done = started.wait()
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    reference, run_id = undisturbed
    assert workplace.points(done.run_id) == reference.points(run_id)
    assert identical(workplace.weights(done.run_id), reference.weights(run_id))


def test_a_home_that_is_full_to_the_end_loses_no_point_that_the_server_takes(
    workplace: Workplace, mounted: Callable[..., MountedDisk], undisturbed: tuple[Workplace, str]
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
    assert workplace.status(done.run_id) == "FINISHED"


def test_what_neither_disk_nor_server_takes_is_called_lost_and_a_resume_brings_back_the_points(
    workplace: Workplace, mounted: Callable[..., MountedDisk], undisturbed: tuple[Workplace, str]
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
    assert workplace.status(done.run_id) != "FINISHED"
    disk.free()
    resumed = workplace.mltrain("train", "--resume-run", done.run_id)
    assert resumed.code == 0, resumed.err
    reference, reference_id = undisturbed
    assert workplace.points(done.run_id) == reference.points(reference_id)
    assert workplace.status(done.run_id) == "FINISHED"


def test_a_full_home_ends_no_stage_of_a_pipeline(workplace: Workplace, mounted: Callable[..., MountedDisk]) -> None:
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
    assert workplace.status(done.run_id) == "FINISHED"
    assert workplace.mltrain("verify", done.run_id).code == 0
