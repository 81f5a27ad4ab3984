"""Changes and damage are found before a stage is skipped."""

from tests.support.example_pipelines import STAGES, TinyPipeline
from tests.support.folders import flip


def test_a_run_that_hands_nothing_on_is_refused_in_a_stage_s_place(tiny: TinyPipeline) -> None:
    parent = tiny("--mode", "skip", "epochs=1").run_id
    done = tiny("--mode", "skip", "--use", f"first={parent}")
    assert done.code == 3
    assert "cannot be used for the stage 'first': it has no checkpoint" in done.err


def test_one_byte_of_a_stage_s_data_runs_it_anew(tiny: TinyPipeline) -> None:
    source = tiny.workplace.folder / "source.bin"
    source.write_bytes(bytes(10**6))
    assert tiny("--mode", "skip", f"numbers.source={source}").code == 0
    assert tiny.actions("--mode", "skip") == dict.fromkeys(STAGES, "skip")
    flip(source)
    assert tiny.actions("--mode", "skip")["numbers"] == "run"
