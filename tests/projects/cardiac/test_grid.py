import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mltrain.errors import DataError
from projects.cardiac.grid import Grid, matched_slices, on_grid, turned_like

AFFINE = np.array([[1.2, 0.3, -2.0, 5.0], [-0.4, 1.1, 6.0, -7.0], [0.1, -0.5, 5.0, 20.0], [0, 0, 0, 1.0]])


def grid(array: np.ndarray, affine: np.ndarray) -> Grid:
    return Grid.of(nib.Nifti1Image(array.astype(np.float32), affine), "a file")


def label(depth: int = 4) -> np.ndarray:
    """Three values in a volume that every turn changes."""
    values = np.zeros((10, 12, depth))
    values[2:5, 3:10, 0] = 1
    values[6:8, 1:4, -1] = 2
    values[0, 0, 0] = values[9, 11, -1] = 3
    return values


def shifted(affine: np.ndarray, voxels: tuple[float, float, float]) -> np.ndarray:
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ voxels
    return moved


@pytest.mark.parametrize("depth", [1, 4])
def test_labels_in_every_order_and_direction_of_axes_come_to_the_same_voxels(depth: int) -> None:
    values = label(depth)
    wanted = grid(values, AFFINE)
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            codes = np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)], float)
            other = nib.Nifti1Image(values.astype(np.float32), AFFINE).as_reoriented(codes)
            placed = on_grid(np.asarray(other.dataobj), Grid.of(other, "label"), wanted, "label", "picture")
            assert np.array_equal(placed, values), (order, flips)


def test_a_larger_label_and_a_finer_one_are_resampled_to_the_picture() -> None:
    values = label()
    larger = np.pad(values, ((2, 3), (1, 1), (0, 0)))
    placed = on_grid(larger, grid(larger, shifted(AFFINE, (-2, -1, 0))), grid(values, AFFINE), "label", "picture")
    assert np.array_equal(placed, values)
    finer = values.repeat(2, 0).repeat(2, 1)
    halved = shifted(AFFINE @ np.diag([0.5, 0.5, 1, 1]), (-0.5, -0.5, 0))
    assert np.array_equal(on_grid(finer, grid(finer, halved), grid(values, AFFINE), "label", "picture"), values)


def test_rounding_in_a_header_is_no_other_grid() -> None:
    values = label()
    placed = on_grid(values, grid(values, AFFINE + 1e-4), grid(values, AFFINE), "label", "picture")
    assert placed is values


def test_a_label_of_another_place_is_refused() -> None:
    values = label()
    for far in ((30, 0, 0), (0, 0, 2)):
        with pytest.raises(DataError, match=r"of what label\.nii marks lies outside of cine\.nii"):
            on_grid(values, grid(values, shifted(AFFINE, far)), grid(values, AFFINE), "label.nii", "cine.nii")


def silent(array: np.ndarray) -> Grid:
    """The grid of a header without an affine."""
    image = nib.Nifti1Image(array.astype(np.float32), None)
    image.header.set_zooms((1.5, 1.5, 8.0))
    return Grid.of(nib.Nifti1Image.from_bytes(image.to_bytes()), "a file")


def test_where_a_header_says_no_place_shapes_and_sizes_have_to_do() -> None:
    values = label()
    assert not silent(values).known
    assert on_grid(values, silent(values), silent(values), "label", "picture") is values
    with pytest.raises(DataError, match=r"has the shape \(12, 10, 4\)"):
        on_grid(values.transpose(1, 0, 2), silent(values.transpose(1, 0, 2)), silent(values), "label", "picture")
    with pytest.raises(DataError, match="file_pixel_mm"):
        on_grid(values, silent(values), grid(values, AFFINE), "label", "picture")


def test_an_affine_that_nobody_meant_says_no_place() -> None:
    assert not grid(label(), np.eye(4)).known
    assert grid(label(), AFFINE).known


def test_an_affine_that_contradicts_the_voxel_sizes_says_no_place() -> None:
    image = nib.Nifti1Image(np.zeros((4, 4, 2), np.float32), np.diag([1.0, 1.0, 8.0, 1.0]))
    image.header.set_zooms((1.5, 1.5, 8.0))
    assert not Grid.of(image, "a file").known


def test_a_voxel_without_a_size_is_refused(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 4, 2), np.float32), AFFINE)
    image.header["pixdim"][2] = 0
    with pytest.raises(DataError, match="Expected sizes above 0"):
        Grid.of(image, "a file")


@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_late_enhancement_is_turned_like_the_cine_stack(order: tuple[int, int], flips: tuple[int, int, int]) -> None:
    values = label()
    codes = np.array([[axis, flip] for axis, flip in zip((*order, 2), flips, strict=True)], float)
    other = nib.Nifti1Image(values.astype(np.float32), AFFINE).as_reoriented(codes)
    (turned,), found = turned_like([np.asarray(other.dataobj)], Grid.of(other, "late"), grid(values, AFFINE), "case")
    assert np.array_equal(turned, values)
    assert np.allclose(found.affine, AFFINE)


def test_another_view_is_refused() -> None:
    values = label()
    across = nib.Nifti1Image(values.astype(np.float32), np.diag([1.0, 1.0, 8.0, 1.0])).as_reoriented(
        np.array([[2, 1], [0, 1], [1, 1]], float)
    )
    straight = grid(values, np.diag([1.0, 1.0, 8.0, 1.0]))
    with pytest.raises(DataError, match="slices of late enhancement cross those"):
        turned_like([np.asarray(across.dataobj)], Grid.of(across, "late"), straight, "case")
    angle = np.deg2rad(30)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    with pytest.raises(DataError, match="turned by 30 degrees"):
        turned_like([values], grid(values, turn @ straight.affine), straight, "case")


@pytest.mark.parametrize(
    ("step", "start", "depth", "expected"),
    [
        (1.0, 0.0, 4, {0: 0, 1: 1, 2: 2, 3: 3}),
        (1.0, 1.0, 4, {1: 0, 2: 1, 3: 2}),  # one slice further
        (1.0, -2.3, 4, {0: 2, 1: 3}),
        (2.0, 0.0, 2, {0: 0, 2: 1}),  # every second one
        (0.5, 0.0, 7, {0: 0, 1: 2, 2: 4, 3: 6}),  # twice as many
        (1.0, 9.0, 4, {}),
    ],
)
def test_slices_are_matched_by_where_they_lie(step: float, start: float, depth: int, expected: dict[int, int]) -> None:
    cine = grid(label(), AFFINE)
    affine = shifted(AFFINE, (0, 0, start)) @ np.diag([1, 1, step, 1])
    assert matched_slices(grid(np.zeros((10, 12, depth)), affine), cine) == expected
