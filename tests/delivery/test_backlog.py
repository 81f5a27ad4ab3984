"""Checkpoints that earlier processes staged here are uploaded, oldest first."""

from pathlib import Path

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.checkpoint.publishing import stage
from mltrain.checkpoint.staging import Spool
from mltrain.checkpoint.store import CheckpointStore
from mltrain.delivery.backlog import publish_backlog
from mltrain.errors import StorageError
from mltrain.store.remote import RemoteArtifacts
from tests.support.runs import RUN_ID, manifest_of, snapshot_of, state_at
from tests.support.stored import Watched, again


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    (tmp_path / "artifacts").mkdir()
    artifacts = RemoteArtifacts(Watched(tmp_path / "artifacts"))
    return CheckpointStore(RUN_ID, artifacts, Spool(tmp_path / "home" / "staging"))


def staged(store: CheckpointStore, *checkpoints: tuple[int, int]) -> Path:
    """Stage checkpoints by step and attempt; return the run's folder."""
    for step, attempt in checkpoints:
        stage(store, snapshot_of(state_at(step)), manifest_of(step, attempt), {})
    assert store.spool is not None
    return store.spool.root.parent


def names(store: CheckpointStore) -> list[str]:
    return [manifest.name for manifest in again(store).manifests()]


def test_what_a_later_attempt_replaces_is_discarded_and_the_rest_is_uploaded(store: CheckpointStore) -> None:
    home = staged(store, (1, 1), (2, 1), (3, 1))
    found = publish_backlog(RUN_ID, home, store.artifacts, {1: 2})
    assert found.uploaded == ("step-000000001-a01", "step-000000002-a01")
    assert found.dropped == 1
    assert publish_backlog(RUN_ID, home, store.artifacts, {1: 2}).uploaded == ()
    assert names(store) == ["step-000000001-a01", "step-000000002-a01"]


class Refusing(LocalArtifactRepository):  # type: ignore[misc]
    """Takes no files of the checkpoint at step 2."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        if "step-000000002" in str(artifact_path):
            raise PermissionError("made to fail")
        super().log_artifact(local_file, artifact_path)


def test_a_checkpoint_that_the_store_refuses_keeps_no_newer_one_here(store: CheckpointStore) -> None:
    home = staged(store, (1, 1), (2, 1), (3, 1))
    found = publish_backlog(RUN_ID, home, RemoteArtifacts(Refusing(str(home.parent / "artifacts"))), {})
    assert found.uploaded == ("step-000000001-a01", "step-000000003-a01") == tuple(names(store))
    assert found.failure is None


def test_what_was_uploaded_before_a_refusal_is_reported_with_it(store: CheckpointStore) -> None:
    home = staged(store, (1, 1), (2, 1))
    found = publish_backlog(RUN_ID, home, RemoteArtifacts(Refusing(str(home.parent / "artifacts"))), {})
    assert found.uploaded == ("step-000000001-a01",)
    assert isinstance(found.failure, StorageError)
    assert publish_backlog(RUN_ID, home, store.artifacts, {}).uploaded == ("step-000000002-a01",)


def test_an_earlier_attempt_is_uploaded_before_a_later_one_with_fewer_steps(store: CheckpointStore) -> None:
    home = staged(store, (5, 1), (3, 2))
    found = publish_backlog(RUN_ID, home, store.artifacts, {})
    assert found.uploaded == ("step-000000005-a01", "step-000000003-a02")
