import pytest

import mltrain
from mltrain.configuration.files import read_mapping
from mltrain.errors import ConfigError
from projects.segmentation.project import Config, build
from tests.projects.segmentation.conftest import CONFIG_FILE, made


def test_the_file_explains_the_defaults_and_leaves_none_of_the_projects_keys_out() -> None:
    assert Config.load([CONFIG_FILE]) == Config()
    explained = read_mapping(CONFIG_FILE).keys() - {"presets"}
    assert explained >= Config.model_fields.keys() - mltrain.Config.model_fields.keys()


@pytest.mark.parametrize("preset", read_mapping(CONFIG_FILE)["presets"])
def test_every_preset_is_a_configuration(preset: str) -> None:
    assert Config.load([CONFIG_FILE], preset=preset) != Config()


@pytest.mark.parametrize(
    ("given", "size"),
    [("128", (128, 128)), ("112x96", (112, 96)), ("64X32", (64, 32)), ("[112, 96]", (112, 96)), (64, (64, 64))],
)
def test_an_image_size_is_a_side_or_height_by_width(given: str | int, size: tuple[int, int]) -> None:
    config = made(image_size=given)
    assert config.image_size == size
    assert Config.load(base=config.resolved()) == config


@pytest.mark.parametrize("given", ["100", "8", "12x-8", "big", "64x64x64"])
def test_an_image_size_that_the_network_cannot_take_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="image_size"):
        made(image_size=given)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"image_path": "a"}, "image_path and gt_path are given together"),
        ({"image_path": "a", "gt_path": "b", "val_gt_path": "c"}, "val_image_path and val_gt_path are given together"),
        ({"splits": "a.csv"}, "image_path is not given"),
        (
            dict.fromkeys(("image_path", "gt_path", "val_image_path", "val_gt_path", "splits"), "a"),
            "exclude one another",
        ),
        ({"sample": "cells"}, "mni152"),
        ({"learning_speed": "1"}, "Unknown key"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(given: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        made(**given)


def test_channels_are_one_or_three_also_as_text() -> None:
    assert made(channels="1").channels == 1
    assert made(channels="none").channels is None
    with pytest.raises(ConfigError, match="channels"):
        made(channels="2")


def test_quarter_turns_want_a_square() -> None:
    with pytest.raises(ConfigError, match=r"32x64\. Try: image_size=32"):
        build(made(sample="blobs", quarter_turns="true", image_size="32x64"))


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"resize": "none", "image_size": "64"}, "Try: crop_size"),
        ({"image_size": "64", "crop_size": "128"}, "larger than image_size"),
        ({"foreground": "1", "classes": "[1,2]"}, "exclude one another"),
        ({"foreground": "white"}, "'white' is not a mask value"),
        ({"classes": "[1,1]"}, "twice"),
    ],
)
def test_keys_of_scale_and_labels_that_contradict_are_refused(given: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        made(**given)


def test_a_recorded_configuration_of_an_earlier_version_stretches() -> None:
    earlier = {key: value for key, value in Config().resolved().items() if key not in ("resize", "crop_size", "crops")}
    assert Config.load(base=earlier).resize == "stretch"
    assert Config.load(base=Config().resolved()).resize == "auto"


@pytest.mark.parametrize(
    ("given", "classes"),
    [
        ("[1,2]", ("1", "2")),
        ("1,2", ("1", "2")),
        ("[liver=1, vessel=2-4]", ("liver=1", "vessel=2-4")),
        ("{liver: 1}", ("liver=1",)),
        ("road=#804080,car=#00008e", ("road=#804080", "car=#00008e")),
        (["liver", "vessel"], ("liver", "vessel")),
        ("none", None),
    ],
)
def test_classes_are_a_list_a_mapping_or_plain_text(given: object, classes: tuple[str, ...] | None) -> None:
    config = made(classes=given)
    assert config.classes == classes
    assert Config.load(base=config.resolved()) == config
