from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mltrain.errors import ConfigError, DataError
from projects.cardiac.labels import ACDC, EMIDEC, LabelMap, mask
from projects.cardiac.preparation import Config


def volume(*values: float) -> np.ndarray:
    """A volume (2, 2, 2) that holds these values, in turn."""
    return np.resize(np.array(values), (2, 2, 2))


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 100), (0, -1), (0, 0.00392), (1, 2)])
def test_two_values_are_background_and_foreground_whatever_they_are(values: tuple[float, float]) -> None:
    found = mask(volume(*values), "mask.nii.gz", "myocardium", None, "labels")
    assert found.dtype == bool
    assert np.array_equal(found, volume(*values) == values[1])


def test_an_empty_mask_is_empty() -> None:
    assert not mask(volume(0), "mask.nii.gz", "myocardium", None, "labels").any()


@pytest.mark.parametrize("values", [(0, 1, 2, 3), (0, 85, 170), (0, 0.25, 0.5)])
def test_more_values_are_refused_and_listed(values: tuple[float, ...]) -> None:
    with pytest.raises(DataError) as caught:
        mask(volume(*values), "mask.nii.gz", "myocardium", None, "late_labels")
    assert f"mask.nii.gz holds {len(values)} values: 0 (" in str(caught.value)
    assert all(f"{value:g} (" in str(caught.value) for value in values)
    assert "late_labels=acdc, late_labels=emidec" in str(caught.value)


@pytest.mark.parametrize(("values", "problem"), [((7,), "nothing but the value 7"), ((0, np.nan), "NaN or infinity")])
def test_what_is_no_mask_is_refused(values: tuple[float, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        mask(volume(*values), "mask.nii.gz", "myocardium", None, "labels")


def test_the_conventions_of_acdc_and_emidec() -> None:
    values = volume(0, 1, 2, 3)
    for structure, value in (("rv", 1), ("myocardium", 2), ("lv", 3)):
        assert np.array_equal(mask(values, "acdc", structure, ACDC, "labels"), values == value)
    values = volume(0, 1, 2, 3, 4)
    assert np.array_equal(mask(values, "emidec", "lv", EMIDEC, "labels"), values == 1)
    assert np.array_equal(mask(values, "emidec", "myocardium", EMIDEC, "labels"), values >= 2)  # scar is myocardium
    assert np.array_equal(mask(values, "emidec", "infarct", EMIDEC, "labels"), values >= 3)  # no-reflow is infarct


def test_values_that_the_map_does_not_name_are_refused() -> None:
    with pytest.raises(DataError, match=r"labels=\{lv: 3, myocardium: 2, rv: 1\} does not name: 4 \(1 voxels\)"):
        mask(volume(0, 0, 2, 3, 1, 2, 4, 3), "mask.nii.gz", "myocardium", ACDC, "labels")
    with pytest.raises(DataError, match=r"does not name: 1\.5"):
        mask(volume(0, 1.5), "mask.nii.gz", "myocardium", ACDC, "labels")


@pytest.mark.parametrize(
    "given",
    [
        {"labels": "acdc"},
        {"labels": "{lv: 3, myocardium: 2, rv: 1}"},
        {"labels": {"lv": 3, "myocardium": [2], "rv": "1"}},
        {"labels.lv": "3", "labels.myocardium": "2", "labels.rv": "1"},
    ],
)
def test_a_map_is_a_name_a_text_a_mapping_or_dotted_keys(given: dict[str, Any]) -> None:
    config = Config.load(overrides=given)
    assert config.labels == ACDC
    assert Config.load(base=config.resolved()) == config


def test_a_file_may_hold_the_map(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("late_labels: {lv: 1, myocardium: 2, infarct: [3, 4]}\n")
    assert Config.load([tmp_path / "config.yaml"]).late_labels == EMIDEC


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("acdd", "expected acdc, emidec, or a map"),
        ("{lv: 3}", "labels.myocardium is missing and has no default"),
        ("{lv: 3, myocardium: [2, 3]}", "3 stands for lv and for myocardium"),
        ("{myocardium: 0}", "0 stands for the background and for myocardium"),
        ("{myocardium: 2, atrium: 4}", "Unknown key 'labels.atrium'"),
    ],
)
def test_a_map_that_cannot_be_meant_is_refused(given: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Config.load(overrides={"labels": given})


def test_a_preparation_without_maps_has_the_configuration_of_before_there_were_any() -> None:
    assert not {"labels", "late_labels"} & Config().resolved().keys()
    assert Config(labels=LabelMap(myocardium=(2,))).resolved()["labels"]["myocardium"] == [2]
