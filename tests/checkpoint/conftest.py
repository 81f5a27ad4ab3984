from collections.abc import Iterator
from pathlib import Path

import pytest

from mltrain.checkpoint.store import CheckpointStore
from tests.support.benches import Bench
from tests.support.places import Place
from tests.support.runs import FolderRun, store_in


@pytest.fixture
def store(place: Place, tmp_path: Path) -> CheckpointStore:
    return store_in(tmp_path, place)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(FolderRun(tmp_path))
    yield bench
    bench.committer.close()
