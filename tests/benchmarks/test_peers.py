"""The comparison with peers still runs: loops, measurements, table. Its figures are made by command."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import peer_loops, peer_process, peer_stores, peers, timeline
from benchmarks.limits import FLOOR
from benchmarks.peer_training import Training, Work
from tests.support.database import use_database

TINY = Work(layers=1, width=64, rows=1, steps=8, every=2)
ENGINES = ("Lightning + MLFlowLogger", "Trainer of transformers", "async_save + upload thread")


class Resumed(Exception):
    """Ends a resume at its first step."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    use_database(monkeypatch, tmp_path, "artifacts")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "artifacts"


def measured(name: str, work: Work, store: Path, capsys: pytest.CaptureFixture[str]) -> tuple[str, dict[str, object]]:
    found = peer_process.measured(name, work, store)
    lines = [line.removeprefix("RUN ") for line in capsys.readouterr().out.splitlines() if line.startswith("RUN ")]
    return (lines or [""])[0], found


def resumed(name: str, run: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    """Resume in an empty folder until the first step."""
    monkeypatch.chdir(store.parent)
    (store.parent / "there").mkdir()
    monkeypatch.chdir(store.parent / "there")
    reported = []

    def report(found: dict[str, float]) -> None:
        reported.append(found)
        raise Resumed

    monkeypatch.setattr("benchmarks.peer_training.report", report)
    made: list[Training] = []
    of = Training.of
    monkeypatch.setattr(Training, "of", staticmethod(lambda work: made.append(of(work)) or made[-1]))  # type: ignore[func-returns-value]
    with pytest.raises(Resumed):
        peer_process.measured(name, replace(TINY, steps=12, run=run), store)
    assert reported[0]["resumed"] > 0
    return made[0]


def test_the_bare_work_of_checkpoints_writes_every_byte(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found = measured(FLOOR, TINY, store, capsys)
    assert len(found["later"]) == 2  # type: ignore[arg-type]
    sizes = [file.stat().st_size for file in Path().glob("*.bin")]
    assert sizes == 4 * [found["state"]]


@pytest.mark.parametrize("name", ["mltrain", "torch.save + log_artifact"])
def test_a_loop_is_measured_and_resumes_its_run(
    name: str, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, found = measured(name, TINY, store, capsys)
    assert len(found["first"]) == 1  # type: ignore[arg-type]
    assert len(found["later"]) == 2  # type: ignore[arg-type]
    assert 0 < found["end"] < found["wall"]  # type: ignore[operator]
    assert found["steps"] == TINY.steps, "what is trained alone before and after is not counted"
    assert len(found["beside"]) == 2  # type: ignore[arg-type]
    training = resumed(name, run, store, monkeypatch)
    alone = 2 + peer_process.bare_steps(TINY)  # before the loop
    assert {int(state["step"]) for state in training.optimizer.state.values()} == {8 + alone}


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_measured_and_resumes_its_run(name: str, tmp_path: Path) -> None:
    with peer_stores.Stores(tmp_path / "stores").open() as stores:
        run, found = stores.measure(name, TINY, "server")
        assert len(found["later"]) == 2
        assert stores.measure(name, replace(TINY, run=run), "server")[1]["resumed"] > 0


def test_an_earlier_release_is_measured_beside_this_one(tmp_path: Path) -> None:
    release = tmp_path / "release" / "mltrain"
    release.mkdir(parents=True)
    (release / "__init__.py").write_text("raise SystemExit('mltrain of the earlier release')")
    stores = peer_stores.Stores(tmp_path / "stores", release.parent)
    with pytest.raises(peer_stores.Failed, match="mltrain of the earlier release"):
        stores.measure(peer_loops.EARLIER, TINY, "local")
    assert stores.measure("mltrain", TINY, "local")[1]["steps"] == TINY.steps


def test_every_call_of_the_timeline_is_there() -> None:
    for place in timeline.CALLS.split():
        module, _, path = place.partition(":")
        found = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
        assert callable(found)


def test_the_table_compares_with_the_loop_alone_in_the_same_process(tmp_path: Path) -> None:
    usual = {"store": "local", "load": 1.0, "copy": 0.1, "step": 0.2, "state": 303e6, "measure": "training", "cpu": 1.0}
    usual |= {"steps": 10, "bare_cpu": 0.1}
    stalls = {"first": [2.0], "later": [1.0, 1.2], "held": [2.5], "end": 0.3, "flushed": 0.4}
    found = [
        {
            **usual,
            **stalls,
            "round": number,
            "peer": "mltrain",
            "wall": 12.0,
            "bare": bare,
            "beside": [bare, 1.1 * bare],
        }
        for number, bare in ((0, 1.0), (1, 0.8))
    ]
    rows = {
        cells[1].strip(): cells[2].strip() for line in peers.table(found).splitlines() if (cells := line.split("|"))
    }
    assert rows["wall, × bare loop, local"] == "1.35 (1.20 … 1.50)"
    assert rows["stall of later ones, × copy"] == "1.10 (1.00 … 1.20)"
    assert "resume by id, s after imports" not in rows
    assert rows["CPU, × bare loop, local"] == "1.00 (1.00 … 1.00)"
    assert "before a measurement and after it differ by 9 % (median)" in peers.circumstances(found)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{peers.BEGIN}\nold\n{peers.END}\nafter\n")
    peers.write("new", page)
    assert page.read_text() == f"before\n{peers.BEGIN}\nnew\n{peers.END}\nafter\n"
    assert sys.modules["benchmarks.peers"].BEGIN in Path("docs/performance.md").read_text()
