"""Tracking databases for tests: a copy of an empty one, because making one takes MLflow seconds."""

import atexit
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

_template: list[Path] = []


def fresh_database(target: Path, artifacts: Path) -> None:
    """Copy an empty tracking database whose default experiment has its artifacts in a folder."""
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
