"""An NPZ file is read, or refused with all errors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mltrain.errors import DataError
from projects.tool_wear import npz
from projects.tool_wear.windows import Windowing, Windows


def arrays(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        "X": rng.normal(size=(6, 5, 2)).astype(np.float32),
        "y": np.array([0, 1, 0, 1, 2, 2]),
        "groups": np.array([3, 3, 3, 7, 7, 7]),
    }
    given.update(changes)
    return {name: value for name, value in given.items() if value is not None}


def saved(folder: Path, **changes: Any) -> Path:
    file = folder / "windows.npz"
    np.savez(file, **arrays(**changes))
    return file


def test_three_arrays_are_enough(tmp_path: Path) -> None:
    windows = npz.read(saved(tmp_path))
    assert np.array_equal(windows.signals, arrays()["X"])
    assert windows.labels.tolist() == [0, 1, 0, 1, 2, 2]
    assert windows.tool_names == ("3", "7")
    assert windows.cuts.tolist() == [1, 2, 3, 1, 2, 3]
    assert windows.channels == ("channel 0", "channel 1")
    assert windows.classes == ("class 0", "class 1", "class 2")
    assert np.isnan(windows.wear).all()


def test_whole_numbers_may_be_floats_and_names_may_have_blanks_around_them(tmp_path: Path) -> None:
    plain = npz.read(saved(tmp_path, cuts=np.array([1, 2, 3, 1, 2, 3]), lengths=np.full(6, 5)))
    floats = {"y": arrays()["y"] * 1.0, "cuts": np.array([1.0, 2, 3, 1, 2, 3]), "lengths": np.full(6, 5.0)}
    groups = np.array([" 3", "3 ", "3", "7", "7", "7"])
    for given in (groups, arrays()["groups"] * 1.0, arrays()["groups"].astype(np.bytes_)):
        again = npz.read(saved(tmp_path, **floats, groups=given))
        assert again.tool_names == plain.tool_names == ("3", "7")
        assert np.array_equal(again.labels, plain.labels)
        assert np.array_equal(again.cuts, plain.cuts)


def test_what_is_no_npz_file_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    file = tmp_path / "windows.npz"
    np.savez(file, X=np.array([np.zeros((3, 2)), np.zeros((4, 2))], dtype=object))
    with pytest.raises(DataError, match=r"unequal length: pad them, and give lengths"):
        npz.read(file)
    for content in (b"", b"cut,flute_1\n1,20\n"):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"Expected what numpy\.savez"):
            npz.read(file)


def test_names_that_are_given_are_used(tmp_path: Path) -> None:
    windows = npz.read(
        saved(tmp_path, channel_names=np.array(["Fx", "AE"]), class_names=np.array(["a", "b", "c", "d"]))
    )
    assert windows.channels == ("Fx", "AE")
    assert windows.classes == ("a", "b", "c", "d")


def test_what_is_written_is_read_back(tmp_path: Path, small: Windows) -> None:
    npz.write(tmp_path / "deep" / "small.npz", small)
    again = npz.read(tmp_path / "deep" / "small.npz")
    assert np.array_equal(again.signals, small.signals)
    assert np.array_equal(again.labels, small.labels)
    assert np.array_equal(again.tools, small.tools)
    assert np.array_equal(again.cuts, small.cuts)
    assert np.array_equal(again.wear, small.wear)
    assert (again.channels, again.classes) == (small.channels, small.classes)


def test_windows_without_classes_are_read_back_too(tmp_path: Path, small: Windows) -> None:
    bare = replace(small, classes=(), labels=np.full(len(small), -1))
    npz.write(tmp_path / "bare.npz", bare)
    again = npz.read(tmp_path / "bare.npz", labelled=False)
    assert again.classes == ()
    assert np.array_equal(again.wear, bare.wear)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"groups": None}, r"lacks groups \(the tool of each window"),
        ({"X": None, "y": None}, r"lacks X, y \(the class\) or wear \(in um\); it has groups"),
        ({"X": np.zeros((6, 5), np.float32)}, r"shape \(N, T, C\), and has float32 of shape \(6, 5\)"),
        ({"X": np.zeros((0, 5, 2), np.float32)}, r"shape \(0, 5, 2\)"),
        ({"y": np.full(6, 0.5)}, r"y has to hold integers, and holds float64\. Try: .*numpy\.unique"),
        ({"y": np.array(list("abcabc"))}, "holds <U1"),
        ({"y": np.array([1, 2, 3, 1, 2, 3])}, "goes up to 3, and no window has the class 0"),
        ({"y": np.array([0, 5, 0, 5, 9, 9])}, "the class 1, 2, 3, 4, 6, 7, 8"),
        ({"y": np.zeros(5, int)}, r"y has shape \(5,\) for 6 windows"),
        ({"y": np.array([0, 1, 2, 0, 1, -2])}, "classes below -1: -2"),
        ({"groups": np.zeros(2)}, r"groups has shape \(2,\) for 6 windows"),
        ({"channel_names": np.array(["one"])}, "1 names for 2 channels"),
        ({"class_names": np.array(["a", "b"])}, "the class 2, and class_names only 2 names"),
        ({"class_names": np.array("abc")}, "class_names only 1 names"),
        ({"class_names": np.array(["a", "a", "b"])}, "class_names has 'a' twice"),
        ({"groups": np.array([3, 3, 3, 7, 7, np.nan])}, "groups has to hold the name or number of a tool"),
        ({"groups": np.array([1, 1, 1, 0, 0, 0], bool)}, "groups .* holds bool"),
        ({"groups": np.array(["a", "a", "", "b", "b", "b"])}, "without the name of a tool, the first is number 2"),
        ({"groups": np.array(["c1", "C1", "c1", "b", "b", "b"])}, "'C1' and 'c1' look like the same one"),
        ({"groups": np.array(["c1", "c01", "c1", "b", "b", "b"])}, "'c01' and 'c1' look like the same one"),
        ({"rate": np.array(0.0)}, r"rate has to be one number above 0 \[Hz\]"),
        ({"X": np.full((6, 5, 2), 1e39)}, "numbers too large for float32"),
        ({"X": np.zeros((6, 5, 2), complex)}, "has complex128"),
        (
            {"X": np.where(np.arange(6)[:, None, None] == 4, np.nan, np.zeros((6, 5, 2)))},
            "1 windows hold NaN .* number 4",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        npz.read(saved(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cuts": np.array([1, 1, 2, 1, 2, 3]), "wear": np.array([5.0, 6, 7, 5, 6, 7])}, "cut 1 of .* appears twice"),
        ({"cuts": np.array([1, 1, 2, 1, 2, 3])}, "cut 1 of '3' appears twice, with the class 0 and 1"),
        ({"cuts": np.array([1, 1.5, 2, 1, 2, 3])}, "cuts has to hold integers"),
        ({"wear": np.array([0.05, 60, 70, 50, 60, 70])}, r"tool '3': wear goes from 0\.05 to 60 .*mm"),
        ({"wear": np.array([50, 60, 0.07, 50, 60, 70])}, r"tool '3': wear goes from 60 to 0\.07 .*mm"),
        ({"wear": np.full(6, 50.0), "wear_bins": np.array([0.09, 0.14])}, r"wear_bins: .*mm\. Try: \[90, 140\]"),
        (
            {"wear_bins": np.array([90.0, 140.0]), "class_names": np.array(list("abcd"))},
            "make 3 classes, and .* 4 names",
        ),
        ({"wear_bins": np.array([140.0, 90.0])}, r"limits that rise, and holds 140\.0, 90\.0"),
        ({"wear_bins": np.array(["low", "high"])}, "limits that rise, and holds low, high"),
        ({"wear": np.array([5.0, 6, 7, 5, 6, np.inf])}, "infinite or below 0"),
        ({"wear": np.array(["5"] * 6)}, "wear has to hold numbers"),
        ({"wear": np.full(6, 2.0)}, "wear_unit=um or wear_unit=mm"),
    ],
)
def test_wear_that_could_mean_two_things_is_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        npz.read(saved(tmp_path, **changes))


def test_wear_without_classes_is_classified_by_the_limits_of_the_configuration(tmp_path: Path) -> None:
    wear = np.array([20.0, 95.0, 99.0, 20.0, 130.0, np.nan])
    windowing = Windowing(bins=(90.0, 100.0), class_names=("new", "used", "worn"))
    windows = npz.read(saved(tmp_path, y=None, wear=wear), windowing)
    assert windows.labels.tolist() == [0, 1, 1, 0, 2, -1]
    assert windows.classes == ("new", "used", "worn")
    assert windows.bins == (90.0, 100.0)


def test_wear_in_millimetres_and_its_limits_are_converted(tmp_path: Path) -> None:
    wear = np.array([0.02, 0.095, 0.1, 0.02, 0.13, 0.2])
    windows = npz.read(saved(tmp_path, wear=wear, wear_bins=np.array([0.09, 0.14])))
    np.testing.assert_allclose(windows.wear, wear * 1000, rtol=1e-6)
    assert windows.bins == (90.0, 140.0)


def test_the_unit_of_wear_is_recognised_tool_by_tool(tmp_path: Path) -> None:
    groups = np.array(["T1", "T1", "T1", "T2", "T2", "T2"])
    wear = np.array([20.0, 95.0, 150.0, 0.02, 0.095, 0.15])
    windows = npz.read(saved(tmp_path, y=None, groups=groups, wear=wear))
    np.testing.assert_allclose(windows.wear, [20, 95, 150, 20, 95, 150], rtol=1e-6)
    assert windows.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_windows_that_nobody_measured_are_read_to_be_predicted(tmp_path: Path) -> None:
    file = saved(tmp_path, y=None)
    with pytest.raises(DataError, match=r"lacks y \(the class\) or wear \(in um\)"):
        npz.read(file)
    windows = npz.read(file, labelled=False)
    assert windows.labels.tolist() == [-1] * 6
    assert np.isnan(windows.wear).all()


def test_windows_of_unequal_length_are_padded_and_come_back(tmp_path: Path) -> None:
    given = arrays()["X"]
    given[1, 3:], given[4, 1:] = np.inf, np.nan  # whatever stands in the padding
    windows = npz.read(saved(tmp_path, X=given, lengths=np.array([5, 3, 5, 5, 1, 5])))
    assert windows.lengths.tolist() == [5, 3, 5, 5, 1, 5]
    assert np.array_equal(windows.signals[1, :3], given[1, :3])
    npz.write(tmp_path / "again.npz", windows)
    np.testing.assert_array_equal(npz.read(tmp_path / "again.npz").signals, windows.signals)


@pytest.mark.parametrize("lengths", [[5, 3, 5, 5, 0, 5], [5, 3, 5, 5, 6, 5], [5, 3.5, 5, 5, 1, 5], [5, 3, 5]])
def test_lengths_that_cannot_be_are_refused(tmp_path: Path, lengths: list[float]) -> None:
    with pytest.raises(DataError, match="lengths has"):
        npz.read(saved(tmp_path, lengths=np.array(lengths)))


def test_a_gap_inside_a_window_is_refused_whatever_its_length(tmp_path: Path) -> None:
    given = arrays()["X"]
    given[1, 2] = np.nan
    with pytest.raises(DataError, match=r"1 windows hold NaN .* number 1"):
        npz.read(saved(tmp_path, X=given, lengths=np.array([5, 3, 5, 5, 1, 5])))


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError) as refused:
        npz.read(saved(tmp_path, y=np.full(5, 0.5), channel_names=np.array(["one"])))
    assert "y has shape" in str(refused.value)
    assert "y has to hold integers" in str(refused.value)
    assert "channel_names" in str(refused.value)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    file = saved(tmp_path, groups=np.array([{"a": 1}] * 6, dtype=object))
    with pytest.raises(DataError, match="without pickled objects"):
        npz.read(file)


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 truncated"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "windows.npz"
    file.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as an NPZ file"):
        npz.read(file)


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "windows.npy", np.zeros((3, 2, 1)))
    with pytest.raises(DataError, match="cannot be read as an NPZ file"):
        npz.read(tmp_path / "windows.npy")


def test_an_interrupted_write_is_refused(tmp_path: Path, small: Windows) -> None:
    file = tmp_path / "small.npz"
    npz.write(file, small)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError):
        npz.read(file)
