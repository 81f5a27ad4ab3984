"""Artifacts on this machine are opened directly, others through MLflow."""

from pathlib import Path

from mltrain.store.opening import open_artifacts
from mltrain.store.remote import RemoteArtifacts


def test_artifacts_on_this_machine_are_reached_directly(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "a b#c%20d"), (tmp_path / "a b#c%20d").as_uri()):
        assert open_artifacts(uri, "sqlite://").local_root == tmp_path / "a b#c%20d"


def test_artifacts_elsewhere_are_reached_through_mlflow() -> None:
    remote = open_artifacts("mlflow-artifacts:/0/run/artifacts", "http://127.0.0.1:1")
    assert isinstance(remote, RemoteArtifacts)
    assert remote.local_root is None
