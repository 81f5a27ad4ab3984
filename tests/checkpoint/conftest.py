from pathlib import Path

import pytest

from tests.checkpoint.runs import FolderRun
from tests.places import Place


@pytest.fixture
def run(place: Place, tmp_path: Path) -> FolderRun:
    return FolderRun(tmp_path, place=place)


@pytest.fixture
def local(tmp_path: Path) -> FolderRun:
    return FolderRun(tmp_path)
