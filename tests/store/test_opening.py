"""Artifacts on this machine are opened directly, others through MLflow."""

from pathlib import Path

import pytest

from mltrain.errors import StorageError
from mltrain.store.opening import ALLOWED, open_artifacts, refuse_forbidden_uri
from mltrain.store.remote import RemoteArtifacts


def test_artifacts_on_this_machine_are_reached_directly(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "a b#c%20d"), (tmp_path / "a b#c%20d").as_uri()):
        assert open_artifacts(uri, "sqlite://").local_root == tmp_path / "a b#c%20d"


def test_artifacts_elsewhere_are_reached_through_mlflow() -> None:
    remote = open_artifacts("mlflow-artifacts:/0/run/artifacts", "http://127.0.0.1:1")
    assert isinstance(remote, RemoteArtifacts)
    assert remote.local_root is None


REMOTE = "https://mlflow.example.org"


@pytest.mark.parametrize(
    ("artifacts", "tracking"),
    [
        ("mlflow-artifacts:/1/abc/artifacts", REMOTE),
        ("mlflow-artifacts://mlflow.example.org/1/abc/artifacts", REMOTE),
        ("https://mlflow.example.org/api/1", REMOTE),
        ("s3://bucket/1/abc/artifacts", REMOTE),
        ("/srv/mlruns/1/abc/artifacts", "http://127.0.0.1:5000"),
        ("file:///srv/mlruns/1/abc/artifacts", "http://localhost:5000"),
        ("/srv/mlruns/1/abc/artifacts", "sqlite:///mlflow.db"),
        ("/srv/mlruns/1/abc/artifacts", "postgresql://me@db/mlflow"),
    ],
)
def test_what_a_server_may_name(artifacts: str, tracking: str) -> None:
    refuse_forbidden_uri(artifacts, tracking)


@pytest.mark.parametrize(
    "artifacts",
    [
        "/home/me/.ssh",
        "file:///home/me/.ssh",
        "https://somebody.else/1",
        "mlflow-artifacts://somebody.else/1",
        "http://169.254.169.254/latest",
        "ftp://mlflow.example.org/1",
        "C:\\Users\\me",
        "",
    ],
)
def test_what_a_server_elsewhere_may_not_name(artifacts: str) -> None:
    with pytest.raises(StorageError, match=ALLOWED):
        refuse_forbidden_uri(artifacts, REMOTE)


def test_what_is_allowed_is_allowed_and_nothing_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOWED, "ftp://files/a, /srv/mlruns/")
    refuse_forbidden_uri("/srv/mlruns/1/abc", REMOTE)
    refuse_forbidden_uri("ftp://files/a/1", REMOTE)
    for wrong in ("/srv/mlruns-of-others/1", "/srv/mlruns/../../etc", "/srv/mlruns/%2e%2e/x", "ftp://files/ab"):
        with pytest.raises(StorageError):
            refuse_forbidden_uri(wrong, REMOTE)


def test_the_message_names_no_password() -> None:
    with pytest.raises(StorageError) as refused:
        refuse_forbidden_uri("ftp://me:hidden@files/a", "https://you:secret@mlflow.example.org")
    assert "hidden" not in str(refused.value)
    assert "secret" not in str(refused.value)
