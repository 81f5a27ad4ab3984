import re
from pathlib import Path

import pytest

from mltrain.tracking import tags as every
from mltrain.tracking.tags import best_by, declared_best


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
