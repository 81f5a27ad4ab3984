"""A pipeline's plan is recorded, and rebuilt from its stages."""

import json
from pathlib import Path
from typing import Any

import pytest

import mltrain
from mltrain.errors import UsageError
from mltrain.pipeline import Pipeline, Stage
from mltrain.pipelines.plan import PipelineRequest
from mltrain.project import Located
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
        ({"start": "first", "only": "first"}, "Expected one of the two"),
        ({"start": "first", "mode": "scratch"}, "Expected one of the two"),
        ({"only": "frist"}, "Did you mean 'first'"),
        ({"use": {"frist": "a"}}, "Did you mean 'first'"),
        ({"start": "second", "use": {"third": "a"}}, "third cannot run again and be replaced by --use"),
    ],
)
def test_a_contradiction_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        request(**given)
