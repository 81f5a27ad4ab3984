import json
import os
import shutil
import signal
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.database import fresh_database
from tests.forkserver import Child, ForkServer
from tests.places import Place, behind, bucket, folder, server
from tests.servers import BucketServer, TrackingServer

# A background job of a shell that is not interactive begins with SIGINT ignored, and its children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = Path(__file__).parent / "tiny.py"

collect_ignore = [] if torch.cuda.is_available() else ["test_gpu.py"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def run_id(self) -> str:
        return next(line.removeprefix("run_id=") for line in self.out.splitlines() if line.startswith("run_id="))

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Started:
    """A command that runs."""

    child: Child
    out: Path
    err: Path

    def wait(self, timeout: float = 120) -> Done:
        code = self.child.wait(timeout)
        # It may die before it has opened them.
        out, err = (file.read_text() if file.exists() else "" for file in (self.out, self.err))
        return Done(code, out, err)

    def until(self, text: str, timeout: float = 60) -> str:
        """Wait until the output holds a text; return the output."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            said = self.out.read_text() if self.out.exists() else ""
            if text in said:
                return said
            if self.child.ended.wait(0.02):
                break
        raise AssertionError(f"{text!r} never came: {self.out.read_text()} {self.err.read_text()}")


class Workplace:
    """A machine as a user sees it: a working directory, a tracking store, a home for staging."""

    def __init__(self, folder: Path, server: ForkServer, uri: str | None = None) -> None:
        self.folder = folder
        self.server = server
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(TINY, folder)
        if uri is None:
            fresh_database(folder / "mlflow.db", folder / "mlruns")
        self.uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        self._commands = 0
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "MLTRAIN_"))},
            "MLFLOW_TRACKING_URI": self.uri,
            "MLTRAIN_HOME": str(folder / "home"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
        }

    def elsewhere(self, name: str) -> "Workplace":
        """Another machine with the same tracking store: its own directory and home."""
        return Workplace(self.folder.parent / name, self.server, self.uri)

    def start(self, *words: str | Path, **environment: str) -> "Started":
        self._commands += 1
        out, err = (self.folder / f".{self._commands}.{name}" for name in ("out", "err"))
        child = self.server.start([str(w) for w in words], self.folder, {**self.environment, **environment}, out, err)
        return Started(child, out, err)

    def mltrain(self, *words: str | Path, timeout: float = 120, **environment: str) -> Done:
        return self.start(*words, **environment).wait(timeout)

    def points(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """All (step, value) of every metric that does not tell the time, in the order of the store."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        keys = [key for key in client.get_run(run_id).data.metrics if not key.startswith("system/")]
        return {key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key)) for key in keys}

    def weights(self, run_id: str) -> dict[str, Any]:
        """Every part of the newest checkpoint, flattened to tensors by name."""
        from mlflow import MlflowClient

        from mltrain.evaluate import reader
        from mltrain.tracking.server import Server

        found = reader(run_id, Server(self.uri, MlflowClient(self.uri)))
        return found.load("latest")[1]


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


def same(a: Any, b: Any) -> bool:
    """Whether two nestings are equal, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and a.equal(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "tobytes"):
        return bool(a.tobytes() == b.tobytes())
    return bool(a == b or (a != a and b != b))
