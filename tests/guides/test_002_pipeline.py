"""Guide 002, the pipeline (断点续训使用指南): its menu, and each of its scenarios as a command."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from mltrain.cli import pipeline
from mltrain.pipelines.request import PipelineRequest
from mltrain.project import find_pipeline
from tests.support.example_pipelines import TINY_PIPELINE, TinyPipeline
from tests.support.workplace import Workplace


@pytest.mark.parametrize(
    ("answers", "mode"),
    [
        (["1"], "scratch"),
        (["2"], "resume"),
        (["3"], "skip"),
        (["4"], None),
        (["skip"], "skip"),
        (["scratch"], "scratch"),
        (["Resume "], "resume"),
        (["5", "yes", "scrach", "sk", "", "3"], "skip"),
        (["s1", "12", "q"], None),
    ],
    ids=str,
)
def test_the_menu_takes_1_to_4_and_asks_again_after_any_other_answer(
    answers: list[str], mode: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """交互式选择."""
    given: Iterator[str] = iter(answers)
    monkeypatch.setattr(typer, "prompt", lambda *words, **options: next(given))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(pipeline, "_show_status", lambda request, as_json: [])
    request = PipelineRequest(located=find_pipeline(str(TINY_PIPELINE)), mode="skip")
    chosen = pipeline._asked(request, as_json=False)
    assert (chosen.mode if chosen is not None else None) == mode
    assert list(given) == []
    said = capsys.readouterr().out
    assert said.count("is no choice. Expected 1, 2, 3 or 4") == len(answers) - 1
    assert "  1  scratch" in said
    assert "  4  quit" in said


def test_every_scenario_by_command(workplace: Workplace) -> None:
    """场景1 to 4, 故障排除 问题1 to 3, 完全重置: one pipeline, because each of its trainings takes seconds."""
    tiny = TinyPipeline(workplace)
    stopped = tiny("--mode", "scratch", "epochs=1", "second.signal_at=3", "--yes")
    assert stopped.code == 75, "场景1, interrupted in the middle of a stage"
    assert tiny.states() == ["done", "done", "stopped"]
    continued = tiny.actions("--mode", "resume", "second.signal_at=0")
    assert continued == {"numbers": "skip", "first": "skip", "second": "resume"}, "场景2, in the middle of its epoch"

    assert tiny.actions("--stage", "second", "--yes")["second"] == "run", "场景4"

    for file in tiny.artifacts(tiny.run_of("second")).rglob("model.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    assert tiny.states()[-1] == "damaged", "问题2"
    assert tiny.actions("--mode", "skip")["second"] == "run"

    (parent,) = tiny.parents()
    (tiny.artifacts(parent) / "config.json").write_bytes(b"damaged")
    assert tiny.states() == ["done"] * 3, "问题1: rebuilt from the runs of the stages"

    assert tiny("--from", "second", "--yes").code == 0, "问题3"
    assert tiny("--mode", "scratch", "--yes").code == 0, "完全重置"
    assert set(tiny.states()) == {"done"}

    by_hand = tiny.run_of("first")
    assert tiny("--run", "new", "--mode", "skip", "epochs=1", "--use", f"first={by_hand}").code == 0
    assert tiny.states() == ["done", "given", "done"], "场景3: a model that was trained by hand"


def test_a_progress_file_of_the_guide_is_no_progress_here(tmp_path: Path, workplace: Workplace) -> None:
    """进度文件: what is done follows from the runs, so a file that says otherwise changes nothing."""
    tiny = TinyPipeline(workplace)
    (workplace.folder / ".training_progress").write_text("all_completed")
    assert tiny.states() == ["missing"] * 3
