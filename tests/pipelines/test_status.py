"""The status of all stages, as a table and JSON."""

import re
from pathlib import Path

from tests.support.example_pipelines import TinyPipeline


def test_the_status_is_a_table_for_people_and_json_for_programs(stopped_pipeline: TinyPipeline) -> None:
    shown = stopped_pipeline("--status").out
    assert re.search(r"first +done +1/1 +val/loss 0\.\d+ +[0-9a-f]{32} +skip", shown)
    assert re.search(r"second +stopped +0/1 .*resume +stopped at epoch 0 of 1", shown)
    assert "Log of first: " in shown
    rows = stopped_pipeline.status()
    assert [row["state"] for row in rows.values()] == ["done", "done", "stopped"]
    assert Path(rows["first"]["log"]).is_file()


def test_a_status_before_anything_was_run_says_so(stopped_pipeline: TinyPipeline) -> None:
    done = stopped_pipeline("--status", "experiment=another")
    assert done.code == 0, done.err
    assert "you have no run of it" in done.out
    assert done.out.count("missing") == 3
