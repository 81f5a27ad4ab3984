from collections.abc import Iterator
from pathlib import Path

import pytest

from mltrain.delivery.journal import Journal


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "new" / "journal.sqlite"


@pytest.fixture
def journal(place: Path) -> Iterator[Journal]:
    journal = Journal(place, 1)
    yield journal
    journal.close()
