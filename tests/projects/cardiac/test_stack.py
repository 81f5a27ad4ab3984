from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mltrain.errors import DataError
from projects.cardiac.grid import Grid
from projects.cardiac.stack import read_stack

AFFINE = np.array([[1.2, 0.3, -2.0, 5.0], [-0.4, 1.1, 6.0, -7.0], [0.1, -0.5, 5.0, 20.0], [0, 0, 0, 1.0]])
CINE = np.random.default_rng(0).random((3, 5, 8, 9)).astype(np.float32)  # (D, T, H, W)


def save(array: np.ndarray, file: Path, affine: np.ndarray | None = AFFINE) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), file)
    return file


def mask(depth: int = 3) -> Grid:
    return Grid.of(nib.Nifti1Image(np.zeros((8, 9, depth), np.uint8), AFFINE), "mask")


def at_slice(index: int) -> np.ndarray:
    affine = AFFINE.copy()
    affine[:3, 3] += index * AFFINE[:3, 2]
    return affine


def test_a_whole_sequence_in_one_file(tmp_path: Path) -> None:
    stack = read_stack(save(CINE.transpose(2, 3, 0, 1), tmp_path / "case.nii.gz"), mask(), frames=True)
    assert np.array_equal(stack.pictures, CINE)
    assert stack.grid.is_the_same_as(mask())
    late = read_stack(save(CINE[:, 0].transpose(1, 2, 0), tmp_path / "late.nii.gz"), mask(), frames=False)
    assert np.array_equal(late.pictures, CINE[:, :1])


@pytest.mark.parametrize(
    ("axes", "new"), [((1, 2, 0), ()), ((1, 2, 0), (2,)), ((0, 1, 2), ())], ids=["H,W,T", "H,W,1,T", "T,H,W"]
)
@pytest.mark.parametrize("placed", [True, False])
def test_a_file_a_slice(tmp_path: Path, axes: tuple[int, ...], new: tuple[int, ...], placed: bool) -> None:
    """Each file has the slice's affine or the volume's."""
    for index, frames in enumerate(CINE):
        array = np.expand_dims(frames.transpose(axes), new)
        save(array, tmp_path / "case" / f"slice_{index:02d}.nii.gz", at_slice(index) if placed else AFFINE)
    if axes == (0, 1, 2):  # such an affine is for other axes; its sizes are compared
        for file in (tmp_path / "case").iterdir():
            image = nib.load(file)
            image.header.set_zooms((1.0, *mask().zooms[:2]))
            nib.save(image, file)
    stack = read_stack(tmp_path / "case", mask(), frames=True)
    assert np.array_equal(stack.pictures, CINE)
    assert stack.grid.shape == (8, 9, 3)
    assert stack.grid.known == (axes != (0, 1, 2))
    assert np.allclose(stack.grid.affine, AFFINE)


def test_slices_come_in_the_order_of_their_places(tmp_path: Path) -> None:
    for number, index in enumerate((2, 0, 1)):
        save(CINE[index].transpose(1, 2, 0), tmp_path / "case" / f"slice_{number:02d}.nii.gz", at_slice(index))
    assert np.array_equal(read_stack(tmp_path / "case", mask(), frames=True).pictures, CINE)


def test_one_slice_without_an_axis_for_it(tmp_path: Path) -> None:
    for array in (CINE[0].transpose(1, 2, 0), CINE[0]):
        image = nib.Nifti1Image(array, AFFINE)
        image.header.set_zooms((1.0, *mask().zooms[:2]) if array is CINE[0] else (*mask().zooms[:2], 1.0))
        nib.save(image, tmp_path / "case.nii.gz")
        stack = read_stack(tmp_path / "case.nii.gz", mask(1), frames=True)
        assert np.array_equal(stack.pictures, CINE[:1])
        assert stack.grid.shape == (8, 9, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_grey_level_is_refused_with_file_and_frame(tmp_path: Path, value: float) -> None:
    broken = CINE.copy()
    broken[1, 3, 4, 4] = broken[1, 4, 0, 0] = value
    whole = save(broken.transpose(2, 3, 0, 1), tmp_path / "whole.nii.gz")
    with pytest.raises(DataError, match=r"whole\.nii\.gz has 2 of 1080 values NaN or infinite, in frames 3, 4 counted"):
        read_stack(whole, mask(), frames=True)
    for axes in ((1, 2, 0), (0, 1, 2)):
        for index, frames in enumerate(broken):
            save(frames.transpose(axes), tmp_path / "case" / f"slice_{index:02d}.nii.gz", AFFINE)
        with pytest.raises(DataError, match=r"slice_01\.nii\.gz has 2 of 360 values NaN or infinite, in frames 3, 4"):
            read_stack(tmp_path / "case", mask(), frames=True)
    late = save(broken[:, 3].transpose(1, 2, 0), tmp_path / "late.nii.gz")
    with pytest.raises(DataError, match=r"late\.nii\.gz has 1 of 216 values NaN or infinite\. Expected"):
        read_stack(late, mask(), frames=False)


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ((8, 9, 3), r"shape \(8, 9, 3\); \(H,W,D,T\)"),
        ((8, 9), r"shape \(8, 9\); \(H,W,D,T\)"),
        ((2, 3, 4, 5, 6), r"shape \(2, 3, 4, 5, 6\); \(H,W,D,T\)"),
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, shape: tuple[int, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        read_stack(save(np.zeros(shape, np.float32), tmp_path / "case.nii.gz"), mask(), frames=True)


def test_a_shape_in_which_any_axis_could_be_time_is_refused(tmp_path: Path) -> None:
    cube = Grid.of(nib.Nifti1Image(np.zeros((8, 8, 1), np.uint8), AFFINE), "mask")
    save(np.zeros((8, 8, 8), np.float32), tmp_path / "case" / "slice_00.nii.gz")
    with pytest.raises(DataError, match=r"any axis could be time\. Try: save it as \(H,W,1,T\)"):
        read_stack(tmp_path / "case", cube, frames=True)


def test_slices_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    for name, places, problem in (("gap", (0, 1, 3), "not equally far apart"), ("few", (0, 1), "")):
        for number, index in enumerate(places):
            save(CINE[number].transpose(1, 2, 0), tmp_path / name / f"slice_{number:02d}.nii.gz", at_slice(index))
        if problem:
            with pytest.raises(DataError, match=problem):
                read_stack(tmp_path / name, mask(), frames=True)
    assert read_stack(tmp_path / "few", mask(), frames=True).grid.shape == (8, 9, 2)
    save(CINE[0, :4].transpose(1, 2, 0), tmp_path / "few" / "slice_02.nii.gz", at_slice(2))
    with pytest.raises(DataError, match=r"few: its slices have \[4, 5\] frames"):
        read_stack(tmp_path / "few", mask(), frames=True)
    colours = np.zeros((8, 9, 3), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DataError, match="values of the type"):
        read_stack(save(colours, tmp_path / "colours.nii.gz"), mask(), frames=False)
