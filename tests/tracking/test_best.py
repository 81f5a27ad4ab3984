"""The tags of a run tell what its best checkpoint measured, or that its manifest has to be asked."""

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest

from mltrain.tracking.best import best_tags, best_values
from tests.support.runs import manifest_of


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
