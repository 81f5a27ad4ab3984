from pathlib import Path

import pytest

from tests.support.folders import NAME


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "artifacts" / "checkpoints" / NAME).mkdir(parents=True)
    (tmp_path / "canary").write_text("precious")
    return tmp_path / "artifacts"
