"""What a pipeline was asked for is recorded, and rebuilt from its stages."""

import json

from tests.support.example_pipelines import TinyPipeline


def test_a_damaged_record_of_what_was_asked_for_is_rebuilt_from_the_stages(tiny: TinyPipeline) -> None:
    parent = tiny("--mode", "resume", "epochs=1", "first.lr=0.02").run_id
    assert tiny("--mode", "resume", "first.epochs=2").code == 0
    (tiny.artifacts(parent) / "config.json").write_text("{")
    done = tiny("--mode", "skip")
    assert done.code == 0, done.err
    assert "is rebuilt from the runs of its stages" in done.err
    assert done.out.count(": skip (") == 3
    recorded = json.loads((tiny.artifacts(parent) / "config.json").read_text())
    assert recorded["config"]["stages"]["first"]["lr"] == 0.02
    assert recorded["config"]["stages"]["first"]["epochs"] == 2, "as the stage was resumed with"
