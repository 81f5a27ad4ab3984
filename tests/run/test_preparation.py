"""A training waits only so long for its run."""

from pathlib import Path

from mltrain.run.preparation import creation_seconds
from mltrain.tracking.client import TrackingClient


def test_a_database_that_has_to_be_made_is_waited_for(tmp_path: Path) -> None:
    """MLflow makes its tables for seconds on a slow machine."""
    new = TrackingClient(f"sqlite:///{tmp_path / 'mlflow.db'}", None)
    assert creation_seconds(new) >= 60
    (tmp_path / "mlflow.db").touch()
    assert 5 <= creation_seconds(new) < 20
    assert creation_seconds(TrackingClient("postgresql://somewhere/runs", None)) == creation_seconds(new)
    assert creation_seconds(TrackingClient("http://127.0.0.1:5000", None)) < creation_seconds(new)
