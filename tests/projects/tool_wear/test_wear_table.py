"""A wear table is read in its unit; ambiguity is refused."""

import logging
import re
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
    with pytest.raises(ValueError, match=r"appear twice: 2 \(lines 3 and 5\)"):
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
    (found,) = wear_table.contradictions(tools, cuts, wear, "wear")
    assert found == "cut 1 of 'b' appears twice, with the wear 20 and 30"


@pytest.mark.parametrize("header", ["Cut,Flute_1,FLUTE_2", "cut, flute_1 ,flute_2", "\ufeffcut,flute_1,flute_2"])
def test_a_header_in_other_letters_or_with_blanks_is_the_same(tmp_path: Path, header: str) -> None:
    file = table(tmp_path, "1,10,20", "2,40,50")
    file.write_text(file.read_text().replace("cut,flute_1,flute_2", header), encoding="utf-8")
    assert wear_table.read(file, [2])[2].tolist() == [40.0, 50.0]


def test_columns_that_are_no_flutes_are_no_wear(tmp_path: Path) -> None:
    file = tmp_path / "c1_wear.csv"
    file.write_text("cut,flute_1,flute_mean,flute_1_sd,comment\n1,10,1,0.2,new\n2,40,1,0.2,worn\n")
    assert wear_table.read(file, [2])[2].tolist() == [40.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it is empty. Expected the header cut,flute_1,"),
        ("cut;flute_1\n1;10,5\n", "separated by commas"),
        ("cut,flute_1,flute_1\n1,10,20\n", "the columns flute_1 appear twice"),
        ("cut,flute_1\n", "no row for the cuts 1"),
        ("cut,flute_1\n1,\n", "line 2 holds something that is not a number"),
    ],
)
def test_what_is_no_table_of_wear_is_refused_with_what_was_expected(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "c1_wear.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=expected):
        wear_table.read(file, [1])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (("1,30,0.03", "2,90,0.09"), "flute_2 looks like mm"),
        (("3,70,80", "1,30,30", "2,0.05,60"), "flute_1 goes from 30 to 0.05"),
        (("1,0.03,30", "2,60,70"), "flute_1 goes from 0.03 to 60"),
    ],
)
def test_two_units_in_one_table_are_refused_until_the_unit_is_given(
    tmp_path: Path, rows: tuple[str, ...], expected: str
) -> None:
    file = table(tmp_path, *rows)
    with pytest.raises(ValueError, match=expected):
        wear_table.read(file, [1, 2])
    assert wear_table.read(file, [1], "um")[1][0] == float(sorted(rows)[0].split(",")[1])


@pytest.mark.parametrize(
    "rows", [("1,0,0", "2,30,40"), ("1,0.5,20", "2,3,30"), ("1,0,0", "2,0,0"), ("1,60,60", "2,55,58")]
)
def test_slow_or_no_wear_is_one_unit(tmp_path: Path, rows: tuple[str, ...]) -> None:
    values = [float(cell) for cell in rows[1].split(",")[1:]]
    assert wear_table.read(table(tmp_path, *rows), [2])[2].tolist() == values


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([140.0, 90.0], r"rise, each once\. Try: \[90, 140\]"),
        ([0.09, 0.14], r"look like mm\. Try: \[90, 140\]"),
        ([-5.0, 90.0], "above 0 um"),
        ([float("nan"), 90.0], "above 0 um"),
    ],
)
def test_limits_that_cannot_be_meant_get_a_proposal(limits: list[float], expected: str) -> None:
    assert re.search(expected, wear_table.limits_problem(limits))
    assert wear_table.limits_problem([90.0, 140.0]) == wear_table.limits_problem([]) == ""
