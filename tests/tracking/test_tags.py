import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mltrain.tracking import tags as every
from mltrain.tracking.tags import best_by, best_tags, best_values, declared_best
from tests.support.runs import manifest_of


@pytest.mark.parametrize(("metric", "mode"), [("val/loss", "min"), ("val/F1 of all", "max"), ("val/f1", "min")])
def test_what_is_best_is_one_tag(metric: str, mode: str) -> None:
    assert declared_best({"mltrain.best_by": best_by(metric, mode)}) == (metric, mode)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, None),
        ({"mltrain.best_by": "max"}, None),
        ({"mltrain.best_metric": "val/f1"}, ("val/f1", "min")),
        ({"mltrain.best_metric": "val/f1", "mltrain.best_mode": "max"}, ("val/f1", "max")),
        (
            {"mltrain.best_by": "min a", "mltrain.best_metric": "b", "mltrain.best_mode": "max"},
            ("a", "min"),  # resumed by this version
        ),
    ],
)
def test_runs_of_version_0_1_tell_it_in_two_tags(tags: dict[str, str], expected: tuple[str, str] | None) -> None:
    assert declared_best(tags) == expected


def test_the_guide_explains_every_tag() -> None:
    guide = (Path(__file__).parent.parent.parent / "docs" / "guide.md").read_text(encoding="utf-8")
    table = guide.partition("**Tags.**")[2].partition("**Names.**")[0]
    explained = {re.sub(r"(N|…)$", "", name) for name in re.findall(r"`([\w.…]+)`", table)}
    earlier = {every.BEST_METRIC_TAG, every.BEST_MODE_TAG}
    elsewhere = {every.ATTEMPT_PREFIX, every.MADE_FROM_TAG}  # a parameter, and a tag of another thing
    names = {value for name, value in vars(every).items() if name.endswith(("_TAG", "_PREFIX"))}
    assert {name.removeprefix("mltrain.") for name in names - earlier - elsewhere} - explained == set()


def run_with(tags: dict[str, str]) -> Any:
    return SimpleNamespace(data=SimpleNamespace(tags=tags))


def test_what_is_written_is_read_back() -> None:
    manifest = manifest_of(8, epoch=2).model_copy(update={"metrics": {"val/loss": math.inf, "val/f1": 0.1}})
    tags = best_tags(manifest)
    assert tags["mltrain.best"] == manifest.name
    found = best_values(run_with(tags))
    assert found is not None
    assert (found.epoch, found.step, found.metrics) == (2, 8, {"val/loss": math.inf, "val/f1": 0.1})


def test_metrics_that_no_tag_holds_are_left_to_the_manifest() -> None:
    many = {f"val/{number:04d}": 0.1 for number in range(1000)}
    tags = best_tags(manifest_of(8, epoch=2).model_copy(update={"metrics": many}))
    assert len(tags["mltrain.at_best"]) < 8000
    assert best_values(run_with(tags)) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"checkpoint": "step-000000008-a01"}', '{"metrics": 1}'])
def test_tags_of_another_version_or_hand_tell_nothing(text: str) -> None:
    tags = best_tags(manifest_of(8, epoch=2))
    assert best_values(run_with({**tags, "mltrain.at_best": text})) is None
    assert best_values(run_with({**tags, "mltrain.best": "step-000000009-a01"})) is None
    assert best_values(run_with({})) is None
    content = json.loads(tags["mltrain.at_best"]) | {"metrics": {"val/loss": "low"}}
    assert best_values(run_with({**tags, "mltrain.at_best": json.dumps(content)})) is None
