from pathlib import Path

import pytest

from tests.support.database import fresh_database


@pytest.fixture
def tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tracking store and a home of its own for what runs in the test's process; its URI."""
    import mlflow

    database = tmp_path / "mlflow.db"
    fresh_database(database, tmp_path / "mlruns")
    uri = f"sqlite:///{database}"
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(uri)
    yield uri
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(before)
