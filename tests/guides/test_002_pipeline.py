"""Guide 002, the pipeline (断点续训使用指南): its menu, and each of its scenarios as a command."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from mlflow import MlflowClient

from mltrain.cli import pipeline
from mltrain.pipelines.plan import PipelineRequest
from mltrain.project import find_pipeline
from tests.support.example_pipelines import TINY_PIPELINE, TinyPipeline
from tests.support.folders import flip
from tests.support.shell import Shell
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
    assert said.count("is not an option. Expected 1, 2, 3 or 4") == len(answers) - 1
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
        flip(file)
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


class Menu:
    """The guide's menu on a terminal: a command without a mode, and the answers that are typed."""

    def __init__(self, shell: Shell, patch: pytest.MonkeyPatch) -> None:
        self._shell, self._patch = shell, patch

    def __call__(self, *answers: str, words: str = "", code: int = 0, sure: bool = True) -> str:
        """Type the command and the answers; return what is printed."""
        given: Iterator[str] = iter(answers)
        with self._patch.context() as patch:
            patch.setattr(typer, "prompt", lambda *text, **options: next(given))
            patch.setattr(typer, "confirm", lambda *text, **options: sure)
            patch.setattr("sys.stdin.isatty", lambda: True)
            patch.setattr("sys.stdout.isatty", lambda: True)
            printed = self._shell.type(f"pipeline tiny_pipeline.py {words}", code=code)
        assert list(given) == []
        return printed

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the state of every stage."""
        stages = json.loads(self._shell.type("pipeline tiny_pipeline.py --status --json"))["stages"]
        return {row["stage"]: row for row in stages}


def boxes(printed: str) -> dict[str, str]:
    """Return the states of the stages in the menu. ✓ and ✗ stand for the boxes."""
    lines = (line for line in printed.splitlines() if line.startswith(("  [x] ", "  [ ] ")))
    return {line[6:].partition(":")[0]: line[2:5] for line in lines}


@pytest.mark.slow
def test_every_scenario_by_the_menu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One pipeline for all scenarios, because each training takes seconds."""
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "0")
    shutil.copy(TINY_PIPELINE, tmp_path)
    shell = Shell(tmp_path, monkeypatch, capsys)
    menu = Menu(shell, monkeypatch)

    def artifacts(run_id: str) -> Path:
        return Path(MlflowClient().get_run(run_id).info.artifact_uri)

    def parent() -> str:
        found = MlflowClient().search_runs(["0"], "tags.`mltrain.pipeline` = 'tiny'")
        return next(str(run.info.run_id) for run in found if "mltrain.stage" not in run.data.tags)

    assert boxes(menu("4")) == dict.fromkeys(("numbers", "first", "second"), "[ ]"), "退出"
    assert menu.rows()["numbers"]["state"] == "missing"

    menu("1", words="epochs=2 second.signal_at=4", code=75)
    stopped = menu.rows()
    assert [row["state"] for row in stopped.values()] == ["done", "done", "stopped"], "场景1"

    shown = menu("2", words="second.signal_at=0")
    assert boxes(shown) == {"numbers": "[x]", "first": "[x]", "second": "[ ]"}, "检查已训练的模型"
    resumed = menu.rows()
    assert [row["state"] for row in resumed.values()] == ["done"] * 3, "场景2"
    assert resumed["second"]["run_id"] == stopped["second"]["run_id"], "in the middle of the stage, not from its start"

    shown = menu("3")
    assert set(boxes(shown).values()) == {"[x]"}
    assert menu.rows() == resumed, "智能跳过: nothing is left to do"

    shell.type("pipeline tiny_pipeline.py --stage second --yes")
    retrained = menu.rows()
    assert retrained["second"]["run_id"] != resumed["second"]["run_id"], "场景4"
    menu("3")
    assert menu.rows() == retrained, "and nothing else was trained"

    for file in artifacts(retrained["second"]["run_id"]).rglob("model.safetensors"):
        flip(file)
    shown = menu("3")
    assert "second: damaged" in shown, "问题2"
    mended = menu.rows()
    assert [row["state"] for row in mended.values()] == ["done"] * 3
    assert mended["first"]["run_id"] == retrained["first"]["run_id"]

    (artifacts(parent()) / "config.json").write_bytes(b"damaged")
    shown = menu("3")
    assert set(boxes(shown).values()) == {"[x]"}, "问题1: the record is rebuilt from the runs of the stages"
    assert menu.rows() == mended

    menu("1", sure=False)
    assert menu.rows() == mended, "请确认后再继续: no clears nothing"
    menu("1")
    reset = menu.rows()
    assert [row["state"] for row in reset.values()] == ["done"] * 3, "完全重置"
    assert not {row["run_id"] for row in reset.values()} & {row["run_id"] for row in mended.values()}

    by_hand = reset["first"]["run_id"]
    shown = menu("3", words=f"--run new --use first={by_hand}")
    assert "first: given" in shown, "场景3: a model that was trained by hand"
    assert [row["state"] for row in menu.rows().values()] == ["done", "given", "done"]
