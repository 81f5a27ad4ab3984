"""Errors of a training are raised before a run exists."""

from pathlib import Path
from typing import Any

import pytest

from mltrain.commands.train import run_training
from mltrain.commands.train_request import Request
from mltrain.errors import ConfigError, StateMismatch
from tests.support import tiny
from tests.support.trainings_of_tiny import TINY, built_with
from tests.support.unchanged import Unchanged


class Mute:
    """A part without a state."""


BAD_KEYS = {
    "a device that is not here": {"device": "cuda:7"},
    "half precision on the CPU": {"amp": "fp16"},
    "a policy that cannot be read": {"retention": "Newest(2)"},
    "negative epochs": {"epochs": "-1"},
    "no checkpoint to keep": {"max_to_keep": "0"},
    "neither less nor more": {"best_mode": "maximum"},
    "a folder below a file": {"model_save_path": f"{tiny.__file__}/weights"},
    "data that are not there": {"data": "/nowhere/at/all", "num_threads": "0"},
}


BAD_TASKS: dict[str, dict[str, Any]] = {
    "a step that cannot be called": {"step": 3},
    "pictures that cannot be called": {"images": {"a": 1}},
    "an evaluation that cannot be called": {"evaluate": 0.5},
    "a part with a name that is taken": {"state": {"progress": tiny.build(tiny.Config()).loader}},
    "a part without a state": {"state": {"mute": Mute()}},
    "parts that are no mapping": {"state": [1]},
}


@pytest.mark.parametrize("how", ["new", "resumed", "forked"])
@pytest.mark.parametrize("what", [*BAD_KEYS, *BAD_TASKS])
def test_a_training_that_cannot_be_is_refused_before_there_is_a_run(
    what: str, how: str, store: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    source = {"new": {}, "resumed": {"resume_run": trained[1]}, "forked": {"fork_run": trained[1]}}[how]
    project = built_with(**BAD_TASKS[what]) if what in BAD_TASKS else TINY
    with Unchanged(store, tmp_path / "home"):
        run_training(Request(project=project, overrides={"epochs": 3, **BAD_KEYS.get(what, {})}, **source))  # type: ignore[arg-type]


def test_a_precision_that_the_step_would_not_use_is_refused_before_there_is_a_run(store: Path, tmp_path: Path) -> None:
    project = built_with(step=lambda batch: {"loss": 1.0})
    with Unchanged(store, tmp_path / "home", ConfigError):
        run_training(Request(project=project, overrides={"epochs": 1, "amp": "bf16"}))


@pytest.mark.parametrize("source", ["resume_run", "fork_run"])
def test_a_model_of_another_shape_is_refused_before_the_run_is_claimed(
    source: str, store: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    named: dict[str, Any] = {source: trained[1]}
    with Unchanged(store, tmp_path / "home", StateMismatch):
        run_training(Request(project=TINY, overrides={"epochs": 3, "hidden": 17}, **named))


def test_changed_data_are_refused_before_the_run_is_claimed(
    store: Path, trained: tuple[Path, str], tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("two")
    with Unchanged(store, tmp_path / "home"):
        run_training(
            Request(project=TINY, resume_run=trained[1], overrides={"epochs": 3, "data": str(tmp_path / "other")})
        )
