"""Machines as a user sees them, with their commands."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.database import fresh_database
from tests.support.forkserver import Child, ForkServer

TINY = Path(__file__).parent / "tiny.py"


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
        return Done(code, _text(self.out), _text(self.err))

    def until(self, text: str, timeout: float = 120) -> str:
        """Wait until the output holds a text; return the output."""
        self._until(lambda: text in _text(self.out), text, timeout)
        return _text(self.out)

    def until_reported(self, text: str, timeout: float = 120) -> None:
        """Wait until the output or the errors hold a text."""
        self._until(lambda: text in _text(self.out) + _text(self.err), text, timeout)

    @property
    def run_id(self) -> str:
        """The id of its run, once it is printed."""
        return self.until("run_id=").partition("run_id=")[2].split()[0]

    @property
    def last_epoch(self) -> int:
        """The epoch of the last line about one."""
        lines = [line for line in _text(self.out).splitlines() if line.startswith("epoch ")]
        return int(lines[-1].split()[1].split("/")[0])

    def _until(self, happened: Callable[[], bool], text: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            ended = self.child.ended.wait(0.02)  # looked at first: what it printed last counts
            if happened():
                return
            if ended:
                break
        raise AssertionError(f"{text!r} never came: {_text(self.out)} {_text(self.err)}")


def _text(file: Path) -> str:
    """Return what a command has printed so far; nothing, before it has opened the file."""
    return file.read_text() if file.exists() else ""


class Workplace:
    """A machine as a user sees it: a working directory, a tracking store, a home for staging."""

    def __init__(self, folder: Path, server: ForkServer, uri: str | None = None) -> None:
        self.folder = folder
        self.server = server
        folder.mkdir(parents=True, exist_ok=True)
        assert not (folder / TINY.name).exists(), f"{folder} belongs to another workplace, whose output would be read"
        shutil.copy(TINY, folder)
        if uri is None:
            fresh_database(folder / "mlflow.db", folder / "mlruns")
        self.uri = uri or f"sqlite:///{folder / 'mlflow.db'}"
        self._commands = 0
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "MLTRAIN_"))},
            "MLFLOW_TRACKING_URI": self.uri,
            "MLTRAIN_HOME": str(folder / "home"),
            "MLFLOW_EXPERIMENT_ID": "0",  # tests look for all runs in one experiment, whatever their project
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

    def checkpoint_names(self, run_id: str) -> list[str]:
        """The names of a run's checkpoints, the newest last."""
        return [row["checkpoint"] for row in self.mltrain("checkpoints", run_id, "--json").json]

    def intact(self, run_id: str) -> int:
        """Return the number of a run's checkpoints, all intact."""
        done = self.mltrain("verify", run_id, "--json")
        assert (done.code, done.json["damaged"]) == (0, {}), done.out
        return len(done.json["intact"])

    def points(self, run_id: str) -> dict[str, list[tuple[int, float]]]:
        """Return all sorted (step, value) except system metrics."""
        from tests.support import recorded

        return recorded.points(run_id, self.uri)

    def status(self, run_id: str) -> str:
        from tests.support import recorded

        return recorded.status(run_id, self.uri)

    def weights(self, run_id: str) -> dict[str, Any]:
        """Return the newest checkpoint's parts as tensors by name."""
        from mlflow import MlflowClient

        from mltrain.run.checkpoints import open_checkpoints
        from mltrain.tracking.client import TrackingClient

        found = open_checkpoints(run_id, TrackingClient(self.uri, MlflowClient(self.uri)))
        return found.load("latest")[1]
