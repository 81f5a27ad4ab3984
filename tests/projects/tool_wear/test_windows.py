"""Windows are filtered, labelled by wear, and split by tool."""

from dataclasses import replace

import numpy as np
import pytest

from mltrain.errors import DataError
from projects.tool_wear import generator, synthetic
from projects.tool_wear.windows import UNLABELLED, Windowing, Windows, split_by_tool


def test_no_tool_is_in_two_sets_and_every_window_in_one(small: Windows) -> None:
    split = split_by_tool(small, val=["c5"], test=["c6"])
    assert [part.tool_names for part in split] == [("c1", "c4"), ("c5",), ("c6",)]
    assert sum(len(part) for part in split) == len(small)


def test_without_names_the_last_tool_validates_and_none_is_kept_for_the_test(small: Windows) -> None:
    split = split_by_tool(small)
    assert split.val.tool_names == ("c6",)
    assert len(split.test) == 0


def test_one_error_names_all_that_is_wrong_with_a_split(small: Windows) -> None:
    with pytest.raises(DataError) as refused:
        split_by_tool(small, val=["c9", "c1"], test=["c1", "c4", "c5", "c6"])
    message = str(refused.value)
    assert "there is no tool 'c9'" in message
    assert "'c1' is named for validation and for test" in message
    assert "no tool is left to train on" in message
    assert "c1, c4, c5, c6" in message


def test_a_tool_by_its_number_or_in_other_letters_gets_a_hint(small: Windows) -> None:
    for named in ("4", "C4"):
        with pytest.raises(DataError, match=rf"there is no tool '{named}'\. Did you mean 'c4'"):
            split_by_tool(small, val=[named])


def test_what_leaves_nothing_to_learn_is_refused_in_its_own_words(small: Windows) -> None:
    with pytest.raises(DataError, match=r"there is one tool, c4\. Expected two at least"):
        split_by_tool(small.of(["c4"]))
    with pytest.raises(DataError, match="no window has a known class"):
        split_by_tool(small.where(small.labels > 9))
    alike = replace(small, labels=np.zeros_like(small.labels), classes=("worn",), bins=())
    with pytest.raises(DataError, match=r"all windows are 'worn', and there is nothing to tell apart") as refused:
        split_by_tool(alike)
    assert "wear_bins" not in str(refused.value)


def test_a_class_that_cannot_be_learnt_is_refused(small: Windows) -> None:
    mild = small.where((small.tools != "c1") | (small.labels < 2)).of(["c1", "c6"])
    with pytest.raises(DataError, match="no window of the training tools c1 is 'severe'"):
        split_by_tool(mild, val=["c6"])


@pytest.mark.parametrize(
    ("bins", "classes"),
    [
        ((90.0, 140.0), ("initial", "steady", "severe")),
        ((120.0,), ("< 120 um", ">= 120 um")),
        ((60.0, 100.0, 150.0), ("< 60 um", "60-100 um", "100-150 um", ">= 150 um")),
    ],
)
def test_classes_are_named_by_their_limits(bins: tuple[float, ...], classes: tuple[str, ...]) -> None:
    assert Windowing(bins=bins).classes == classes


def test_a_limit_belongs_to_the_class_above_it_and_unknown_wear_to_none() -> None:
    labels = Windowing().labels(np.array([0.0, 89.9, 90.0, 139.9, 140.0, 300.0, np.nan]))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, UNLABELLED]


def test_wear_is_the_mean_or_the_largest_of_the_flutes() -> None:
    flutes = np.array([[80.0, 100.0, 120.0]])
    assert Windowing(wear_of="mean").wear(flutes).tolist() == [100.0]
    assert Windowing(wear_of="max").wear(flutes).tolist() == [120.0]


def sine(frequency: float, windowing: Windowing, factor: int) -> np.ndarray:
    time = np.arange(windowing.samples(factor)) / (windowing.rate * factor)
    return np.sin(2 * np.pi * frequency * time)[:, None]


def test_decimation_passes_what_the_window_can_show_up_to_its_ends() -> None:
    windowing = Windowing()
    kept = windowing.decimated(sine(500.0, windowing, 10), 10)
    time = (np.arange(128) + 10) / windowing.rate
    assert kept.shape == (128, 1)
    np.testing.assert_allclose(kept[:, 0], np.sin(2 * np.pi * 500.0 * time), atol=0.01)


@pytest.mark.parametrize("frequency", [4000.0, 5200.0, 12_000.0])
def test_decimation_removes_what_would_fold_into_the_window(frequency: float) -> None:
    windowing = Windowing()
    assert np.abs(windowing.decimated(sine(frequency, windowing, 10), 10)).max() < 0.01


def test_a_rate_that_does_not_divide_the_recording_is_refused() -> None:
    with pytest.raises(DataError, match="whole number"):
        Windowing(rate=3000.0).factor(50_000.0)


def test_generated_windows_are_complete_and_in_order(small: Windows) -> None:
    assert small.signals.shape == (4 * 30 * 2, 32, 7)
    assert small.signals.dtype == np.float32
    assert small.labels.dtype == np.int64
    assert small.channels == generator.CHANNELS
    assert small.cuts[:4].tolist() == [1, 1, 2, 2]
    assert np.array_equal(small.labels, Windowing().labels(small.wear))


def test_leaving_the_last_tool_out_leaves_the_others_as_they_are() -> None:
    windowing = Windowing(steps=16)
    three = synthetic.generate(windowing, seed=0, tools=("a", "b", "c"), cuts=4)
    two = synthetic.generate(windowing, seed=0, tools=("a", "b"), cuts=4)
    assert np.array_equal(three.of(["a", "b"]).signals, two.signals)


def test_tools_are_sorted_by_their_numbers_and_the_last_one_validates(small: Windows) -> None:
    renamed = np.select([small.tools == "c1", small.tools == "c4", small.tools == "c5"], ["c2", "c10", "c9"], "c1b3")
    windows = replace(small, tools=renamed)
    assert windows.tool_names == ("c1b3", "c2", "c9", "c10")
    assert split_by_tool(windows).val.tool_names == ("c10",)


@pytest.mark.parametrize(("val", "test"), [(["c5", "c5"], []), (["c5"], ["c6", "c6"])])
def test_a_tool_that_stands_twice_in_a_list_is_refused(small: Windows, val: list[str], test: list[str]) -> None:
    with pytest.raises(DataError, match=r"appears twice in (val|test)_tools"):
        split_by_tool(small, val, test)
