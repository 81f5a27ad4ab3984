from pathlib import Path

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from mltrain.store.artifacts import Artifacts
from mltrain.store.local import LocalArtifacts
from mltrain.store.remote import RemoteArtifacts
from tests.support.folders import NAME


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "artifacts" / "checkpoints" / NAME).mkdir(parents=True)
    (tmp_path / "canary").write_text("precious")
    return tmp_path / "artifacts"


@pytest.fixture(params=["on this machine", "elsewhere"])
def artifacts(request: pytest.FixtureRequest, root: Path) -> Artifacts:
    return (
        LocalArtifacts(root)
        if request.param == "on this machine"
        else RemoteArtifacts(LocalArtifactRepository(str(root)))
    )
