"""FAULTS C1-C7: every metric point exactly once and one run, whatever the way to the tracking server does.

The long sweep is this file with ``MLTRAIN_SWEEP=full``: thirty cycles of kill and resume in place of three.
"""

import os
import random
import signal
import sqlite3
import time
from contextlib import closing

import pytest
from mlflow import MlflowClient

from mltrain.ownership.attempts import LEASE_SECONDS
from tests.faults.proxy import Fault, FaultProxy, Rule
from tests.support.waiting import eventually, let_pass
from tests.support.workplace import Done, Workplace

pytestmark = pytest.mark.faults

FULL = os.environ.get("MLTRAIN_SWEEP") == "full"

SEED = int(os.environ.get("MLTRAIN_SEED", "6"))

EVERYTHING = "."

QUICK = {"MLTRAIN_GRACE_SECONDS": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "2"}

Undisturbed = tuple[Workplace, str]


def born(workplace: Workplace, run_id: str) -> list[str]:
    """The runs that have the same birth as this one."""
    client = MlflowClient(workplace.uri)
    birth = client.get_run(run_id).data.tags["mltrain.birth"]
    return [run.info.run_id for run in client.search_runs(["0"], f"tags.`mltrain.birth` = '{birth}'")]


def assert_as_undisturbed(remote: Workplace, done: Done, run_id: str, undisturbed: Undisturbed) -> None:
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    reference, reference_id = undisturbed
    assert remote.points(run_id) == reference.points(reference_id)
    assert born(remote, run_id) == [run_id]
    assert remote.mltrain("verify", run_id).code == 0
    run = MlflowClient(remote.uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    expected = MlflowClient(reference.uri).get_run(reference_id).data.params
    assert {key for key, value in expected.items() if run.data.params.get(key) != value} <= {"sleep"}


def test_a_server_that_comes_late_creates_the_run_while_it_trains(
    proxy: FaultProxy, disturbed: Workplace, remote: Workplace, undisturbed: Undisturbed
) -> None:
    proxy.rules = [Rule(EVERYTHING, ["reset"])]
    started = disturbed.start("train", "tiny.py", "sleep=0.2")
    said = started.until("epoch    1/4")
    assert "run_id=" not in said
    assert proxy.happened["reset"] > 0
    proxy.rules = []
    started.until("run_id=")
    done = started.wait()
    assert "although there is no run yet" in done.err
    assert_as_undisturbed(remote, done, done.run_id, undisturbed)


def test_a_server_that_never_comes_gets_everything_by_sync(
    proxy: FaultProxy, disturbed: Workplace, remote: Workplace, undisturbed: Undisturbed
) -> None:
    proxy.rules = [Rule(EVERYTHING, ["reset"])]
    done = disturbed.mltrain("train", "tiny.py", **QUICK)
    assert done.code == 0, done.err
    assert "run_id=" not in done.out
    assert "mltrain sync" in done.out
    proxy.rules = []
    first = disturbed.mltrain("sync", "--json")
    assert first.code == 0, first.out + first.err
    run_id = first.json[0]["run_id"]
    assert len(first.json[0]["uploaded"]) > 0
    for _ in range(2):
        again = disturbed.mltrain("sync", "--json")
        assert [(one["run_id"], one["sent"], one["uploaded"]) for one in again.json] == [(run_id, 0, [])]
    assert_as_undisturbed(remote, done, run_id, undisturbed)
    resumed = disturbed.mltrain("train", "--resume-run", run_id, "epochs=5")
    assert resumed.code == 0, resumed.err
    assert "from epoch 4" in resumed.out


def test_what_a_run_went_by_before_it_was_created_is_understood(proxy: FaultProxy, disturbed: Workplace) -> None:
    proxy.rules = [Rule(EVERYTHING, ["reset"])]
    done = disturbed.mltrain("train", "tiny.py", "epochs=1", **QUICK)
    proxy.rules = []
    (home,) = {file.parent.name for file in disturbed.folder.glob("home/*/*/journal.sqlite")}
    early = disturbed.mltrain("train", "--resume-run", home, "epochs=2")
    assert (done.code, early.code) == (0, 2)
    assert "mltrain sync" in early.err
    assert disturbed.mltrain("sync").code == 0
    assert disturbed.mltrain("train", "--resume-run", home, "epochs=2").code == 0


@pytest.mark.parametrize("fault", ["reset", "hang"])
def test_a_training_that_requires_tracking_is_refused_before_a_hanging_request_ends(
    fault: Fault, proxy: FaultProxy, disturbed: Workplace
) -> None:
    proxy.hang_seconds = 600.0  # no command of a test may take so long
    proxy.rules = [Rule(EVERYTHING, [fault])]
    done = disturbed.mltrain("train", "tiny.py", "--require-tracking")
    assert done.code == 6
    assert "Traceback" not in done.err
    assert proxy.happened[fault] > 0


@pytest.mark.parametrize("fault", ["reset", "hang", "503", "429", "html", "half", "lost"])
def test_a_bad_way_to_the_server_loses_and_doubles_nothing(
    fault: Fault, proxy: FaultProxy, disturbed: Workplace, remote: Workplace, undisturbed: Undisturbed
) -> None:
    proxy.rules = [Rule("runs/create", [fault], most=1), Rule(EVERYTHING, [fault], chance=0.2)]
    proxy.hang_seconds = 3.0
    done = disturbed.mltrain("train", "tiny.py", MLFLOW_HTTP_REQUEST_TIMEOUT="1", MLTRAIN_GRACE_SECONDS="60")
    assert proxy.happened[fault] > 3
    assert_as_undisturbed(remote, done, done.run_id, undisturbed)


@pytest.mark.parametrize("fault", ["400", "401", "403", "404", "413"])
def test_what_the_server_refuses_is_kept_and_the_rest_flows(
    fault: Fault, proxy: FaultProxy, disturbed: Workplace, remote: Workplace, undisturbed: Undisturbed
) -> None:
    proxy.rules = [Rule("runs/log-batch", [fault])]
    done = disturbed.mltrain("train", "tiny.py", **QUICK)
    assert done.code == 0, done.err
    assert proxy.happened[fault] > 0
    assert "mltrain sync" in done.out
    if fault in ("401", "403"):
        assert "MLFLOW_TRACKING_" in done.err
        assert proxy.happened[fault] < 10  # asking again is useless
    assert remote.mltrain("verify", done.run_id).code == 0
    proxy.rules = []
    synced = disturbed.mltrain("sync")
    assert synced.code == 0, synced.out + synced.err
    assert_as_undisturbed(remote, done, done.run_id, undisturbed)


def test_a_newest_checkpoint_that_the_store_refuses_is_exit_76_and_finished_when_it_is_sent(
    proxy: FaultProxy, disturbed: Workplace, remote: Workplace, undisturbed: Undisturbed
) -> None:
    proxy.rules = [Rule("PUT .*/checkpoints/", ["413"])]
    done = disturbed.mltrain("train", "tiny.py", **QUICK)
    assert proxy.happened["413"] > 0
    assert done.code == 76, done.err
    assert "on this machine only" in done.out
    assert "mltrain sync" in done.out
    run = MlflowClient(remote.uri).get_run(done.run_id)
    assert run.info.status == "KILLED"
    newest, _, host = run.data.tags["mltrain.newest_only_local"].partition(" on ")
    assert newest in done.out
    assert host
    assert disturbed.mltrain("sync").code == 5
    assert remote.status(done.run_id) == "KILLED"
    proxy.rules = []
    synced = disturbed.mltrain("sync")
    assert synced.code == 0, synced.out + synced.err
    reference, reference_id = undisturbed
    assert remote.points(done.run_id) == reference.points(reference_id)
    assert remote.mltrain("verify", done.run_id).code == 0
    run = MlflowClient(remote.uri).get_run(done.run_id)
    assert (run.info.status, run.data.tags["mltrain.status"]) == ("FINISHED", "finished")
    assert "mltrain.newest_only_local" not in run.data.tags


def test_a_resume_on_the_machine_that_alone_has_the_newest_checkpoint_sends_it(
    proxy: FaultProxy, disturbed: Workplace, remote: Workplace, undisturbed: Undisturbed
) -> None:
    proxy.rules = [Rule("PUT .*/checkpoints/", ["413"])]
    done = disturbed.mltrain("train", "tiny.py", **QUICK)
    assert done.code == 76, done.err
    proxy.rules = []
    resumed = disturbed.mltrain("train", "--resume-run", done.run_id)
    assert resumed.code == 0, resumed.err
    run = MlflowClient(remote.uri).get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert "mltrain.newest_only_local" not in run.data.tags
    assert remote.mltrain("checkpoints", done.run_id, "--json").json[-1]["epoch"] == 4
    reference, reference_id = undisturbed
    assert remote.points(done.run_id) == reference.points(reference_id)


def test_retry_after_is_heeded_within_reason(proxy: FaultProxy, disturbed: Workplace) -> None:
    proxy.rules = [Rule("runs/log-batch", ["429"], most=1, retry_after="3")]
    began = time.monotonic()
    done = disturbed.mltrain("train", "tiny.py", "epochs=1")
    assert done.code == 0, done.err
    assert proxy.happened["429"] == 1
    assert time.monotonic() - began > 3
    proxy.rules = [Rule("runs/log-batch", ["503"], most=1, retry_after="86400")]
    assert disturbed.mltrain("train", "tiny.py", "epochs=1", MLTRAIN_GRACE_SECONDS="2").code == 0


def test_kills_and_resumes_through_a_bad_network_end_as_one_undisturbed_run(
    proxy: FaultProxy, disturbed: Workplace, remote: Workplace
) -> None:
    cycles = 30 if FULL else 3
    draw = random.Random(SEED)
    words = ("epochs=20", "save_every_steps=4")
    reference = remote.mltrain("train", "tiny.py", *words)
    proxy.rules = [Rule(EVERYTHING, ["reset", "hang", "503", "lost", "half"], chance=0.08)]
    proxy.hang_seconds = 3.0
    patient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "2", "MLTRAIN_GRACE_SECONDS": "60"}
    started = disturbed.start("train", "tiny.py", *words, "sleep=0.12", **patient)
    run_id = started.run_id
    kills = 0
    for _ in range(cycles):
        started.until("Training on")
        if started.child.ended.wait(draw.uniform(0.1, 1.6)):
            break
        started.child.kill(signal.SIGKILL)
        assert started.wait().code == -signal.SIGKILL
        kills += 1
        started = disturbed.start("train", "--resume-run", run_id, **patient)
    proxy.rules = [Rule(EVERYTHING, ["reset", "503", "lost"], chance=0.05)]
    done = started.wait(200)
    assert kills == cycles
    assert proxy.happened["reset"] and proxy.happened["lost"]
    assert_as_undisturbed(remote, done, run_id, (remote, reference.run_id))
    params = MlflowClient(remote.uri).get_run(run_id).data.params
    assert len([key for key in params if key.startswith("mltrain.attempt.")]) == kills


def test_a_locked_database_holds_up_nothing_but_the_record(workplace: Workplace, undisturbed: Undisturbed) -> None:
    started = workplace.start("train", "tiny.py", "sleep=0.1")
    started.until("epoch    1/4")
    with closing(sqlite3.connect(workplace.folder / "mlflow.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        locked = time.monotonic()
        started.until("epoch    4/4")  # training goes on
        let_pass(max(0.0, (60 if FULL else 8) - (time.monotonic() - locked)))
        database.execute("ROLLBACK")
    done = started.wait()
    assert done.code == 0, done.err
    # A lock that outlives the training and its grace leaves the rest on this disk.
    assert workplace.mltrain("sync").code == 0
    reference, run_id = undisturbed
    assert workplace.points(done.run_id) == reference.points(run_id)


def test_heartbeats_go_on_while_the_artifact_store_answers_nothing(
    proxy: FaultProxy, disturbed: Workplace, remote: Workplace
) -> None:
    proxy.hang_seconds = 60.0
    started = disturbed.start("train", "tiny.py", "epochs=100000", "sleep=0.2")
    run_id = started.until("epoch    1/").partition("run_id=")[2].split()[0]
    proxy.rules = [Rule("mlflow-artifacts", ["hang"])]
    client = MlflowClient(remote.uri)
    beats: set[str] = set()

    def six_came() -> bool:
        beats.add(client.get_run(run_id).data.tags["mltrain.heartbeat"])
        return len(beats) >= 6

    eventually(six_came, beats, LEASE_SECONDS)
    assert proxy.happened["hang"] > 0
    started.child.kill(signal.SIGKILL)
    started.wait()
