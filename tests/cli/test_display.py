"""What a training shows: on a terminal with a live bar, elsewhere without."""

import io
import json
import re
from typing import Any

import pytest
import torch
from rich.console import Console

import mltrain
from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.cli.display import Terminal, TerminalPipeline, _epoch_line, _with_figures, print_result, print_status
from mltrain.commands.result import Outcome
from mltrain.pipelines.decisions import Decision
from mltrain.pipelines.plan import Result
from mltrain.pipelines.status import Row
from mltrain.trainer.loop import Trainer


class Quiet:
    """Neither records nor saves nor stops."""

    overtaken = False
    requested = False
    checkpoint_wanted = False

    def log_metrics(self, *arguments: object, **named: object) -> None: ...
    def log_pictures(self, *arguments: object, **named: object) -> None: ...
    def log_epoch(self, *arguments: object, **named: object) -> None: ...
    def save(self, *arguments: object, **named: object) -> None: ...


def trainer(epochs: int, **task: Any) -> Trainer:
    net = torch.nn.Linear(2, 1)
    step = mltrain.Supervised(net, torch.nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.1))
    data = torch.utils.data.TensorDataset(torch.ones(6, 2), torch.ones(6, 1))
    quiet = Quiet()
    config = mltrain.Config(epochs=epochs, device="cpu", best_metric="train/loss")
    return Trainer(mltrain.Task(step, mltrain.ResumableLoader(data, 2), **task), config, quiet, quiet, quiet)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_training_of_several_epochs_is_shown_to_its_end(
    is_terminal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    shown, display = io.StringIO(), Terminal()
    display._console = Console(file=shown, force_terminal=is_terminal, width=100)
    training = trainer(3)
    display.began(training, "the start")
    for _ in training.steps():
        display.stepped(training)
    display.finish()
    said = capsys.readouterr().out + shown.getvalue()  # beside a live bar, lines are printed by the bar's console
    assert re.findall(r"epoch +(\d)/3 +train/loss", said) == ["1", "2", "3"]
    assert ("━" in said) == is_terminal


SKIPPED, TRAINED = Decision("first", "skip", "intact", "a"), Decision("second", "run", "changed")
PIPELINE = mltrain.Pipeline(
    "example",
    [
        mltrain.Stage("first", mltrain.Config, make=lambda config, folder: {}),
        mltrain.Stage("second", mltrain.Config, build=lambda config: trainer(1).task),
    ],
)
RESULT = Result("parent", 75, "second: stopped", (SKIPPED, TRAINED), {"first": "a", "second": "b"})


def test_a_program_gets_every_decision_with_the_run_it_led_to(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(RESULT)
    found = json.loads(capsys.readouterr().out)
    assert (found["run_id"], found["exit_code"]) == ("parent", 75)
    assert [(stage["stage"], stage["action"], stage["run_id"]) for stage in found["stages"]] == [
        ("first", "skip", "a"),
        ("second", "run", "b"),
    ]


def test_a_person_gets_the_command_that_continues(capsys: pytest.CaptureFixture[str]) -> None:
    TerminalPipeline(PIPELINE).ended(RESULT)
    assert "Resume: mltrain pipeline --run parent --mode resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "command"),
    [
        ({}, None),
        ({"evaluate": lambda: {"val/loss": 1.0}}, "mltrain evaluate b"),
        ({"report": lambda to: {}}, "mltrain evaluate b --to evaluation"),
    ],
    ids=["neither", "evaluate", "report"],
)
def test_the_last_lines_name_an_evaluation_only_if_the_task_has_one(
    task: dict[str, Any], command: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = TerminalPipeline(PIPELINE)
    for display in (Terminal(), pipeline.stage("second")):
        display.began(trainer(1, **task), "the start")
        capsys.readouterr()
        display.ended(Outcome("b", 0, "all epochs done"))
        lines = capsys.readouterr().out.splitlines()
        named = [text for text in lines if text.startswith("Evaluate")]
        assert named == ([f"Evaluate: {command}"] if command is not None and type(display) is Terminal else [])
    pipeline.ended(Result("parent", 0, "all stages done", (), {"first": "a", "second": "b"}))
    named = [text for text in capsys.readouterr().out.splitlines() if text.startswith("Evaluate")]
    assert named == ([f"Evaluate second: {command}"] if command is not None else [])


def test_an_evaluation_is_named_where_the_task_was_not_built(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().ended(Outcome("b", 0, "the run of the key is complete"))
    assert "Evaluate: mltrain evaluate b --to evaluation" in capsys.readouterr().out.splitlines()
    TerminalPipeline(PIPELINE).ended(Result("parent", 0, "all stages done", (), {"first": "a", "second": "b"}))
    assert "Evaluate second: mltrain evaluate b --to evaluation" in capsys.readouterr().out.splitlines()


def test_no_evaluation_is_named_after_a_stage_that_makes_files(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = TerminalPipeline(PIPELINE)
    pipeline.stage("first").ended(Outcome("a", 0, "2 files made"))
    pipeline.ended(Result("parent", 0, "first is done; still to run: second", (), {"first": "a"}))
    assert "Evaluate" not in capsys.readouterr().out


def test_the_log_on_this_machine_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("first", "done", "a", 1, 1, None, None, "skip", "intact", "/home/stage.log")
    print_status({"pipeline": "example", "run_id": None}, [row], as_json=False)
    printed = capsys.readouterr().out
    assert "you have no run of it" in printed
    assert "Log of first: /home/stage.log" in printed


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("columns", "count"), [(70, 2), (105, 4), (200, 5)])
def test_the_line_of_an_epoch_fits_and_begins_with_validation(
    columns: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = trainer(2)
    for _ in training.steps():
        break
    measured = {"train/loss": 1.0, "train/extra": 2.0, "val/loss": 3.0, "val/f1": 4.0, "val/best": 5.0}
    training.history.add({"epoch": 1, "learning_rate": 0.1, **measured})
    training.config = training.config.model_copy(update={"best_metric": "val/best"})
    monkeypatch.setattr("sys.stdout", Screen())
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = _epoch_line(training, 1.0)
    assert len(shown) <= columns
    names = re.findall(r"(\w+/\w+)", shown.partition("/2  ")[2])
    order = ["val/best", "val/loss", "train/loss", "val/f1", "train/extra"]
    assert names == order[:count]


def test_the_best_checkpoint_is_shown_with_the_deciding_metric_and_not_with_all() -> None:
    metrics = {f"val/{number}": float(number) for number in range(20)} | {"train/loss": 0.5, "val/f1": 0.75}
    best = Manifest.model_construct(id=CheckpointId(attempt=1, step=6), kind="epoch", epoch=3, metrics=metrics)
    shown = _with_figures(best, "val/f1")
    assert shown.endswith(": val/f1 0.75, val/0 0, val/1 1, val/2 2, val/3 3, val/4 4")
