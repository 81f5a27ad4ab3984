"""A request says which stages are cleared and run anew, and is refused where it contradicts itself."""

from pathlib import Path
from typing import Any

import pytest

import mltrain
from mltrain.errors import UsageError
from mltrain.pipeline import Pipeline, Stage
from mltrain.pipelines.request import PipelineRequest
from mltrain.project import Located


def build(config: Any) -> mltrain.Task:
    raise AssertionError("nothing is built by asking")


def stage(name: str, *needs: str) -> Stage:
    kind = type(
        "Config", (mltrain.Config,), {"__annotations__": dict.fromkeys(needs, Path | None), **dict.fromkeys(needs)}
    )
    return Stage(name, kind, build=build, needs={need: need for need in needs})


def request(**given: Any) -> PipelineRequest:
    stages = [stage("first"), stage("second", "first"), stage("third", "second"), stage("beside")]
    return PipelineRequest(located=Located("word", Pipeline("example", stages)), **{"mode": "resume", **given})


@pytest.mark.parametrize(
    ("given", "again"),
    [
        ({}, set()),
        ({"mode": "skip", "only": "first"}, set()),
        ({"start": "second"}, {"second", "third"}),
        ({"mode": "scratch", "only": "second"}, {"second"}),
        ({"mode": "scratch"}, {"first", "second", "third", "beside"}),
    ],
)
def test_these_stages_are_run_anew(given: dict[str, Any], again: set[str]) -> None:
    assert request(**given).again == again


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"start": "first", "only": "first"}, "Give one of the two"),
        ({"start": "first", "mode": "scratch"}, "Give one of the two"),
        ({"only": "frist"}, "Did you mean 'first'"),
        ({"use": {"frist": "a"}}, "Did you mean 'first'"),
        ({"start": "second", "use": {"third": "a"}}, "third cannot be run anew and be given by --use at once"),
    ],
)
def test_a_contradiction_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        request(**given)
