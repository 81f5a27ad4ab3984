"""A separate process sends fast points completely and unchanged."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from mltrain.delivery.journal import Journal
from mltrain.delivery.sender import Sender
from mltrain.delivery.sending_process import POINTS_A_BATCH, SenderProcess
from mltrain.delivery.sync import Existing, HostLock
from mltrain.store.local import LocalArtifacts
from mltrain.tracking.client import TrackingClient
from tests.support.database import fresh_database
from tests.support.waiting import eventually, let_pass


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns")


@pytest.fixture
def run_id(uri: str) -> str:
    return str(MlflowClient(uri).create_run("0").info.run_id)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite", 1)
    opened.add_points(("loss", step, float(step), 1_700_000_000_000 + step) for step in range(2500))
    opened.flush()
    yield opened
    opened.close()


@pytest.fixture
def process_sender(uri: str, tmp_path: Path) -> Iterator[SenderProcess]:
    made = SenderProcess(tmp_path / "journal.sqlite", uri, delay_seconds=0.0)
    yield made
    made.close()


def started(process_sender: SenderProcess, run_id: str) -> int:
    """Wait until it delivers a batch; return how many earlier calls sent nothing."""
    answers: list[str] = []

    def sent() -> bool:
        answers.append(process_sender.deliver(run_id, POINTS_A_BATCH))
        return answers[-1] == "sent"

    eventually(sent, answers)
    return len(answers) - 1


def test_it_is_started_when_a_full_batch_waits(process_sender: SenderProcess) -> None:
    assert process_sender.deliver("0" * 32, POINTS_A_BATCH - 1) == "fallback"
    assert process_sender._process is None
    assert process_sender.deliver("0" * 32, POINTS_A_BATCH) == "wait"
    assert process_sender._process is not None


def test_a_training_that_ends_at_once_starts_none(uri: str, tmp_path: Path, journal: Journal, run_id: str) -> None:
    process = SenderProcess(tmp_path / "journal.sqlite", uri, delay_seconds=3600.0)
    assert not process.starting
    assert process.deliver(run_id, POINTS_A_BATCH) == "wait"
    assert process.starting
    assert process.deliver(run_id, POINTS_A_BATCH - 1) == "fallback"  # what a training at its end still has
    assert process._process is None
    process.close()
    assert process.deliver(run_id, POINTS_A_BATCH) == "fallback"


def test_nobody_waits_for_one_that_does_not_get_ready(uri: str, tmp_path: Path) -> None:
    process = SenderProcess(tmp_path / "journal.sqlite", uri, startup_seconds=0.0, delay_seconds=0.0)
    assert process.deliver("0" * 32, POINTS_A_BATCH) == "fallback"
    process.close()


def test_it_sends_what_is_in_the_journal_oldest_first_and_removes_it_there(
    process_sender: SenderProcess, journal: Journal, uri: str, run_id: str
) -> None:
    assert started(process_sender, run_id) >= 1
    history = MlflowClient(uri).get_metric_history(run_id, "loss")
    expected = [(step, float(step), 1_700_000_000_000 + step) for step in range(POINTS_A_BATCH)]
    assert [(point.step, point.value, point.timestamp) for point in history] == expected
    assert [point.step for point in journal.unsent_points(1)] == [POINTS_A_BATCH]
    assert process_sender.deliver(run_id, 1000) == "sent"
    assert process_sender.deliver(run_id, 500) == "sent"  # a last one that is not full
    assert journal.unsent() == 0


def test_what_does_not_go_through_stays_for_the_sender(
    process_sender: SenderProcess, journal: Journal, run_id: str
) -> None:
    started(process_sender, run_id)
    assert process_sender.deliver("0" * 32, 1000) == "fallback"
    assert journal.unsent() == 1500
    assert process_sender.deliver(run_id, 1000) == "sent"


def test_its_death_is_noticed_at_once(journal: Journal, uri: str, run_id: str, tmp_path: Path) -> None:
    process_sender = SenderProcess(
        tmp_path / "journal.sqlite", uri, silent_seconds=600.0, delay_seconds=0.0
    )  # longer than a test may take
    started(process_sender, run_id)
    assert process_sender._process is not None
    os.kill(process_sender._process.pid, signal.SIGKILL)
    for _ in range(3):
        assert process_sender.deliver(run_id, 1000) == "fallback"
    assert journal.unsent() == 1500
    process_sender.close()


def test_one_that_is_stopped_is_disabled_with_a_warning(
    uri: str, journal: Journal, run_id: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    process_sender = SenderProcess(tmp_path / "journal.sqlite", uri, silent_seconds=2.0, delay_seconds=0.0)
    started(process_sender, run_id)
    assert process_sender._process is not None
    os.kill(process_sender._process.pid, signal.SIGSTOP)
    assert process_sender.deliver(run_id, 1000) == "fallback"
    assert process_sender._process.poll() is not None  # it sends nothing later
    assert process_sender.deliver(run_id, 1000) == "fallback"
    assert len([line for line in caplog.messages if "is disabled" in line]) == 1
    assert journal.unsent() == 1500


def test_one_that_works_for_longer_than_it_may_be_silent_is_not_disabled(
    process_sender: SenderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = """read setting; echo '{"ready": true}'; read order
    for i in 1 2 3 4 5 6 7; do sleep 0.5; echo '{"runs": true}'; done; echo '{"sent": 1}'; read end"""
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: start(["sh", "-c", talks], **options))
    patient = SenderProcess(Path("journal"), "sqlite://", silent_seconds=3.0)
    started(patient, "0" * 32)
    patient.close()


def test_where_no_process_can_be_started_points_are_sent_without_it(
    process_sender: SenderProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refused)
    for _ in range(2):
        assert process_sender.deliver("0" * 32, POINTS_A_BATCH) == "fallback"
    assert not process_sender.starting
    assert len([line for line in caplog.messages if "cannot be started" in line]) == 1


def test_one_that_was_closed_is_not_started(process_sender: SenderProcess) -> None:
    process_sender.close()
    assert process_sender.deliver("0" * 32, POINTS_A_BATCH) == "fallback"
    assert process_sender._process is None


def test_one_that_is_closed_while_it_starts_ends(
    process_sender: SenderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, start = threading.Event(), subprocess.Popen

    def slow(*words: Any, **options: Any) -> Any:
        entered.set()
        let_pass(0.3)
        return start(*words, **options)

    monkeypatch.setattr(subprocess, "Popen", slow)
    asking = threading.Thread(target=process_sender.deliver, args=("0" * 32, POINTS_A_BATCH))
    asking.start()
    assert entered.wait(60)
    process_sender.close()
    asking.join()
    assert process_sender._process is not None
    assert process_sender._process.poll() is not None


def test_what_is_printed_before_its_answers_is_none(
    process_sender: SenderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    talks = """read setting; echo welcome; echo '{"ready": true}'; read order; echo '{"sent": 1}'; read end"""
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda words, **options: start(["sh", "-c", talks], **options))
    assert started(process_sender, "0" * 32) >= 1


def test_it_is_starting_until_it_is_ready_or_has_ended(
    process_sender: SenderProcess, journal: Journal, run_id: str
) -> None:
    assert not process_sender.starting
    assert process_sender.deliver(run_id, POINTS_A_BATCH) == "wait"
    assert process_sender.starting
    started(process_sender, run_id)
    assert not process_sender.starting
    process_sender.close()
    assert not process_sender.starting


def test_it_ends_with_the_process_that_started_it(process_sender: SenderProcess, journal: Journal, run_id: str) -> None:
    started(process_sender, run_id)
    assert process_sender._process is not None
    assert process_sender._process.stdin is not None
    process_sender._process.stdin.close()
    assert process_sender._process.wait(60) == 0


PARENT = """
import json, os, sys, time
from mltrain.delivery.sync import Existing, HostLock
from mltrain.delivery.sending_process import SenderProcess
process_sender = SenderProcess(sys.argv[1], sys.argv[2], delay_seconds=0.0)
while process_sender.deliver(sys.argv[3], 1000) != "sent":
    time.sleep(0.05)
worker = os.fork()  # as a data loader does: it holds the parent's ends of all pipes
if worker == 0:
    time.sleep(60)
print(json.dumps([process_sender._process.pid, worker]), flush=True)
time.sleep(60)
"""


def test_it_does_not_outlive_a_killed_training_whose_data_workers_do(
    journal: Journal, uri: str, run_id: str, tmp_path: Path
) -> None:
    words = [sys.executable, "-c", PARENT, str(tmp_path / "journal.sqlite"), uri, run_id]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process_sender, worker = json.loads(parent.stdout.readline())
        assert psutil.pid_exists(process_sender)
        parent.kill()
        parent.wait()
        try:
            eventually(lambda: not psutil.pid_exists(process_sender), "its end")
            assert psutil.pid_exists(worker)
        finally:
            os.kill(worker, signal.SIGKILL)


def test_the_sender_delivers_everything_whether_or_not_the_process_is_there(
    process_sender: SenderProcess, journal: Journal, uri: str, run_id: str, tmp_path: Path
) -> None:
    server = TrackingClient(uri, MlflowClient(uri))
    sender = Sender(server, Existing(run_id, LocalArtifacts(tmp_path)), journal, HostLock(), process_sender)
    step = 2500
    journal.add_points(("loss", n, float(n), n) for n in range(step, step + 2000))
    step += 2000

    def ready() -> bool:
        nonlocal step
        journal.add_points([("loss", step, float(step), step)])
        step += 1
        return process_sender._ready

    eventually(ready, "its readiness")
    journal.add_points(("loss", n, float(n), n) for n in range(step, step + 2000))
    step += 2000
    assert sender.drain(60)
    process = process_sender._process
    assert process is not None
    eventually(lambda: process.poll() is not None, "the end of the process: it does not outlive the sender")
    history = MlflowClient(uri).get_metric_history(run_id, "loss")
    assert sorted(point.step for point in history) == list(range(step))
