from typing import Any

import pytest

import mltrain
from mltrain.configuration.files import read_mapping
from projects.cardiac import chain, preparation
from projects.cardiac.settings import CONFIG_FILE, presets_of

STAGES = {"preparation": preparation.Config} | {name: kind for name, (kind, _) in chain.STAGES.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_the_file_explains_the_defaults_and_leaves_none_of_the_stages_keys_out(stage: str) -> None:
    kind = STAGES[stage]
    section: dict[str, Any] = read_mapping(CONFIG_FILE)[stage]
    assert kind.load(overrides=section) == kind()
    assert section.keys() >= kind.model_fields.keys() - mltrain.Config.model_fields.keys()


def test_the_file_has_a_section_a_stage_and_presets() -> None:
    assert read_mapping(CONFIG_FILE).keys() == STAGES.keys() | {"presets"}
    assert set(read_mapping(CONFIG_FILE)["presets"]) == {"quick", "small"}


@pytest.mark.parametrize("preset", ["quick", "small"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_preset_is_a_configuration_of_every_stage(stage: str, preset: str) -> None:
    assert preset in presets_of(stage)
    STAGES[stage].load(preset=preset)


def test_quick_is_less_than_small() -> None:
    for kind, _ in chain.STAGES.values():
        quick, small = (kind.load(preset=preset) for preset in ("quick", "small"))
        assert quick.epochs < small.epochs
