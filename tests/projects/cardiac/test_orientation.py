"""One ventricle, stored in every order and direction of axes: its segments stay where they are in space."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from projects.cardiac import orientation
from projects.cardiac.prepared import Cohort, PreparedCase

SIZE = 48
LONG_AXIS = np.array([-1.0, 1.0, -1.0]) / np.sqrt(3)  # base to apex: left, forward, down
SEPTUM = np.array([1.0, 1.0, 0.0]) / np.sqrt(2)  # right and forward
ANTERIOR = np.array([-1.0, 1.0, 2.0]) / np.sqrt(6)  # across both, and up


def short_axis() -> np.ndarray:
    """Rows from the anterior wall, columns from the septum. Slices run from base to apex: as on a screen."""
    affine = np.eye(4)
    affine[:3, :3] = np.stack([-ANTERIOR * 1.5, -SEPTUM * 1.5, LONG_AXIS * 8], axis=1)
    affine[:3, 3] = (20, -30, 40)
    return affine


def ventricle() -> np.ndarray:
    """A wall (H, W, D) that gets smaller towards the apex."""
    rows, columns = np.indices((SIZE, SIZE)) - (SIZE - 1) / 2
    radius = np.hypot(rows, columns)
    return np.stack([(radius >= inner) & (radius <= inner + 6) for inner in (12, 11, 7)], axis=-1)


def stored() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The wall in both in-plane orders and all axis directions."""
    wall = ventricle()
    for swapped, *flips in itertools.product((False, True), *[(1, -1)] * 3):
        axes = (1, 0, 2) if swapped else (0, 1, 2)
        codes = np.array([[axes[axis], flips[axis]] for axis in range(3)], float)
        image = nib.Nifti1Image(wall.astype(np.uint8), short_axis()).as_reoriented(codes)
        yield np.asarray(image.dataobj).astype(bool), image.affine


def case(wall: np.ndarray, affine: np.ndarray, like: PreparedCase, septum: float | None = None) -> PreparedCase:
    usual = orientation.usual_direction(affine) if septum is None else septum
    assert usual is not None
    import torch

    masks = torch.from_numpy(np.ascontiguousarray(np.moveaxis(wall, -1, 0)))
    return replace(like, myocardium=masks, affine=affine, septum=usual, optional={}, oriented=True)


def by_place(one: PreparedCase) -> dict[tuple[float, ...], int]:
    """Return each wall voxel's segment by its position in mm."""
    numbers = np.moveaxis(one.segments(), 0, -1)
    at = nib.affines.apply_affine(one.affine, np.argwhere(numbers))
    return {tuple(np.round(place, 2)): int(number) for place, number in zip(at, numbers[numbers > 0], strict=True)}


def test_segments_stay_where_they_are_in_space_however_the_array_is_stored(cohort: Cohort) -> None:
    like = cohort.train[0]
    found = [by_place(case(wall, affine, like)) for wall, affine in stored()]
    assert len(found) == 16
    assert set(found[0].values()) == set(range(1, 17))
    for other in found[1:]:
        assert other.keys() == found[0].keys()
        # A voxel on the very border of two segments may fall to either.
        assert np.mean([other[place] == number for place, number in found[0].items()]) > 0.995


def test_the_anterior_wall_is_up_and_in_front_and_the_septum_on_the_right(cohort: Cohort) -> None:
    for wall, affine in stored():
        place = by_place(case(wall, affine, cohort.train[0]))
        means = {
            number: np.mean([at for at, found in place.items() if found == number], axis=0) for number in range(1, 17)
        }
        middle = np.mean(list(means.values()), axis=0)
        for anterior, inferior in ((1, 4), (7, 10), (13, 15)):
            assert (means[anterior] - means[inferior]) @ ANTERIOR > 10
        for septal, lateral in ((2, 5), (3, 6), (8, 11), (9, 12), (14, 16)):
            assert (means[septal] - means[lateral]) @ SEPTUM > 10
        assert (means[1] - middle) @ LONG_AXIS < 0 < (means[13] - middle) @ LONG_AXIS


def test_a_marked_right_ventricle_and_axes_along_the_scanner_do_as_well(cohort: Cohort) -> None:
    """Affines without obliqueness still tell a picture from its transpose."""
    like, wall = cohort.train[0], ventricle()
    straight = case(wall, np.diag([1.5, 1.5, 8.0, 1.0]), like, septum=np.pi)
    swapped = np.diag([1.5, 1.5, 8.0, 1.0])[:, [1, 0, 2, 3]]
    transposed = case(wall.transpose(1, 0, 2), swapped, like, septum=-np.pi / 2)  # the septum is above now
    assert straight.segments()[0][6, 24] == 1  # up
    assert by_place(straight) == by_place(transposed)
    upside_down = np.diag([1.5, 1.5, -8.0, 1.0])
    upside_down[2, 3] = 16
    assert by_place(case(wall[:, :, ::-1], upside_down, like, septum=np.pi)) == by_place(straight)


def test_without_an_affine_the_picture_is_taken_as_on_a_screen(cohort: Cohort) -> None:
    mirrored = np.diag([-1.5, 1.5, 8.0, 1.0])  # what nibabel makes up for a header without any
    silent = replace(case(ventricle(), mirrored, cohort.train[0], septum=np.pi), oriented=False)
    assert silent.segments()[0][6, 24] == 1


def test_where_the_right_ventricle_usually_is() -> None:
    assert orientation.usual_direction(short_axis()) == pytest.approx(np.pi)
    assert orientation.usual_direction(np.diag([1.5, 1.5, 8.0, 1.0])) is None  # no short-axis slices


def test_the_direction_of_a_marked_right_ventricle() -> None:
    wall, right = np.zeros((1, 9, 9), bool), np.zeros((1, 9, 9), bool)
    wall[0, 4, 4] = right[0, 1, 4] = True
    assert orientation.direction(wall, right) == pytest.approx(-np.pi / 2)
    assert orientation.direction(wall, np.zeros_like(wall)) is None
