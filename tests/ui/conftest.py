"""A real server with real runs, and a real browser; pictures of what it shows go to the folder MLTRAIN_UI_PICTURES."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.forkserver import ForkServer
from tests.support.servers import TrackingServer
from tests.support.workplace import Workplace
from tests.ui.browser import Browser

MANY = int(os.environ.get("MLTRAIN_UI_RUNS", "30"))


@dataclass(frozen=True)
class Runs:
    """What the pages show.

    Attributes:
        address: of the server.
        printed: the address that the first training printed.
        undisturbed: a run that nothing happened to.
        resumed: the same training, killed in its middle and resumed.
        many: further runs, each with another rate.
    """

    address: str
    printed: str
    undisturbed: str
    resumed: str
    many: tuple[str, ...]

    def page(self, run_id: str, tab: str = "") -> str:
        return f"{self.address}/#/experiments/0/runs/{run_id}{tab}?workflowType=machine_learning"

    def comparison(self, run_ids: tuple[str, ...]) -> str:
        listed = ",".join(f'"{one}"' for one in run_ids)
        return f'{self.address}/#/compare-runs?runs=[{listed}]&experiments=["0"]&workflowType=machine_learning'


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("ui")
    server = TrackingServer(folder)
    server.start()
    try:
        here = Workplace(folder / "here", fork_server, server.uri)
        (here.folder / "pictures").mkdir()
        (here.folder / "pictures" / "one.txt").write_text("one")
        first = here.mltrain("train", "tiny.py", "epochs=6", "data=pictures", "--name", "undisturbed")
        killed = here.mltrain("train", "tiny.py", "epochs=6", "data=pictures", "kill_at=20", "--name", "resumed")
        again = here.mltrain("train", "--resume-run", killed.run_id, "kill_at=0")
        assert (first.code, again.code) == (0, 0), first.err + again.err
        many = [
            here.mltrain("train", "tiny.py", "epochs=2", "items=16", f"lr={number + 1}e-3").run_id
            for number in range(MANY)
        ]
        printed = next(line for line in first.out.splitlines() if line.startswith("Look at "))
        yield Runs(server.uri, printed.removeprefix("Look at "), first.run_id, killed.run_id, tuple(many))
    finally:
        server.kill()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    pictures = Path(os.environ.get("MLTRAIN_UI_PICTURES", tmp_path / "pictures"))
    with Browser(tmp_path / "profile", pictures) as opened:
        yield opened
    print(f"Pictures are in {pictures}")
