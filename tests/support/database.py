"""Tracking databases for tests: a copy of an empty one, because making one takes MLflow seconds."""

import atexit
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest

_template: list[Path] = []

MORE_THAN_A_PAGE = 1005


def fresh_database(target: Path, artifacts: Path) -> str:
    """Copy an empty tracking database with artifacts in a folder; return its URI."""
    if not _template:
        from mlflow import MlflowClient

        folder = Path(tempfile.mkdtemp(prefix="mltrain-template-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").get_experiment("0")
        _template.append(folder / "mlflow.db")
    shutil.copy(_template[0], target)
    with closing(sqlite3.connect(target)) as database:
        database.execute("UPDATE experiments SET artifact_location = ?", (str(artifacts / "0"),))
        database.commit()
    return f"sqlite:///{target}"


def use_database(patch: pytest.MonkeyPatch, folder: Path, artifacts: str = "mlruns") -> str:
    """Use a fresh database and home in a folder; return the database's URI."""
    uri = fresh_database(folder / "mlflow.db", folder / artifacts)
    patch.setenv("MLFLOW_TRACKING_URI", uri)
    patch.setenv("MLTRAIN_HOME", str(folder / "home"))
    return uri


def many(tmp_path: Path, count: int, tags: Mapping[str, str], place: str = "{root}/0/{run}/artifacts") -> list[str]:
    """Add thousands of new runs to the database."""
    names = [uuid.uuid4().hex for _ in range(count)]
    root = tmp_path / "mlruns"
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.executemany(
            "INSERT INTO runs (run_uuid, name, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri, "
            "experiment_id) VALUES (?, ?, 'somebody', 'FINISHED', ?, ?, 'active', ?, 0)",
            [(run, run, 2**42 + n, 2**42 + n, place.format(root=root, run=run)) for n, run in enumerate(names)],
        )
        rows = [(key, value, run) for run in names for key, value in tags.items()]
        database.executemany("INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", rows)
        database.commit()
    return names
