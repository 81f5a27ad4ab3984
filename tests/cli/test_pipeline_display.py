"""The end of a pipeline as a person and as a program read it."""

import json

import pytest

from mltrain.cli.pipeline_display import TerminalPipeline, print_result, print_status
from mltrain.pipelines.decisions import Decision
from mltrain.pipelines.request import Result
from mltrain.pipelines.status import Row

SKIPPED, TRAINED = Decision("first", "skip", "intact", "a"), Decision("second", "run", "changed")
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
    TerminalPipeline().ended(RESULT)
    assert "Resume: mltrain pipeline --run parent --mode resume" in capsys.readouterr().out


def test_the_log_on_this_machine_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row("first", "done", "a", 1, 1, None, None, "skip", "intact", "/home/stage.log")
    print_status({"pipeline": "example", "run_id": None}, [row], as_json=False)
    printed = capsys.readouterr().out
    assert "you have no run of it" in printed
    assert "Log of first: /home/stage.log" in printed
