import numpy as np
import pytest

from projects.segmentation.labels import Content, Declaration, UnclearLabels
from projects.segmentation.values import COLOUR

RED = COLOUR + 0xFF0000


def labels(*values: int, foreground: str | None = None, void: str | None = None, classes: list[str] | None = None):
    return Declaration.of(foreground, void, classes).labels([Content("a.png", dict.fromkeys(values, 9))])


@pytest.mark.parametrize(
    "pair", [(0, 1), (0, 100), (0, 1000), (1, 2), (7, 9), (0, 65535), (0, RED), (255, RED)], ids=str
)
def test_of_two_values_the_second_is_foreground(pair: tuple[int, int]) -> None:
    found = labels(*pair)
    assert [found.index(value) for value in pair] == [0, 1]
    np.testing.assert_array_equal(found.indices(np.array([pair], np.int64)), [[0, 1]])


def test_of_two_colours_the_brighter_is_foreground() -> None:
    blue, yellow = COLOUR + 0x0000FF, COLOUR + 0xFFFF00
    assert labels(blue, yellow).index(yellow) == 1


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ({"foreground": "nonzero"}, [0, 1, 1, 1]),
        ({"foreground": "1,3"}, [0, 1, 0, 1]),
        ({"foreground": "2-3"}, [0, 0, 1, 1]),
        ({"foreground": "1", "void": "2"}, [0, 1, -1, 0]),
        ({"void": "1,2"}, [0, -1, -1, 1]),
        ({"foreground": "nonzero", "void": "3"}, [0, 1, 1, -1]),
        ({"classes": ["1", "2", "3"]}, [0, 1, 2, 3]),
        ({"classes": ["0", "1", "2", "3"]}, [0, 1, 2, 3]),
        ({"classes": ["b=3", "a=1-2"]}, [0, 2, 2, 1]),
        ({"classes": ["a", "b", "c"]}, [0, 1, 2, 3]),
        ({"classes": ["background", "a", "b", "c"]}, [0, 1, 2, 3]),
        ({"classes": ["background=1", "a=2", "b=3", "c=0"]}, [3, 0, 1, 2]),
        ({"classes": ["1", "3"], "void": "2"}, [0, 1, -1, 2]),
    ],
    ids=str,
)
def test_values_mean_what_is_declared(declared: dict[str, object], expected: list[int]) -> None:
    found = labels(0, 1, 2, 3, **declared)
    np.testing.assert_array_equal(found.indices(np.arange(4)[None]), [expected])
    assert [found.index(value) for value in range(4)] == expected
    assert found.counts(Content("a", dict.fromkeys(range(4), 9)))[expected[0]] >= 9


def test_names_of_classes_are_kept_in_their_order() -> None:
    assert labels(0, 1, 2, classes=["vessel=2", "liver=1"]).names == ("vessel", "liver")


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ({"foreground": "1", "classes": ["1"]}, "exclude one another"),
        ({"classes": ["1", "a=1"]}, "belongs to both"),
        ({"classes": ["a=1-4", "b=3"]}, "value 3 belongs to both a and b"),
        ({"classes": ["a=1", "a=2"]}, "names a twice"),
        ({"classes": ["a", "b=2"]}, "names alone"),
        ({"classes": ["background"]}, "background only"),
        ({"classes": ["1", "2"], "void": "2"}, "belongs to both"),
        ({"foreground": "white"}, "'white' is not a mask value"),
        ({"void": "9-3"}, "'9-3' is not a mask value"),
    ],
    ids=str,
)
def test_a_declaration_that_contradicts_itself_is_refused(declared: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        labels(0, 1, 2, 3, **declared)


def test_a_value_that_no_class_has_is_refused_and_named() -> None:
    with pytest.raises(UnclearLabels, match=r"does not name.*: 5 in 1 mask: a\.png"):
        labels(0, 1, 2, 5, classes=["1", "2"])


def test_many_values_are_listed_in_one_line() -> None:
    with pytest.raises(UnclearLabels, match=r"0, 1, 2, 3, 4, 5 … 183 \(184 values\) in 1 mask: a\.png"):
        labels(*range(184))


def test_large_and_many_values_are_mapped() -> None:
    found = labels(0, 5, 100_000, RED, classes=["small=5", "large=100000", "red=#ff0000"])
    np.testing.assert_array_equal(found.indices(np.array([[RED, 5], [0, 100_000]])), [[3, 1], [0, 2]])
