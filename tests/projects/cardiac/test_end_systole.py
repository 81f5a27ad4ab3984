import numpy as np
import pytest

from projects.cardiac.end_systole import end_systole
from projects.cardiac.phantom import Phantom


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_where_the_cavity_is_smallest(seed: int) -> None:
    case = Phantom(slices=1).case(seed, infarcted=False)
    cine = np.stack([piece.cine for piece in case.slices])
    wall = np.stack([piece.myocardium[0] for piece in case.slices])
    frame, by = end_systole(cine, wall)
    assert by == "area"
    assert abs(frame - case.end_systole) <= 1


def test_where_the_wall_encloses_nothing_it_is_where_the_wall_has_moved_most() -> None:
    case = Phantom(slices=1, frames=8).case(0, infarcted=False)
    piece = case.slices[0]
    half = piece.myocardium[0].copy()
    half[:, half.shape[1] // 2 :] = False
    frame, by = end_systole(piece.cine[None], half[None])
    assert by == "motion"
    assert abs(frame - case.end_systole) <= 1


def test_end_diastole_may_be_any_frame() -> None:
    case = Phantom(slices=1, frames=8).case(0, infarcted=False)
    piece = case.slices[0]
    frame, _ = end_systole(np.roll(piece.cine, 3, axis=0)[None], piece.myocardium[0][None], end_diastole=3)
    assert abs(frame - (case.end_systole + 3)) <= 1
