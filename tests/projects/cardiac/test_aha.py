import numpy as np
import pytest

from projects.cardiac import aha


def ring(depth: int) -> np.ndarray:
    rows, columns = np.indices((61, 61)) - 30
    radius = np.hypot(rows, columns)
    return np.repeat(((radius >= 12) & (radius <= 20))[None], depth, axis=0)


UP, DOWN, LEFT, RIGHT = (14, 30), (46, 30), (30, 14), (30, 46)


def test_three_slices_have_all_sixteen_segments() -> None:
    numbers = aha.segments(ring(3), np.pi)
    assert [sorted(set(np.unique(piece)) - {0}) for piece in numbers] == [
        list(range(1, 7)),
        list(range(7, 13)),
        list(range(13, 17)),
    ]
    assert not numbers[~ring(3)].any()


def test_with_the_septum_on_the_left_the_anterior_wall_is_up() -> None:
    base, _, apex = aha.segments(ring(3), np.pi)
    assert (base[UP], base[DOWN]) == (1, 4)
    assert base[28, 14] == 2  # anteroseptal, above the middle of the septum
    assert base[32, 14] == 3  # inferoseptal, below it
    assert base[28, 46] == 6  # anterolateral
    assert base[32, 46] == 5  # inferolateral
    assert (apex[UP], apex[LEFT], apex[DOWN], apex[RIGHT]) == (13, 14, 15, 16)


def test_segments_turn_with_the_septum() -> None:
    straight, turned = (aha.segments(ring(1), septum)[0] for septum in (np.pi, np.pi / 2))
    assert np.mean(np.rot90(straight) == turned) > 0.99


@pytest.mark.parametrize(
    ("depth", "expected"), [(1, (1,)), (2, (0, 2)), (3, (0, 1, 2)), (6, (0, 0, 1, 1, 2, 2)), (4, (0, 1, 1, 2))]
)
def test_slices_are_shared_among_thirds(depth: int, expected: tuple[int, ...]) -> None:
    assert aha.levels(depth) == expected


def test_a_share_is_that_of_the_segment() -> None:
    numbers = aha.segments(ring(1), np.pi)
    shares = aha.shares(numbers, (numbers == 7) | (numbers == 9))
    assert {number for number, share in shares.items() if share == 1} == {7, 9}
    assert set(shares) == set(range(7, 13))
