"""Clearing: only what one pipeline run made, only by its user, only after it was listed and confirmed."""

from pathlib import Path

import pytest

from tests.support.example_pipelines import STAGES, TinyPipeline
from tests.support.workplace import Workplace


@pytest.fixture
def tiny(workplace: Workplace) -> TinyPipeline:
    tiny = TinyPipeline(workplace)
    done = tiny("--mode", "skip", "epochs=1")
    assert done.code == 0, done.err
    return tiny


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_without_a_confirmation_it_is_listed_and_nothing_is_cleared(tiny: TinyPipeline) -> None:
    before = contents(tiny.workplace.folder / "mlruns")
    done = tiny("--mode", "scratch")
    assert done.code == 2
    assert done.out.count("would clear") == 3
    assert "Try: --yes" in done.err
    assert contents(tiny.workplace.folder / "mlruns") == before


def test_scratch_clears_the_runs_of_this_pipeline_run_and_no_other(tiny: TinyPipeline) -> None:
    own = {stage: tiny.run_of(stage) for stage in STAGES}
    (parent,) = tiny.parents()
    other = tiny("--mode", "skip", "epochs=1", "--run", "new")
    others = {run: contents(tiny.artifacts(run)) for run in tiny.runs() if run not in (parent, *own.values())}
    alone = tiny.workplace.mltrain("train", "tiny.py", "epochs=1")
    folders = [tiny.artifacts(run) for run in own.values()]
    done = tiny("--mode", "scratch", "--yes", "--run", parent)
    assert done.code == 0, done.err
    assert done.run_id == parent != other.run_id
    assert not set(own.values()) & tiny.runs().keys()
    assert not [file for folder in folders for file in folder.rglob("*.safetensors")]
    assert {run: contents(tiny.artifacts(run)) for run in others} == others
    assert alone.run_id in tiny.runs()


def test_somebody_else_s_pipeline_run_is_not_cleared(tiny: TinyPipeline) -> None:
    (parent,) = tiny.parents()
    tiny.client.set_tag(parent, "mlflow.user", "somebody-else")
    before = tiny.runs()
    done = tiny("--mode", "scratch", "--yes", "--run", parent)
    assert done.code == 2
    assert "belongs to 'somebody-else', and only its owner can clear it" in done.err
    assert tiny.runs() == before
    fresh = tiny("--mode", "skip", "epochs=1")  # and it is not taken for one's own either
    assert fresh.run_id != parent


def test_a_stage_s_run_of_somebody_else_is_not_cleared(tiny: TinyPipeline) -> None:
    tiny.client.set_tag(tiny.run_of("second"), "mlflow.user", "somebody-else")
    before = tiny.runs()
    assert tiny("--mode", "scratch", "--yes").code == 2
    assert tiny.runs() == before


def test_what_is_pinned_stays_with_its_run_which_is_no_run_of_the_stage_any_more(tiny: TinyPipeline) -> None:
    run = tiny.run_of("first")
    assert tiny.workplace.mltrain("pin", run, "--checkpoint", "latest", "--reason", "the paper").code == 0
    done = tiny("--from", "first", "--yes")
    assert "pinned: the paper" in done.out
    assert run in tiny.runs()
    assert list((tiny.artifacts(run) / "checkpoints").iterdir())
    assert tiny.run_of("first") != run


def test_a_stage_that_is_being_trained_is_not_cleared(tiny: TinyPipeline) -> None:
    started = tiny.workplace.start("train", "--resume-run", tiny.run_of("first"), "epochs=50", "sleep=0.05")
    started.until("Training on")
    done = tiny("--mode", "scratch", "--yes")
    assert done.code == 4
    assert "is being trained" in done.err
    started.child.kill(15)
    started.wait()
    assert len(tiny.runs()) == 4


def test_canaries_beside_the_artifacts_are_untouched(tiny: TinyPipeline) -> None:
    canary = tiny.artifacts(tiny.run_of("numbers")) / "output" / "mine.txt"
    canary.write_text("precious")
    beside = tiny.workplace.folder / "mlruns" / "canary"
    beside.write_text("precious")
    assert tiny("--mode", "scratch", "--yes").code == 0
    assert canary.read_text() == beside.read_text() == "precious"
