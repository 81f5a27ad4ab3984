"""The stores of the peers, with one process a measurement; see :mod:`benchmarks.peers`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peer_loops import EARLIER
from benchmarks.peer_training import Work
from tests.support.database import fresh_database
from tests.support.servers import TrackingServer


class Failed(Exception):
    """A process that measured nothing; the others go on."""


class Stores:
    """The tracking stores of one round, in a folder.

    Args:
        folder: receives them.
        earlier: checkout of the release that the loop :data:`EARLIER` uses.
    """

    def __init__(self, folder: Path, earlier: Path | None = None) -> None:
        self.folder = folder
        for name in ("server", "local", "earlier"):
            (folder / name).mkdir(parents=True)
        if earlier is not None:
            (folder / "earlier" / "mltrain").symlink_to(earlier.resolve() / "mltrain")
        fresh_database(folder / "local" / "mlflow.db", folder / "local" / "artifacts")
        self._server = TrackingServer(folder / "server")

    @contextmanager
    def open(self) -> Iterator["Stores"]:
        self._server.start()
        try:
            yield self
        finally:
            self._server.kill()

    def uri(self, store: str) -> str:
        return self._server.uri if store == "server" else f"sqlite:///{self.folder / 'local' / 'mlflow.db'}"

    def measure(self, name: str, work: Work, store: str) -> tuple[str, dict[str, Any]]:
        """Train or resume in a new process and folder. Returns the run's id and the measurements."""
        os.sync()  # what the one before has left to write must not slow this one
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            sources = [f"{self.folder}/earlier"] if name == EARLIER else []
            sources.append(str(Path(__file__).parent.parent))
            environment = {
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sources),
                "MLFLOW_TRACKING_URI": self.uri(store),
                "MLTRAIN_HOME": f"{place}/home",
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "OMP_NUM_THREADS": "1",
            }
            artifacts = self.folder / store / "artifacts"
            command = [sys.executable, "-m", "benchmarks.peer_process", name, json.dumps(asdict(work)), str(artifacts)]
            began = time.perf_counter()
            done = subprocess.run(
                command, check=False, cwd=place, env=environment, capture_output=True, text=True, timeout=600
            )
            whole = time.perf_counter() - began
        lines = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("RUN ", "RESULT ")))
        if "RESULT" not in lines:
            raise Failed(f"{name}: {done.returncode}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}")
        return lines.get("RUN", ""), {**json.loads(lines["RESULT"]), "process": whole}

    def forget(self) -> None:
        """Remove the artifacts."""
        for store in ("server", "local"):
            shutil.rmtree(self.folder / store / "artifacts", ignore_errors=True)
