"""How long a training waits for its run before it begins without."""

from pathlib import Path

from mltrain.run.preparation import soon
from mltrain.tracking.client import TrackingClient


def test_a_database_that_has_to_be_made_is_waited_for(tmp_path: Path) -> None:
    """MLflow makes its tables for seconds on a slow machine, and that is no reason to begin without a run."""
    new = TrackingClient(f"sqlite:///{tmp_path / 'mlflow.db'}", None)
    assert soon(new) >= 60
    (tmp_path / "mlflow.db").touch()
    assert 5 <= soon(new) < 20
    assert soon(TrackingClient("postgresql://somewhere/runs", None)) == soon(new)
    assert soon(TrackingClient("http://127.0.0.1:5000", None)) < soon(new)
