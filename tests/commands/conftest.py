from collections.abc import Iterator
from pathlib import Path

import pytest

from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from tests.support.database import use_database
from tests.support.trainings_of_tiny import TINY


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A store with one finished run for many attempts."""
    folder = tmp_path_factory.mktemp("refused")
    (folder / "data").mkdir()
    (folder / "data" / "file").write_text("one")
    with pytest.MonkeyPatch.context() as patch:
        use_database(patch, folder)
        yield folder, run_training(Request(project=TINY, overrides={"epochs": 1, "data": str(folder / "data")})).run_id


@pytest.fixture
def store(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained[0] / 'mlflow.db'}")
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return trained[0]
