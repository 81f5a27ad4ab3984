"""A refused request leaves no trace: no row in the tracking store, no file among the artifacts, no home, no thread."""

import re
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

from mltrain.errors import MltrainError


def everything(folder: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Return all rows of the tracking store and all artifacts."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        rows = list(database.iterdump())
    return rows, sorted((str(file), file.stat().st_mtime_ns) for file in (folder / "mlruns").rglob("*"))


class Unchanged:
    """A block whose error must leave no trace. No row, no file, no home, no thread.

    What it has read of the data may stay in the cache of digests, which belongs to no run.
    """

    def __init__(self, folder: Path, home: Path, kind: type[MltrainError] = MltrainError, problem: str = "") -> None:
        self.folder, self.home, self.kind, self.problem = folder, home, kind, problem

    def __enter__(self) -> None:
        self.before, self.threads = everything(self.folder), set(threading.enumerate())

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        assert isinstance(error, self.kind), error
        assert re.search(self.problem, str(error)), error
        assert everything(self.folder) == self.before
        assert not self.home.is_dir() or {file.name for file in self.home.iterdir()} == {"fingerprints.sqlite"}
        assert set(threading.enumerate()) <= self.threads
        return True
