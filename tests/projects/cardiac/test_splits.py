from pathlib import Path

import pytest

from mltrain.errors import DataError
from projects.cardiac import splits
from projects.cardiac.splits import Split

CASES = {f"case_{number:02d}": number % 3 != 0 for number in range(24)}


def test_half_of_the_held_out_patients_have_an_infarct() -> None:
    split = splits.drawn(CASES, 1 / 3, seed=0)
    assert len(split.val) == 8
    assert sum(CASES[name] for name in split.val) == 4
    assert sorted(split.train + split.val) == sorted(CASES)


def test_the_seed_decides_who_is_held_out() -> None:
    assert splits.drawn(CASES, 1 / 3, seed=0) == splits.drawn(dict(reversed(CASES.items())), 1 / 3, seed=0)
    assert splits.drawn(CASES, 1 / 3, seed=0) != splits.drawn(CASES, 1 / 3, seed=1)


def test_cases_of_one_patient_stay_together() -> None:
    cases = {f"p{patient}_{state}": patient < 3 for patient in range(6) for state in ("rest", "stress")}
    split = splits.drawn(cases, 0.34, seed=0, patient=r"^(p\d)_")
    assert len(split.val) == 4
    assert {name[:2] for name in split.train}.isdisjoint(name[:2] for name in split.val)


@pytest.mark.parametrize("infarcted", [True, False])
def test_one_kind_alone_is_split_as_well(infarcted: bool) -> None:
    split = splits.drawn(dict.fromkeys("abcdef", infarcted), 0.33, seed=0)
    assert len(split.val) == 2
    assert len(split.train) == 4


def test_a_patient_may_be_named_by_the_whole_match_where_the_parentheses_take_no_part() -> None:
    cases = {"p1_rest": True, "p1_stress": True, "x2": False, "x3": False}
    split = splits.drawn(cases, 0.3, seed=0, patient=r"^(p\d)_|^x\d")
    assert sorted(split.train + split.val) == sorted(cases)
    assert ("p1_rest" in split.train) == ("p1_stress" in split.train)


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(DataError, match="1 patient"):
        splits.drawn({"a_1": True, "a_2": False}, 0.5, seed=0, patient="^a")


def test_an_expression_that_finds_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="does not match the case 'a'"):
        splits.drawn({"a": True, "b": False}, 0.5, seed=0, patient="x")


def test_a_table_is_read_as_written(tmp_path: Path) -> None:
    split = Split(("a", "b"), ("c",))
    splits.write(split, tmp_path / "splits.json")
    assert splits.read(tmp_path / "splits.json", "abcd") == split


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"train": ["a"], "val": ["a"]}', "Named twice: a"),
        ('{"train": ["a"], "val": ["z"]}', "not in the data: z"),
        ('{"train": ["a"], "val": []}', "val 0"),
        ('{"train": ["a"]}', "not a table of splits"),
        ("nonsense", "not a table of splits"),
    ],
)
def test_a_table_that_cannot_be_followed_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(DataError, match=complaint):
        splits.read(tmp_path / "splits.json", "abc")
