from pathlib import Path
from typing import Any

import pytest

from tests.support import ranks
from tests.support.workplace import Workplace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, fork_server: Any) -> Workplace:
    """A machine with the project that several processes train."""
    workplace = Workplace(tmp_path_factory.mktemp("ranks") / "here", fork_server)
    project = Path(ranks.__file__).with_name("ranked.py")
    (workplace.folder / "ranked.py").write_bytes(project.read_bytes())
    return workplace


@pytest.fixture(scope="module")
def undisturbed(place: Workplace) -> str:
    """A run that two processes trained and nothing happened to."""
    done = ranks.run(place, 2, *ranks.TRAIN, "undisturbed", "epochs=2", "save_every_steps=2")
    assert [rank.code for rank in done] == [0, 0], done
    assert not done[1].out
    assert not (place.folder / "unused").exists()
    return done[0].run_id
