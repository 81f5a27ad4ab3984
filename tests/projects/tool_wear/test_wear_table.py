"""A table of wear is read in its unit, and refused where a row could mean two things."""

import logging
from pathlib import Path

import numpy as np
import pytest

from projects.tool_wear import wear_table
from projects.tool_wear.wear_table import micrometres


def table(folder: Path, *rows: str) -> Path:
    file = folder / "c1_wear.csv"
    file.write_text("\n".join(["cut,flute_1,flute_2", *rows]))
    return file


def test_rows_are_found_by_their_cut_in_any_order(tmp_path: Path) -> None:
    wear = wear_table.read(table(tmp_path, "3,150,160", "1,10,20", "2,40,50"), [1, 3])
    assert {cut: values.tolist() for cut, values in wear.items()} == {1: [10.0, 20.0], 3: [150.0, 160.0]}


@pytest.mark.parametrize("again", ["2,40,50", "2,400,400", "2.0,40,50"])
def test_a_cut_that_stands_twice_is_refused_with_its_lines_even_if_the_rows_agree(tmp_path: Path, again: str) -> None:
    with pytest.raises(ValueError, match=r"stand twice: 2 \(lines 3 and 5\)"):
        wear_table.read(table(tmp_path, "1,10,20", "2,40,50", "3,150,150", again), [1, 2, 3])


def test_half_a_cut_is_refused_and_not_rounded_to_another(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 3 has the cut 1\.5"):
        wear_table.read(table(tmp_path, "1,10,20", "1.5,40,50"), [1])


def test_wear_below_one_is_taken_for_millimetres_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        wear = wear_table.read(table(tmp_path, "1,0.02,0.03", "2,0.09,0.19"), [1, 2])
    np.testing.assert_allclose(wear[2], [90.0, 190.0])
    assert "c1_wear.csv: the largest wear is 0.19, so it is taken for millimetres" in caplog.text


@pytest.mark.parametrize(("largest", "unit", "factor"), [(0.19, "um", 1), (1.53, "mm", 1000), (3.0, "um", 1)])
def test_a_unit_that_is_given_decides(largest: float, unit: wear_table.Unit, factor: float) -> None:
    assert micrometres(np.array([largest]), unit, "x").tolist() == [largest * factor]


@pytest.mark.parametrize("largest", [1.0, 1.53, 4.99])
def test_wear_that_could_be_either_is_refused(largest: float) -> None:
    with pytest.raises(ValueError, match="wear_unit=um or wear_unit=mm"):
        micrometres(np.array([0.1, largest]), "auto", "x")


@pytest.mark.parametrize("wear", [[0.0, 0.0], [5.0, 0.1], [np.nan, 120.0], [np.nan, np.nan]])
def test_plausible_micrometres_stay_as_they_are(wear: list[float], caplog: pytest.LogCaptureFixture) -> None:
    np.testing.assert_array_equal(micrometres(np.array(wear), "auto", "x"), wear)
    assert caplog.text == ""


def test_two_values_for_one_cut_contradict_and_equal_or_unknown_ones_do_not() -> None:
    tools, cuts = np.array(["a", "a", "b", "b", "a", "a"]), np.array([1, 1, 1, 1, 2, 2])
    wear = np.array([10.0, 10.0, 20.0, 30.0, np.nan, np.nan])
    (found,) = wear_table.contradictions(tools, cuts, wear)
    assert found == "cut 1 of 'b' stands twice, with a wear of 20 and 30"
