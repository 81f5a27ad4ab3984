"""A real tracking server with proxied artifacts: another machine, an outage in the middle, what is left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Workplace, fresh_database, same
from tests.forkserver import ForkServer

pytestmark = pytest.mark.faults


class TrackingServer:
    """An MLflow server that can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        fresh_database(folder / "mlflow.db", Path("mlflow-artifacts:"))
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(
                    str(Path(sys.executable).parent / "mlflow"),
                    "server",
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(self.port),
                ),
                *("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"),
                *("--artifacts-destination", str(self.folder / "artifacts")),
            ],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError("the tracking server did not start")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    server = TrackingServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def remote(tracking: TrackingServer, tmp_path: Path, fork_server: ForkServer) -> Workplace:
    return Workplace(tmp_path / "here", fork_server, tracking.uri)


def test_a_run_continues_on_a_machine_that_never_saw_it(remote: Workplace, undisturbed: tuple[Workplace, str]) -> None:
    stopped = remote.mltrain("train", "tiny.py", "signal_at=8", "save_every_steps=3")
    assert stopped.code == 75, stopped.err
    other = remote.elsewhere("another-machine")
    resumed = other.mltrain("train", "--resume-run", stopped.run_id)
    assert resumed.code == 0, resumed.err
    reference, run_id = undisturbed
    expected, got = reference.weights(run_id), other.weights(stopped.run_id)
    assert {part for part in expected if not same(expected[part], got[part])} == set()
    assert other.points(stopped.run_id) == reference.points(run_id)
    assert other.mltrain("verify", stopped.run_id).code == 0
    for _ in range(2):
        assert [result["uploaded"] for result in other.mltrain("sync", "--json").json] == [[]]


def test_an_outage_in_the_middle_loses_and_doubles_nothing(
    tracking: TrackingServer, remote: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    started = remote.start("train", "tiny.py", "sleep=0.3")
    started.until("epoch    1/4")
    tracking.kill()
    started.until("epoch    3/4")  # training does not wait for the server
    tracking.start()
    done = started.wait()
    assert done.code == 0, done.err
    assert "Nothing is lost" in done.err
    reference, run_id = undisturbed
    assert remote.points(done.run_id) == reference.points(run_id)
    assert remote.mltrain("verify", done.run_id).code == 0


def test_what_an_outage_at_the_end_leaves_behind_is_sent_later(
    tracking: TrackingServer, remote: Workplace, undisturbed: tuple[Workplace, str]
) -> None:
    started = remote.start("train", "tiny.py", "sleep=0.2", MLTRAIN_GRACE_SECONDS="2")
    started.until("epoch    2/4")
    tracking.kill()
    try:
        started.until("epoch    4/4")
        started.child.kill(signal.SIGINT)  # the end waits for the store; a second request does not
        time.sleep(1.5)
        started.child.kill(signal.SIGINT)
        done = started.wait(90)
    finally:
        tracking.start()
    assert "mltrain sync" in done.out
    synced = remote.mltrain("sync")
    assert synced.code == 0, synced.out + synced.err
    assert remote.mltrain("sync").code == 0
    reference, run_id = undisturbed
    assert remote.points(done.run_id) == reference.points(run_id)
    assert remote.mltrain("runs", "--json").json[0]["state"] == "finished"
