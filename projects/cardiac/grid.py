"""Grids of voxels, located by affines, and resampling between them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, from_matvec, voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from mltrain.errors import DataError

log = logging.getLogger(__name__)

_SAME = 0.1  # of a voxel: corners that are closer are the same
_ALIKE = 0.01  # relative difference of voxel sizes that are the same
_LOST = 0.01  # share of a label that may lie outside of the picture
_TILTED = 20.0  # degrees between two stacks that are still slices of one view


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxels (H, W, D) in space.

    Attributes:
        shape: H, W and D.
        affine: (4, 4), voxel to mm, right-anterior-superior.
        zooms: voxel sizes in mm.
        known: whether the header locates the voxels. If not, the affine is a placeholder.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    zooms: tuple[float, float, float]
    known: bool

    @classmethod
    def of(cls, image: Any, file: object, axes: int = 3) -> "Grid":
        """Return the grid of a NIfTI image.

        Args:
            image: its axes begin with rows and columns.
            file: its name, for errors.
            axes: number of its axes in space; two for one slice of unknown thickness.

        Raises:
            DataError: a voxel has no size.
        """
        zooms = _sizes(image, slice(0, axes), file)
        affine = np.asarray(image.affine, float)
        height, width, depth = (*image.shape[:axes], 1)[:3]
        rows, columns, slices = (*zooms, 1.0)[:3]
        return cls((height, width, depth), affine, (rows, columns, slices), _is_located(image, affine, zooms))

    @classmethod
    def unplaced(cls, image: Any, file: object) -> "Grid":
        """Return the unlocated grid of a slice, (1, H, W) or (T, H, W).

        Its affine is for other axes and locates nothing.

        Raises:
            DataError: a pixel has no size.
        """
        rows, columns = _sizes(image, slice(1, 3), file)
        return cls((image.shape[1], image.shape[2], 1), np.eye(4), (rows, columns, 1.0), known=False)

    def moved(self, shape: Sequence[int], affine: NDArray[np.float64]) -> "Grid":
        """Return a grid of another shape and affine; the affine gives the voxel sizes."""
        height, width, depth = shape
        rows, columns, slices = (float(size) for size in voxel_sizes(affine))
        return Grid((height, width, depth), affine, (rows, columns, slices), self.known)

    def is_the_same_as(self, other: "Grid") -> bool:
        """Whether both have the same voxels (to a tenth of one)."""
        if self.shape != other.shape:
            return False
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.shape) - 1)
        seen = apply_affine(np.linalg.inv(other.affine) @ self.affine, corners)
        # Corners of a single slice do not show its normal; a step along each axis does.
        steps = np.linalg.inv(other.affine)[:3, :3] @ self.affine[:3, :3] - np.eye(3)
        return bool(np.abs(seen - corners).max() < _SAME and np.abs(steps).max() < 2 * _SAME)


def _sizes(image: Any, axes: slice, file: object) -> tuple[float, ...]:
    sizes = tuple(float(size) for size in image.header.get_zooms()[axes])
    if not all(np.isfinite(size) and size > 0 for size in sizes):
        raise DataError(f"{file} has voxels of {sizes} mm. Expected sizes above 0 in its header (pixdim).")
    return sizes


def _is_located(image: Any, affine: NDArray[np.float64], zooms: Sequence[float]) -> bool:
    """Whether a header has a meaningful affine: set, not the identity, and consistent with the voxel sizes."""
    if not (int(image.header["sform_code"]) or int(image.header["qform_code"])):
        return False
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9 or np.array_equal(affine, np.eye(4)):
        return False
    return bool(np.allclose(voxel_sizes(affine)[: len(zooms)], zooms, rtol=_ALIKE))


def on_grid(labels: NDArray[Any], given: Grid, wanted: Grid, file: object, picture: object) -> NDArray[Any]:
    """Return labels (H, W, D) on a picture's grid.

    Where the grids differ, each voxel gets the nearest label.

    Args:
        labels: the values of a label file.
        given: their grid.
        wanted: the picture's grid.
        file: name of the label file.
        picture: name of the picture's file or folder.

    Raises:
        DataError: the label lies outside of the picture; or a file has no affine, and shapes or sizes differ.
    """
    if not (given.known and wanted.known):
        return _as_it_is(labels, given, wanted, file, picture)
    if given.is_the_same_as(wanted):
        return labels
    marked = np.argwhere(labels != 0)
    at = apply_affine(np.linalg.inv(wanted.affine) @ given.affine, marked) if len(marked) else np.zeros((0, 3))
    outside = ((at < -0.5 - _SAME) | (at > np.array(wanted.shape) - 0.5 + _SAME)).any(1)
    if len(marked) and outside.mean() > _LOST:
        raise DataError(
            f"{outside.mean():.0%} of what {file} marks lies outside of {picture}, by their affines. Expected a label at "
            "the same place. Try: compare both in a viewer, and correct the wrong header."
        )
    # A margin, because a coordinate of -1e-15 already counts as outside.
    padded = nib.Nifti1Image(np.pad(labels.astype(np.float32), 1), given.affine @ from_matvec(np.eye(3), (-1, -1, -1)))
    placed = np.asarray(resample_from_to(padded, (wanted.shape, wanted.affine), order=0).dataobj)
    if len(marked) and not placed.any():
        raise DataError(
            f"Nothing of what {file} marks is left on the grid of {picture}. Expected labels at its slices."
        )
    log.info("%s lies on another grid than %s; its labels are resampled to that one.", file, picture)
    return placed


def _as_it_is(labels: NDArray[Any], given: Grid, wanted: Grid, file: object, picture: object) -> NDArray[Any]:
    if given.shape != wanted.shape:
        raise DataError(
            f"{file} has the shape {given.shape}, and {picture} {wanted.shape}. Expected the same shape, because one of "
            "them has no affine in its header."
        )
    if not np.allclose(given.zooms[:2], wanted.zooms[:2], rtol=_ALIKE):
        raise DataError(
            f"{picture} has pixels of {_in_mm(wanted)} mm and its mask of {_in_mm(given)} mm ({file}). Expected the same. "
            "Try, if the files of a layout have wrong sizes: file_pixel_mm=1.25"
        )
    return labels


def _in_mm(grid: Grid) -> str:
    return f"({round(grid.zooms[0], 4)}, {round(grid.zooms[1], 4)})"


def turned_like(
    volumes: Sequence[NDArray[Any]], given: Grid, wanted: Grid, name: str
) -> tuple[list[NDArray[Any]], Grid]:
    """Permute and flip volumes (H, W, D) to match another grid's axes.

    Raises:
        DataError: the slices of one cross those of the other, or they are rotated against each other.
    """
    between = np.linalg.inv(wanted.affine) @ given.affine
    orientation = io_orientation(between)
    if np.isnan(orientation).any() or int(orientation[2, 0]) != 2:
        raise DataError(
            f"{name}: the slices of late enhancement cross those of the cine stack. Expected the same view."
        )
    affine = given.affine @ inv_ornt_aff(orientation, given.shape)
    turned = [apply_orientation(volume, orientation) for volume in volumes]
    axes = [matrix[:3, :3] / voxel_sizes(matrix) for matrix in (wanted.affine, affine)]
    cosine = (np.trace(axes[0].T @ axes[1]) - 1) / 2
    if (angle := float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))) > _TILTED:
        raise DataError(
            f"{name}: late enhancement is turned by {angle:.0f} degrees against the cine stack. Expected at most {_TILTED:.0f}. "
            "Try: resample it first (nibabel.processing.resample_from_to)."
        )
    return turned, given.moved(turned[0].shape, affine)


def matched_slices(given: Grid, wanted: Grid) -> dict[int, int]:
    """Map slices of ``wanted`` to the nearest slice of ``given``.

    Those without one at most half a slice away are left out.
    """
    height, width, depth = given.shape
    centres = [((height - 1) / 2, (width - 1) / 2, index) for index in range(depth)]
    at = apply_affine(np.linalg.inv(wanted.affine) @ given.affine, np.array(centres))[:, 2]
    found: dict[int, int] = {}
    for index in np.argsort(np.abs(at - np.rint(at)), kind="stable"):  # the nearest first
        place = round(float(at[index]))
        if 0 <= place < wanted.shape[2]:
            found.setdefault(place, int(index))
    return dict(sorted(found.items()))
