import gc
import logging
import os
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import torch

from tests.support.disks import Disk
from tests.support.forkserver import ForkServer
from tests.support.places import Place, behind, bucket, folder, server
from tests.support.runs import FolderRun
from tests.support.servers import BucketServer, TrackingServer
from tests.support.workplace import Workplace

if TYPE_CHECKING:
    from mltrain.tracking.client import TrackingClient
    from tests.support.example_pipelines import TinyPipeline

# How long an example takes depends on the machine.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

# A background job of a shell that is not interactive begins with SIGINT ignored, one of nohup with SIGHUP; children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A thread that uploads may wait for a server, but the one that writes to this disk ends when its manager is closed.
MANAGER = "mltrain-disk"
# How long a thread of a closed manager may take to end on a busy machine.
THREADS_SECONDS = 10

collect_ignore = [] if torch.cuda.is_available() else ["gpu"]
if not os.environ.get("MLTRAIN_UI"):
    collect_ignore.append("ui")  # needs a browser: make ui
if not os.environ.get("MLTRAIN_SERVERS"):
    collect_ignore.append("servers")  # needs PostgreSQL: make servers


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the runs of every project into MLflow's first experiment."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")


@pytest.fixture(name="server")
def database_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "TrackingClient":
    """A tracking store and home of the test's own process."""
    from mltrain.tracking.client import connect
    from tests.support.database import use_database

    return connect(use_database(monkeypatch, tmp_path))


@pytest.fixture(autouse=True)
def no_levels_of_another_test() -> Iterator[None]:
    """Restore the logging levels that a command sets."""
    loggers = [logging.getLogger(name) for name in ("mltrain", "projects")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def no_store_of_another_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo ``mlflow.set_tracking_uri``, which some engines call: it would count for more than a later test's environment."""
    before = os.environ.get("MLFLOW_TRACKING_URI")
    yield
    if "mlflow" in sys.modules:
        sys.modules["mlflow"].set_tracking_uri(None)
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before
    else:
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def _alive_after(threads: list[threading.Thread], seconds: float) -> list[str]:
    """Return the names of threads that remain."""
    for thread in threads:
        thread.join(seconds)
    return [thread.name for thread in threads if thread.is_alive()]


@pytest.fixture(autouse=True)
def no_manager_stays_open() -> Iterator[None]:
    """Fail a test that leaves a manager's threads."""
    before = set(threading.enumerate())
    yield
    left = [one for one in threading.enumerate() if one.name.startswith(MANAGER) and one not in before]
    alive = _alive_after(left, seconds=1)
    if alive:
        gc.collect()  # a manager in a reference cycle ends its threads when it is collected; this takes a third of a second
        alive = _alive_after(left, THREADS_SECONDS)
    assert not alive, (
        f"Threads outlive their test: {alive}. Expected none. Try: close the manager or the run in the test."
    )


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """One for all who do not break it."""
    started = TrackingServer(tmp_path_factory.mktemp("tracking"))
    started.start()
    yield started
    started.kill()


@pytest.fixture(scope="session")
def bucket_server() -> Iterator[BucketServer]:
    started = BucketServer()
    started.start()
    yield started
    started.kill()


PLACES = [
    "on this machine",
    "elsewhere",
    pytest.param("on a server", marks=pytest.mark.faults),
    pytest.param("on S3", marks=pytest.mark.faults),
]


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """Where the artifacts of a run are: the same tests run on each kind of store."""
    if request.param == "on this machine":
        return folder(tmp_path / "artifacts")
    if request.param == "elsewhere":
        return behind(tmp_path / "artifacts")
    if request.param == "on a server":
        return server(request.getfixturevalue("tracking_server"), f"{uuid.uuid4().hex}/artifacts")
    started: BucketServer = request.getfixturevalue("bucket_server")
    for name, value in started.access.items():
        monkeypatch.setenv(name, value)
    return bucket(started, f"{uuid.uuid4().hex}/artifacts")


@pytest.fixture
def workplace(tmp_path: Path, fork_server: ForkServer) -> Workplace:
    return Workplace(tmp_path / "here", fork_server)


@pytest.fixture(scope="session")
def session_workplace(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("session") / "here", fork_server)


@pytest.fixture(scope="session")
def undisturbed(session_workplace: Workplace) -> tuple[Workplace, str]:
    """A run of the tiny project that nothing happened to."""
    done = session_workplace.mltrain("train", "tiny.py")
    assert done.code == 0, done.err
    return session_workplace, done.run_id


@pytest.fixture(scope="session")
def stopped_pipeline(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> "TinyPipeline":
    """A pipeline with two finished stages and a stopped third. No test resumes it."""
    from tests.support.example_pipelines import TinyPipeline

    tiny = TinyPipeline(Workplace(tmp_path_factory.mktemp("pipeline") / "here", fork_server))
    assert tiny("--mode", "resume", "epochs=1", "second.signal_at=3").code == 75
    return tiny


@pytest.fixture
def run(place: Place, tmp_path: Path) -> FolderRun:
    """A run whose artifacts are at each kind of place."""
    return FolderRun(tmp_path, place=place)


@pytest.fixture
def local(tmp_path: Path) -> FolderRun:
    """A run with its artifacts in a local folder."""
    return FolderRun(tmp_path)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from tests.support.database import use_database

    return use_database(monkeypatch, tmp_path)
