"""Runs whose points wait on this machine for ``mltrain sync``."""

from pathlib import Path

from mlflow.entities import FileInfo
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.delivery.journal import Journal
from mltrain.ownership.run_folder import home_of
from mltrain.tracking.client import TrackingClient, connect


class Away(LocalArtifactRepository):  # type: ignore[misc]
    """A store that does not answer."""

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        raise PermissionError("made to fail")


def at(file: Path) -> TrackingClient:
    return connect(f"sqlite:///{file}", retry_seconds=0.0)


def left_behind(server: TrackingClient, *steps: int) -> str:
    """Return the id of a run with undelivered points here."""
    run_id = str(server.client.create_run("0").info.run_id)
    journal = Journal(home_of(server, run_id) / "journal.sqlite", 1)
    journal.add_points(("loss", step, 0.5, 1_000 + step) for step in steps)
    journal.close()
    return run_id


def steps_of(server: TrackingClient, run_id: str) -> list[int]:
    return [point.step for point in server.client.get_metric_history(run_id, "loss")]
