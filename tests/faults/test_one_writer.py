"""FAULTS C8, A10, D1: one process writes to a run, and who was overtaken writes nothing more.

The long sweep is this file with ``MLTRAIN_SWEEP=full``: forty pairs of simultaneous resumes in place of four.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from tests.support.waiting import eventually, let_pass
from tests.support.workplace import Workplace

pytestmark = pytest.mark.faults

FULL = os.environ.get("MLTRAIN_SWEEP") == "full"


def stopped_run(workplace: Workplace) -> str:
    done = workplace.mltrain("train", "tiny.py", "signal_at=4", "epochs=1000", "save_interval=0")
    assert done.code == 75, done.err
    return done.run_id


def everything(workplace: Workplace, run_id: str) -> dict[str, Any]:
    """Return everything stored of a run except its lease."""
    with closing(sqlite3.connect(workplace.uri.removeprefix("sqlite:///"))) as database:
        points = database.execute("SELECT key, step, value, timestamp FROM metrics WHERE run_uuid = ?", (run_id,))
        tags = database.execute("SELECT key, value FROM tags WHERE run_uuid = ? ORDER BY key", (run_id,)).fetchall()
        status = database.execute("SELECT status FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
        root = Path(database.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()[0])
        found = sorted(points.fetchall())
    files = sorted((str(f.relative_to(root)), f.stat().st_size) for f in root.rglob("*") if f.is_file())
    return {"points": found, "tags": tags, "status": status, "files": files}


@pytest.mark.parametrize("same_host", [True, False])
def test_of_two_resumes_at_once_one_wins_and_the_other_names_it(same_host: bool, workplace: Workplace) -> None:
    run_id = stopped_run(workplace)
    other = workplace if same_host else workplace.elsewhere("another-home")
    for number in range(20 if FULL else 2):
        pair = [
            place.start("train", "--resume-run", run_id, "sleep=0.05", "signal_at=0", MLTRAIN_GRACE_SECONDS="120")
            for place in (workplace, other)
        ]
        eventually(lambda pair=pair: any(one.child.ended.is_set() for one in pair), "a refusal")
        lost, won = sorted(pair, key=lambda one: not one.child.ended.is_set())
        refused = lost.wait()
        assert not won.child.ended.is_set()
        assert refused.code == 4, refused.err
        assert f"process {won.child.pid}" in refused.err
        won.until("val/loss")
        won.child.kill(signal.SIGTERM)
        assert won.wait().code == 75
        params = MlflowClient(workplace.uri).get_run(run_id).data.params
        assert len([key for key in params if key.startswith("mltrain.attempt.")]) == number + 1


ASLEEP = """
import os, signal
import tiny
from tiny import Config, build

_call = tiny.Faulty.__call__

def stopping(self, batch):
    result = _call(self, batch)
    if self.done == 9 and "STOP_HERE" in os.environ:
        open("quiet").read()  # until the test writes to it: a request that is under way cannot be called back
        os.kill(os.getpid(), signal.SIGSTOP)
    return result

tiny.Faulty.__call__ = stopping
"""


def is_delivered(workplace: Workplace, run_id: str, checkpoint: str, step: int) -> bool:
    client = MlflowClient(workplace.uri)
    points = {point.step for point in client.get_metric_history(run_id, "step/loss")}
    return step in points and client.get_run(run_id).data.tags.get("mltrain.latest") == checkpoint


@pytest.mark.parametrize("words", [["save_every_steps=1"], []], ids=["saving", "not saving"])
def test_a_stopped_holder_that_wakes_up_after_a_takeover_changes_nothing(
    words: list[str], workplace: Workplace
) -> None:
    (workplace.folder / "asleep.py").write_text(ASLEEP)
    os.mkfifo(workplace.folder / "quiet")
    holder = workplace.start("train", "asleep.py", "epochs=1000", *words, STOP_HERE="yes")
    run_id = holder.run_id
    saved = 8 if words else 6  # or the end of the first epoch
    eventually(lambda: is_delivered(workplace, run_id, f"step-{saved:09d}-a01", 8), "the delivery of step 8")
    (workplace.folder / "quiet").write_text("")
    eventually(lambda: psutil.Process(holder.child.pid).status() == psutil.STATUS_STOPPED, "its stop")
    let_pass(4)  # so long that it has to doubt
    taker = workplace.mltrain("train", "--resume-run", run_id, "--take-over", "epochs=3")
    assert taker.code == 0, taker.err
    before = everything(workplace, run_id)
    holder.child.kill(signal.SIGCONT)
    woken = holder.wait(60)
    assert woken.code == 4, (woken.out, woken.err)
    after = everything(workplace, run_id)
    assert {what: set(after[what]) ^ set(before[what]) for what in after} == {what: set() for what in after}
    assert before["status"] == ("FINISHED",)
    assert len({(key, step) for key, step, *_ in before["points"]}) == len(before["points"])
    assert workplace.mltrain("sync").code == 0
    assert everything(workplace, run_id)["points"] == before["points"]


def test_a_live_holder_that_is_taken_over_stops_while_the_other_trains(workplace: Workplace) -> None:
    holder = workplace.start("train", "tiny.py", "epochs=1000", "sleep=0.05")
    run_id = holder.run_id
    holder.until("epoch    1/")
    taker = workplace.start("train", "--resume-run", run_id, "--take-over", "epochs=40", "sleep=0.03")
    taker.until("run_id=")
    assert holder.wait(30).code == 4
    assert taker.child.code is None, "the holder stops while the other one trains"
    assert taker.wait().code == 0
    points = everything(workplace, run_id)["points"]
    assert len({(key, step) for key, step, *_ in points}) == len(points)


def test_sync_on_a_machine_that_was_overtaken_sends_nothing_of_the_abandoned_stretch(workplace: Workplace) -> None:
    done = workplace.mltrain("train", "tiny.py", "kill_at=8")
    home = next(workplace.folder.glob("home/*/*/journal.sqlite"))
    with closing(sqlite3.connect(home)) as journal:
        journal.execute("INSERT INTO points (attempt, key, step, value, timestamp) VALUES (1, 'step/loss', 7, 99.0, 1)")
        journal.execute("INSERT INTO points (attempt, key, step, value, timestamp) VALUES (1, 'step/loss', 8, 99.0, 1)")
        journal.commit()
    other = workplace.elsewhere("another-home")
    assert other.mltrain("train", "--resume-run", done.run_id, "kill_at=0").code == 0
    before = everything(workplace, done.run_id)
    synced = workplace.mltrain("sync", "--json")
    assert synced.code == 0
    assert synced.json[0]["dropped"] >= 2
    after = everything(workplace, done.run_id)
    # Pictures of the first epoch count, and may have waited here; those of the abandoned second one do not.
    sent = {name for name, _ in after["files"]} - {name for name, _ in before["files"]}
    assert all("epoch_0001" in name or "+step+6+" in name for name in sent), sent
    assert {name: size for name, size in after["files"] if name not in sent} == dict(before["files"])
    new = [point for point in after["points"] if point not in before["points"]]
    assert [point for point in new if not point[0].startswith("system/")] == []  # those have the run's age as step
    assert dict(after["tags"]) == dict(before["tags"])


def test_a_dead_holder_is_taken_over_at_once(workplace: Workplace) -> None:
    done = workplace.mltrain("train", "tiny.py", "kill_at=8")
    resumed = workplace.mltrain("train", "--resume-run", done.run_id, "kill_at=0")
    assert resumed.code == 0, resumed.err
    assert "for a heartbeat" not in resumed.err


CLAIMED = """
from mltrain.run.ending import Ending
from tiny import Config, build

_close = Ending.close

def close(ending, *arguments, **named):
    if not ending._hold.overtaken:
        ending._server.client.log_param(ending._run.id, "mltrain.attempt.2", "{}")
    return _close(ending, *arguments, **named)

Ending.close = close
"""


def test_a_run_that_is_taken_over_at_the_very_end_ends_its_first_holder_with_exit_4(workplace: Workplace) -> None:
    (workplace.folder / "claimed.py").write_text(CLAIMED)
    done = workplace.mltrain("train", "claimed.py", "epochs=1")
    assert done.code == 4, done.err
    assert "Traceback" not in done.err
    assert "taken this run over" in done.err


@contextmanager
def in_a_container(workplace: Workplace, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run mltrain in a container: process ids count from 1. The kernel and the name of the machine stay the same."""
    with (workplace.folder / "container").open("wb") as said:
        apart = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m", "mltrain")
        container = subprocess.Popen([*apart, *words], cwd=workplace.folder, env=workplace.environment, stdout=said)
        try:
            yield container
        finally:
            container.kill()
            container.wait()


def run_in(workplace: Workplace) -> str:
    output = workplace.folder / "container"
    eventually(lambda: "run_id=" in output.read_text() and "epoch " in output.read_text(), output.read_text, 240.0)
    return output.read_text().partition("run_id=")[2].split()[0]


def test_a_live_holder_in_another_container_is_not_dead(workplace: Workplace) -> None:
    with in_a_container(workplace, "train", "tiny.py", "epochs=100000", "sleep=0.05"):
        run_id = run_in(workplace)
        other = workplace.elsewhere("another-home")
        refused = other.mltrain("train", "--resume-run", run_id, timeout=240)
        assert refused.code == 4, refused.err
        (row,) = other.mltrain("runs", "--json").json
        assert row["state"] == "running elsewhere"
        # And the other way round: the container's mltrain looks at a holder outside.
        outside = workplace.start("train", "tiny.py", "epochs=100000", "sleep=0.05")
        second = outside.run_id
        with in_a_container(other, "train", "--resume-run", second) as asking:
            assert asking.wait(240) == 4
        outside.child.kill(signal.SIGKILL)
        outside.wait()
    assert "mltrain.attempt.2" not in MlflowClient(workplace.uri).get_run(run_id).data.params


def test_a_dead_holder_of_another_container_with_the_same_home_is_taken_over_at_once(workplace: Workplace) -> None:
    with in_a_container(workplace, "train", "tiny.py", "epochs=100000", "sleep=0.05"):
        run_id = run_in(workplace)
    resumed = workplace.mltrain("train", "--resume-run", run_id, "epochs=2", "sleep=0")
    assert resumed.code == 0, resumed.err
    assert "for a heartbeat" not in resumed.err


def test_a_run_that_ended_without_its_status_is_given_it_by_reap(workplace: Workplace) -> None:
    done = workplace.mltrain("train", "tiny.py", "epochs=1")
    client = MlflowClient(workplace.uri)
    client.update_run(done.run_id, status="RUNNING")  # as if it had been killed between the tag and the status
    found = {one["run_id"]: one["found"] for one in workplace.mltrain("reap", "--json").json}
    assert found == {done.run_id: "closed"}
    assert client.get_run(done.run_id).info.status == "FINISHED"
    assert client.get_run(done.run_id).data.tags["mltrain.status"] == "finished"


JUMPING = """
import time
from tiny import *
from tiny import build as build_tiny

_now, _calls = time.time_ns, [0]

def jumping():
    _calls[0] += 1
    return _now() + (86_400 if _calls[0] % 2 else -86_400) * 10**9

time.time_ns = jumping
time.time = lambda: jumping() / 1e9

def build(config):
    return build_tiny(config)
"""


def test_a_clock_that_jumps_by_days_changes_no_order_and_no_lease(
    workplace: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    (workplace.folder / "jumping.py").write_text(JUMPING)
    killed = workplace.mltrain("train", "jumping.py", "kill_at=15", "save_every_steps=4")
    assert killed.code == -signal.SIGKILL
    resumed = workplace.mltrain("train", "--resume-run", killed.run_id, "kill_at=0")
    assert resumed.code == 0, resumed.err
    reference, run_id = undisturbed
    assert workplace.points(killed.run_id) == reference.points(run_id)
    times = [at for *_, at in everything(workplace, killed.run_id)["points"]]
    assert max(times) - min(times) > 100_000_000  # the clock did jump
    rows = json.loads(workplace.mltrain("checkpoints", killed.run_id, "--json").out)
    steps = [row["step"] for row in rows]
    assert max(steps) == 24
