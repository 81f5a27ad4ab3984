from collections.abc import Iterator
from pathlib import Path

import pytest

from mltrain.delivery.journal import Journal
from tests.support.database import fresh_database


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "new" / "journal.sqlite"


@pytest.fixture
def journal(place: Path) -> Iterator[Journal]:
    journal = Journal(place, 1)
    yield journal
    journal.close()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    fresh_database(tmp_path / "mlflow.db", tmp_path / "mlruns")
    monkeypatch.setenv("MLTRAIN_HOME", str(tmp_path / "home"))
    return tmp_path / "mlflow.db"
