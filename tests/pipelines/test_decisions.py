"""Decisions about stages are pure: wanted and found give actions."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mltrain
from mltrain.pipeline import Stage
from mltrain.pipelines.decisions import Changes, Found, Recipe, Record, StageMode, changes, decide, preferred


class Config(mltrain.Config):
    lr: float = 1e-3
    data: Path | None = None
    before: Path | None = None


def make(config: Any, folder: Path) -> Mapping[str, float]:
    raise AssertionError("nothing is made by deciding")


def build(config: Any) -> mltrain.Task:
    raise AssertionError("nothing is built by deciding")


FILES = Stage("files", Config, make=make)
MODEL = Stage("model", Config, build=build, needs={"before": "files"})


def recipe(**given: Any) -> tuple[Record, Recipe]:
    """A recorded run and the wanted recipe, changed by ``given``."""
    config = Config()
    record = Record(config.resolved(), {"before": "d1"}, {"data": "f1"}, "c1")
    wanted = Recipe(Config(**given.pop("config", {})), {"before": "d1"}, {"data": "f1"}, "c1")
    return record, replace(wanted, **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"config": {"lr": 0.5}}, "lr 0.001 → 0.5"),
        ({"config": {"epochs": 11}}, "epochs 10 → 11"),
        ({"config": {"seed": 3}}, "seed 0 → 3"),
        ({"inputs": {"before": "d2"}}, "another input before"),
        ({"data": {"data": "f2"}}, "other data in data"),
        ({"data": {}}, "other data in data"),
        ({"code": "c2"}, "other code"),
    ],
)
def test_what_an_output_follows_from_is_noticed(given: dict[str, Any], said: str) -> None:
    found = changes(*recipe(**given))
    assert found
    assert str(found) == said


@pytest.mark.parametrize(
    "given", [{"device": "cpu"}, {"save_interval": 0}, {"max_to_keep": 9}, {"run_name": "x"}, {"before": Path("/b")}]
)
def test_what_leaves_the_outcome_alone_is_no_change(given: dict[str, Any]) -> None:
    assert not changes(*recipe(config=given))


DONE = Found("r", "finished", Changes())
LR, EPOCHS = Changes({"lr": ("1", "2")}), Changes({"epochs": ("3", "4")})
CODE, INPUT, DATA = Changes(code=True), Changes(inputs=["before"]), Changes(data=["data"])


@pytest.mark.parametrize(
    ("mode", "found", "action", "why"),
    [
        ("skip", None, "run", "no run"),
        ("resume", None, "run", "no run"),
        ("scratch", DONE, "run", "requested"),
        ("skip", DONE, "skip", "intact"),
        ("resume", DONE, "skip", "intact"),
        ("skip", replace(DONE, changes=LR), "run", "lr 1 → 2"),
        ("resume", replace(DONE, changes=LR), "run", "lr 1 → 2"),
        ("skip", replace(DONE, changes=EPOCHS), "run", "epochs 3 → 4"),
        ("resume", replace(DONE, changes=EPOCHS), "resume", "epochs 3 → 4"),
        ("skip", replace(DONE, changes=CODE), "run", "other code"),
        ("resume", replace(DONE, changes=CODE), "skip", "other code"),
        ("skip", replace(DONE, changes=INPUT), "run", "another input"),
        ("resume", replace(DONE, changes=INPUT), "run", "another input"),
        ("resume", replace(DONE, changes=DATA), "run", "other data"),
        ("skip", replace(DONE, damage="x", recoverable=True), "resume", "damaged (x)"),
        ("resume", replace(DONE, damage="x", recoverable=False), "run", "damaged (x)"),
        ("skip", replace(DONE, state="stopped", where="epoch 2 of 3"), "resume", "stopped at epoch 2 of 3"),
        ("resume", replace(DONE, state="dead"), "resume", "dead"),
        ("skip", replace(DONE, state="dead", changes=LR), "run", "lr 1 → 2"),
        ("resume", replace(DONE, state="dead", changes=LR), "resume", "changed since: lr 1 → 2"),
        ("resume", replace(DONE, state="failed", changes=CODE), "resume", "other code"),
        ("resume", replace(DONE, state="failed", changes=INPUT), "run", "another input"),
    ],
)
def test_the_table_of_decisions(mode: StageMode, found: Found | None, action: str, why: str) -> None:
    decision = decide(MODEL, found, mode)
    assert decision.action == action
    assert why in decision.why
    assert decision.run_id == (None if action == "run" else "r")


@pytest.mark.parametrize("state", ["finished", "dead"])
def test_files_of_another_configuration_are_never_continued(state: str) -> None:
    assert decide(FILES, Found("r", state, EPOCHS), "resume").action == "run"


def test_of_several_runs_a_finished_one_that_fits_is_preferred_and_then_one_that_can_be_continued() -> None:
    changed, half = replace(DONE, run_id="new", changes=LR), Found("half", "stopped", Changes())
    assert preferred(MODEL, [changed, half, DONE], "skip") == DONE
    assert preferred(MODEL, [changed, half], "skip") == half
    assert preferred(MODEL, [changed], "skip") == changed
    assert preferred(MODEL, [], "skip") is None
