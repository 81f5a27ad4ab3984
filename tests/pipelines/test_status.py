"""The state of every stage, as a table and as JSON."""

import re
from pathlib import Path

import pytest

from tests.support.example_pipelines import TinyPipeline
from tests.support.workplace import Workplace


@pytest.fixture(scope="module")
def trained(session_workplace: Workplace) -> TinyPipeline:
    """A pipeline whose first two stages are done; its tests change nothing."""
    tiny = TinyPipeline(Workplace(session_workplace.folder.parent / "command", session_workplace.server))
    assert tiny("--mode", "resume", "epochs=1", "second.signal_at=3").code == 75
    return tiny


def test_the_status_is_a_table_for_people_and_json_for_programs(trained: TinyPipeline) -> None:
    shown = trained("--status").out
    assert re.search(r"first +done +1/1 +val/loss 0\.\d+ +[0-9a-f]{32} +skip", shown)
    assert re.search(r"second +stopped +0/1 .*resume +stopped at epoch 0 of 1", shown)
    assert "Log of first: " in shown
    rows = trained.status()
    assert [row["state"] for row in rows.values()] == ["done", "done", "stopped"]
    assert Path(rows["first"]["log"]).is_file()


def test_a_status_before_anything_was_run_says_so(trained: TinyPipeline) -> None:
    done = trained("--status", "experiment=another")
    assert done.code == 0, done.err
    assert "you have no run of it" in done.out
    assert done.out.count("missing") == 3
