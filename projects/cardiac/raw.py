"""A patient as read from files, before preparation."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from mltrain.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class LateEnhancement:
    """A late-enhancement stack, each slice at a cine slice's position.

    Attributes:
        image: (L, H, W) float32.
        spacing: of rows and columns in mm.
        myocardium: (L, H, W) bool.
        infarct: (L, H, W) bool.
        slices: L indices of cine slices, rising. If ``None``, every cine slice has one.
    """

    image: NDArray[np.float32]
    spacing: tuple[float, float]
    myocardium: NDArray[np.bool_]
    infarct: NDArray[np.bool_]
    slices: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """The exact motion and infarct of a phantom.

    Attributes:
        displacement: (D, T, 2, H, W) float32 in pixels, backward, from end diastole.
        myocardium: (D, T, H, W) bool.
        infarct: (D, H, W) bool, in cine space at end diastole.
    """

    displacement: NDArray[np.float32]
    myocardium: NDArray[np.bool_]
    infarct: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class RawCase:
    """One patient.

    Attributes:
        name: name of the case, also of its results.
        cine: (D, T, H, W) float32.
        spacing: of rows and columns in mm.
        affine: (4, 4), affine of the input's volume (H, W, D), in which results are written.
        thickness: from slice to slice in mm.
        myocardium: (D, H, W) bool at end diastole.
        end_diastole: its frame, from 0.
        end_systole: its frame, where the files say so.
        end_systolic_myocardium: (D, H, W) bool, where it was drawn.
        cavity: (D, H, W) bool, of the left ventricle at end diastole, where it was drawn.
        end_systolic_cavity: the same at end systole.
        oriented: whether the files give the directions of the axes. If not, ``affine`` is a placeholder.
        septum: direction from the left to the right ventricle in radians, 0 along columns and π/2 along rows.
        infarcted: whether the patient is known to have had an infarct.
        late: late enhancement; ``None`` without it.
        truth: exact motion and infarct of a phantom; ``None`` for a patient.
    """

    name: str
    cine: NDArray[np.float32]
    spacing: tuple[float, float]
    affine: NDArray[np.float64]
    thickness: float
    myocardium: NDArray[np.bool_]
    end_diastole: int = 0
    end_systole: int | None = None
    end_systolic_myocardium: NDArray[np.bool_] | None = None
    cavity: NDArray[np.bool_] | None = None
    end_systolic_cavity: NDArray[np.bool_] | None = None
    oriented: bool = True
    septum: float | None = None
    infarcted: bool = False
    late: LateEnhancement | None = None
    truth: Truth | None = None


class Source(Protocol):
    """A folder of patients in some layout."""

    def names(self) -> Sequence[str]:
        """Return the names of all cases."""
        ...

    def case(self, name: str) -> RawCase:
        """Read one case.

        Raises:
            DataError: it is incomplete or inconsistent.
        """
        ...


def read_all(source: Source) -> Iterable[RawCase]:
    """Read every case of a source, one at a time.

    Raises:
        DataError: some cannot be used; raised after the last case, with the problems of all.
    """
    problems = []
    for name in source.names():
        try:
            case = source.case(name)
            _require_moving_pictures(case)
        except DataError as error:
            problems.append(str(error))
            continue
        yield case
    if problems:
        raise DataError(f"{len(problems)} of {len(source.names())} cases cannot be used:\n  " + "\n  ".join(problems))


def _require_moving_pictures(case: RawCase) -> None:
    """Refuse one-frame sequences, and frames of a single grey level.

    Raises:
        DataError: the sequence has one frame, or a frame with myocardium has a single grey level.
    """
    if case.cine.shape[1] < 2:
        raise DataError(
            f"{case.name}: its cine sequence has one frame. Expected two or more: a single one shows no motion."
        )
    walls = np.asarray(case.myocardium.any(axis=(1, 2)))
    blank = np.equal(case.cine.max(axis=(2, 3)), case.cine.min(axis=(2, 3))) & walls[:, None]
    if blank.any():
        where = "; ".join(
            f"slice {index}, {'every frame' if row.all() else 'frames ' + ', '.join(map(str, np.flatnonzero(row)))}"
            for index, row in enumerate(blank)
            if row.any()
        )
        raise DataError(
            f"{case.name}: cine pictures of a single grey level, counted from 0: {where}. Expected pictures of the heart. Try: "
            "export the sequence again, or remove these frames."
        )


def read_array(file: Path) -> tuple[NDArray[Any], Any]:
    """Read a NIfTI file as (array, header image); trailing axes of length one beyond the third are dropped.

    Raises:
        DataError: it is missing, unreadable, or holds no real numbers.
    """
    try:
        image = nib.load(file)
        array = np.asarray(image.dataobj)
    except FileNotFoundError:
        raise DataError(f"{file} is missing. Expected a NIfTI file.") from None
    except (OSError, ImageFileError, ValueError, EOFError) as error:
        raise DataError(f"{file} cannot be read as NIfTI: {error}") from None
    if array.dtype.kind not in "biuf":
        raise DataError(f"{file} holds values of the type {array.dtype}. Expected integers or floating-point numbers.")
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    return array, image


def read_volume(file: Path, shape: str) -> tuple[NDArray[Any], Any]:
    """Read a NIfTI file as (array, header image).

    Args:
        file: a NIfTI file, with or without compression.
        shape: names of the expected axes, such as ``T,H,W``.

    Raises:
        DataError: it is missing, unreadable, or has another number of axes.
    """
    array, image = read_array(file)
    if array.ndim == 2 and shape == "H,W,D":
        array = array[..., None]
    if array.ndim != len(shape.split(",")):
        raise DataError(f"{file} has the shape {array.shape}. Expected ({shape}).")
    return array, image


def checked_pictures(array: NDArray[Any], file: Path, time: int | None = None) -> NDArray[np.float32]:
    """Return grey levels as float32.

    Args:
        array: the values of a file.
        file: name of the file, for the error.
        time: the axis of the frames. If ``None``, there is a single frame.

    Raises:
        DataError: a frame holds NaN or infinity, which would make its slice and the loss NaN.
    """
    pictures = array.astype(np.float32)
    wrong = ~np.isfinite(pictures)
    if not wrong.any():
        return pictures
    count = f"{int(wrong.sum())} of {wrong.size} values NaN or infinite"
    if time is not None:
        others = tuple(axis for axis in range(wrong.ndim) if axis != time)
        frames = [str(frame) for frame in np.flatnonzero(wrong.any(axis=others))]
        count += f", in {'frame' if len(frames) == 1 else 'frames'} {', '.join(frames)} counted from 0"
    raise DataError(
        f"{file} has {count}. Expected finite grey levels. Try: export the file again, or replace these values."
    )


def write_volume(
    array: NDArray[Any],
    file: Path,
    affine: NDArray[np.float64],
    zooms: Sequence[float],
    adjust: Callable[[Any], None] = lambda header: None,
) -> None:
    """Write a NIfTI file with an affine and voxel sizes; ``adjust`` may set more in its header."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_zooms(tuple(zooms))
    image.header.set_xyzt_units("mm", "sec")
    adjust(image.header)
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, file)
