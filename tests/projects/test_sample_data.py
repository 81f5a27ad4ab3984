"""Every system names its sample data for the run's record."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

SYSTEMS = {
    "segmentation.project": {"image_path": "data", "gt_path": "data"},
    "tool_wear.project": {"data_path": "data"},
    "style_transfer.project": {"image_dir": "data"},
    "cardiac.preparation": {"source": "layout", "data": "data"},
}


@pytest.mark.parametrize("system", SYSTEMS)
def test_sample_data_are_named_where_no_key_names_data(system: str) -> None:
    own = import_module(f"projects.{system}").Config
    sample = own.load().sample_data()
    assert sample
    assert all(place.is_dir() if isinstance(place, Path) else "(" in place for place in sample.values())
    given: dict[str, Any] = SYSTEMS[system]
    assert own.load(overrides=given).sample_data() == {}


def test_what_generates_the_data_names_every_argument_that_changes_them() -> None:
    tools, phantoms = import_module("projects.tool_wear.project"), import_module("projects.cardiac.preparation")
    for config, changes in (
        (tools.Config, {"data_seed": 1, "cuts": 9, "wear_bins": "80"}),
        (phantoms.Config, {"cases": 3}),
    ):
        texts = [config.load(overrides=dict([change])).sample_data() for change in changes.items()]
        assert len({str(text) for text in (config.load().sample_data(), *texts)}) == 1 + len(changes)
