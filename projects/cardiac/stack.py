"""Slices of a sequence, from files of several shapes.

A sequence is one file, or a folder with a file a slice:

============================  =================================  =====================================
sequence                      ``CASE.nii.gz``                    ``CASE/slice_XX.nii.gz``
============================  =================================  =====================================
cine                          (H, W, D, T); one slice as beside  (T, H, W), (H, W, T) or (H, W, 1, T)
late enhancement              (H, W, D) or (H, W)                (H, W), (1, H, W) or (H, W, 1)
============================  =================================  =====================================
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mltrain.errors import DataError
from projects.cardiac.grid import Grid
from projects.cardiac.raw import checked_pictures, read_array

_UNEVEN = 0.1  # of the distance between slices


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of a sequence.

    Attributes:
        pictures: (D, T, H, W) float32; late enhancement has one frame.
        grid: grid of the volume (H, W, D).
        place: file or folder of the sequence, for errors.
    """

    pictures: NDArray[np.float32]
    grid: Grid
    place: Path


@dataclass(frozen=True, eq=False)
class _Slice:
    """Frames (T, H, W) of one slice; its grid is unknown where the first axis of the file is time."""

    frames: NDArray[np.float32]
    grid: Grid
    file: Path


def place_of(folder: Path, name: str) -> Path | None:
    """Return the file or folder of a case's sequence; ``None`` without either."""
    found = (folder / name, folder / f"{name}.nii.gz", folder / f"{name}.nii")
    return next((place for place in found if place.exists()), None)


def read_stack(place: Path, mask: Grid, *, frames: bool) -> Stack:
    """Read a sequence.

    Args:
        place: the file or folder.
        mask: grid of its label, which identifies the axis of time, and locates slices whose files have no affine.
        frames: whether the sequence has an axis of time.

    Raises:
        DataError: a file is unreadable, of another shape, or holds NaN; or the slices do not fit together.
    """
    return _of_folder(place, mask, frames) if place.is_dir() else _of_file(place, mask, frames)


def _of_file(file: Path, mask: Grid, frames: bool) -> Stack:
    array, image = read_array(file)
    axes = array.ndim
    if frames and axes == 3 and mask.shape[2] == 1:
        if _time_is_first(array.shape, mask.shape[:2], file):
            return Stack(
                checked_pictures(array, file, time=0)[None], _of_slices([Grid.unplaced(image, file)], mask, file), file
            )
        array = array[:, :, None]
    elif not frames and axes == 2:
        array = array[..., None]
    elif axes != (4 if frames else 3):
        expected = "(H,W,D,T), or (H,W,T) of a single slice" if frames else "(H,W,D)"
        raise DataError(f"{file} has the shape {array.shape}; {expected} was expected.")
    pictures = checked_pictures(array, file, time=3 if frames else None)
    pictures = pictures.transpose(2, 3, 0, 1) if frames else pictures.transpose(2, 0, 1)[:, None]
    # A single slice has time as its third axis, or no third axis at all, so its file does not say how thick it is.
    one_slice = axes < array.ndim
    grid = _of_slices([Grid.of(image, file, axes=2)], mask, file) if one_slice else Grid.of(image, file)
    return Stack(np.ascontiguousarray(pictures), grid, file)


def _of_folder(folder: Path, mask: Grid, frames: bool) -> Stack:
    files = sorted((*folder.glob("slice_*.nii.gz"), *folder.glob("slice_*.nii")))
    if not files:
        raise DataError(f"{folder}: 0 slices, and a mask of {mask.shape[2]}. Expected slice_00.nii.gz and so on.")
    read = [_cine_slice(file, mask) if frames else _late_slice(file, mask) for file in files]
    for which, name in ((0, "frames"), (1, "rows"), (2, "columns")):
        counts = sorted({one.frames.shape[which] for one in read})
        if len(counts) > 1:
            raise DataError(f"{folder.name}: its slices have {counts} {name}; the same number was expected in all.")
    own = {one.grid.zooms[:2] for one in read}
    if any(not np.allclose(zooms, read[0].grid.zooms[:2], rtol=0.01) for zooms in own):
        raise DataError(f"{folder}: its slices have pixels of {sorted(own)} mm; the same size was expected in all.")
    if mask.known and all(one.grid.known for one in read):
        order, grid = _in_order([one.grid for one in read], mask, folder)
        read = [read[index] for index in order]
    elif len(read) != mask.shape[2]:
        raise DataError(f"{folder}: {len(read)} slices, and a mask of {mask.shape[2]}.")
    else:
        shape = (*read[0].grid.shape[:2], len(read))
        grid = replace(mask, shape=shape, zooms=(*read[0].grid.zooms[:2], mask.zooms[2]), known=False)
    return Stack(np.stack([one.frames for one in read]), grid, folder)


def _cine_slice(file: Path, mask: Grid) -> _Slice:
    array, image = read_array(file)
    if array.ndim == 4 and array.shape[2] == 1:
        frames = np.moveaxis(checked_pictures(array[:, :, 0], file, time=2), -1, 0)
        return _Slice(frames, Grid.of(image, file, axes=2), file)
    if array.ndim != 3:
        raise DataError(f"{file} has the shape {array.shape}; (T,H,W), (H,W,T) or (H,W,1,T) was expected.")
    if _time_is_first(array.shape, mask.shape[:2], file):
        return _Slice(checked_pictures(array, file, time=0), Grid.unplaced(image, file), file)
    frames = np.moveaxis(checked_pictures(array, file, time=2), -1, 0)
    return _Slice(frames, Grid.of(image, file, axes=2), file)


def _late_slice(file: Path, mask: Grid) -> _Slice:
    array, image = read_array(file)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1 and array.shape[0] != 1):
        picture = checked_pictures(array.reshape(array.shape[:2]), file)
        return _Slice(picture[None], Grid.of(image, file, axes=2), file)
    if array.ndim != 3 or array.shape[0] != 1:
        raise DataError(f"{file} has the shape {array.shape}; (H,W), (1,H,W) or (H,W,1) was expected.")
    return _Slice(checked_pictures(array, file), Grid.unplaced(image, file), file)


def _time_is_first(shape: Sequence[int], mask: Sequence[int], file: Path) -> bool:
    """Whether the axes are (T, H, W) rather than (H, W, T).

    The mask's rows and columns decide, else the shortest axis.
    """
    first, last = tuple(shape[1:]) == tuple(mask), tuple(shape[:2]) == tuple(mask)
    if first != last:
        return first
    if not first and shape[0] != shape[2]:
        return shape[0] < shape[2]
    raise DataError(f"{file} has the shape {tuple(shape)}, and any axis could be time. Try: save it as (H,W,1,T).")


def _in_order(grids: Sequence[Grid], mask: Grid, folder: Path) -> tuple[list[int], Grid]:
    """Return the slices' order in space, and the stack's grid."""
    normal = mask.affine[:3, 2] / np.linalg.norm(mask.affine[:3, 2])
    order = sorted(range(len(grids)), key=lambda index: float(grids[index].affine[:3, 3] @ normal))
    same_place = all(np.allclose(grid.affine[:3, 3], grids[0].affine[:3, 3], atol=1e-3) for grid in grids)
    if same_place:  # every slice has the affine of the whole volume, so their numbers order them
        order = list(range(len(grids)))
        if len(grids) != mask.shape[2]:
            raise DataError(f"{folder}: {len(grids)} slices, and a mask of {mask.shape[2]}.")
    return order, _of_slices([grids[index] for index in order], mask, folder)


def _of_slices(grids: Sequence[Grid], mask: Grid, place: Path) -> Grid:
    """Return a stack's grid from its slices' grids; slices of one place get the distance of the mask's."""
    first = grids[0]
    if not first.known:
        return replace(mask, shape=(*first.shape[:2], len(grids)), zooms=(*first.zooms[:2], mask.zooms[2]), known=False)
    origins = np.array([grid.affine[:3, 3] for grid in grids])
    step = (origins[-1] - origins[0]) / max(len(grids) - 1, 1)
    if np.linalg.norm(step) < 1e-3:
        step = mask.affine[:3, 2]
    else:
        expected = origins[0] + np.arange(len(grids))[:, None] * step
        if np.abs(origins - expected).max() > _UNEVEN * np.linalg.norm(step):
            raise DataError(f"{place}: its slices are not equally far apart, by their affines. Expected one distance.")
    if any(not np.allclose(grid.affine[:3, :2], first.affine[:3, :2], atol=1e-3) for grid in grids):
        raise DataError(
            f"{place}: its slices are turned against one another, by their affines. Expected parallel ones."
        )
    affine = first.affine.copy()
    affine[:3, 2] = step
    return first.moved((*first.shape[:2], len(grids)), affine)
