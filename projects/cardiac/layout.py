"""The folder layout of cine and late-enhancement slices::

    images/cmr/CASE/slice_XX.nii.gz                   (T, H, W)
    images/lge/CASE/slice_XX.nii.gz                   (H, W) or (1, H, W)
    labels/cmr/cmr_Myo_mask/CASE.nii.gz               (H, W, D), at the first frame
    labels/lge_original/lge_Myo_labels/CASE.nii.gz    (H, W, D)
    labels/lge_original/lge_MI_labels/CASE.nii.gz     (H, W, D)
    truth/CASE/                                       only in phantoms

Slices count from base to apex, and the first frame is end diastole.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mltrain.errors import DataError
from projects.cardiac.phantom import Case
from projects.cardiac.raw import LateEnhancement, RawCase, Truth, read_volume, write_volume

CINE, LATE = Path("images/cmr"), Path("images/lge")
CINE_WALL = Path("labels/cmr/cmr_Myo_mask")
LATE_WALL, LATE_SCAR = Path("labels/lge_original/lge_Myo_labels"), Path("labels/lge_original/lge_MI_labels")

THICKNESS_MM = 8.0
"""From slice to slice of a phantom."""
_ALIKE = 0.01


@dataclass(frozen=True)
class Layout:
    """Patients in the layout above.

    Args:
        root: the folder that holds ``images`` and ``labels``.
        pixel_mm: size of a pixel where the files do not say it, or say it wrongly.
    """

    root: Path
    pixel_mm: float | None = None

    def names(self) -> tuple[str, ...]:
        """Return the names of the folders under ``images/cmr``."""
        return self._names

    @cached_property
    def _names(self) -> tuple[str, ...]:
        folder = self.root / CINE
        if not folder.is_dir():
            raise DataError(f"{folder} is not there; a folder for each case was expected in it.")
        names = tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))
        if not names:
            raise DataError(f"{folder} holds no folder; one for each case was expected.")
        return names

    def case(self, name: str) -> RawCase:
        """Read one case, with late enhancement where there is any.

        Raises:
            DataError: a file is missing or unreadable, or shapes or pixel sizes differ.
        """
        wall, image = read_volume(self.root / CINE_WALL / f"{name}.nii.gz", "H,W,D")
        zooms = tuple(float(size) for size in image.header.get_zooms())
        slices = self._slices(CINE / name, wall, "T,H,W", zooms[:2])
        frames = {array.shape[0] for array in slices}
        if len(frames) > 1:
            raise DataError(f"{name}: its slices have {sorted(frames)} frames; the same number was expected in all.")
        if not wall.any():
            raise DataError(f"{name}: its mask of the myocardium is empty.")
        late = self._late(name) if (self.root / LATE / name).is_dir() else None
        if late is not None and len(late.image) != len(slices):
            raise DataError(f"{name}: {len(slices)} cine slices and {len(late.image)} of late enhancement.")
        return RawCase(
            name=name,
            cine=np.stack(slices),
            spacing=self._spacing(zooms),
            affine=np.asarray(image.affine, float),
            thickness=zooms[2],
            myocardium=_by_slice(wall),
            septum=self._heart(name).get("septum"),
            infarcted=late is not None and bool(late.infarct.any()),
            late=late,
            truth=self._truth(name, len(slices)),
        )

    def _late(self, name: str) -> LateEnhancement:
        wall, image = read_volume(self.root / LATE_WALL / f"{name}.nii.gz", "H,W,D")
        scar, _ = read_volume(self.root / LATE_SCAR / f"{name}.nii.gz", "H,W,D")
        if wall.shape != scar.shape:
            raise DataError(f"{name}: the late-enhancement labels have shapes {wall.shape} and {scar.shape}.")
        zooms = tuple(float(size) for size in image.header.get_zooms())
        slices = self._slices(LATE / name, wall, "1,H,W", zooms[:2])
        return LateEnhancement(
            image=np.stack([array[0] for array in slices]),
            spacing=self._spacing(zooms),
            myocardium=_by_slice(wall),
            infarct=_by_slice(scar),
        )

    def _slices(
        self, folder: Path, mask: NDArray[Any], shape: str, pixel: tuple[float, ...]
    ) -> list[NDArray[np.float32]]:
        """Read the slices of a case and check them against its mask (H, W, D)."""
        files = sorted((self.root / folder).glob("slice_*.nii.gz"))
        if len(files) != mask.shape[2]:
            raise DataError(f"{folder}: {len(files)} slices, and a mask of {mask.shape[2]}.")
        arrays = []
        for file in files:
            array, image = _slice(file, shape)
            if array.shape[1:] != mask.shape[:2]:
                raise DataError(f"{file}: pictures of {array.shape[1:]} and a mask of {mask.shape[:2]}.")
            own = tuple(float(size) for size in image.header.get_zooms())[-2:]
            if self.pixel_mm is None and not np.allclose(own, pixel, rtol=_ALIKE):
                raise DataError(
                    f"{file} has pixels of {own} mm and its mask of {pixel} mm. If one of them is right, "
                    "say which: pixel_mm=1.25"
                )
            arrays.append(array.astype(np.float32))
        return arrays

    def _spacing(self, zooms: tuple[float, ...]) -> tuple[float, float]:
        return (zooms[0], zooms[1]) if self.pixel_mm is None else (self.pixel_mm, self.pixel_mm)

    def _heart(self, name: str) -> dict[str, Any]:
        file = self.root / "truth" / name / "heart.json"
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}

    def _truth(self, name: str, depth: int) -> Truth | None:
        folder = self.root / "truth" / name
        if not folder.is_dir():
            return None
        fields = [read_volume(folder / f"slice_{i:02d}_displacement.nii.gz", "T,2,H,W")[0] for i in range(depth)]
        walls = [read_volume(folder / f"slice_{i:02d}_myocardium.nii.gz", "T,H,W")[0] for i in range(depth)]
        scar, _ = read_volume(folder / "infarct.nii.gz", "H,W,D")
        return Truth(
            displacement=np.stack(fields).astype(np.float32),
            myocardium=np.stack(walls).astype(bool),
            infarct=_by_slice(scar),
        )


def write_case(case: Case, root: Path, name: str, pixel_mm: float) -> None:
    """Write a phantom patient into the layout, truth included."""
    affine = np.diag([pixel_mm, pixel_mm, THICKNESS_MM, 1.0])
    in_time = np.diag([1.0, pixel_mm, pixel_mm, 1.0])
    volume, picture = (pixel_mm, pixel_mm, THICKNESS_MM), (1.0, pixel_mm, pixel_mm)
    truth = root / "truth" / name
    for number, piece in enumerate(case.slices):
        write_volume(piece.cine, root / CINE / name / f"slice_{number:02d}.nii.gz", in_time, picture)
        write_volume(piece.lge[None], root / LATE / name / f"slice_{number:02d}.nii.gz", in_time, picture)
        field = truth / f"slice_{number:02d}_displacement.nii.gz"
        write_volume(piece.displacement, field, np.eye(4), (1.0, 1.0, pixel_mm, pixel_mm))
        walls = truth / f"slice_{number:02d}_myocardium.nii.gz"
        write_volume(piece.myocardium.astype(np.uint8), walls, in_time, picture)
    for masks, file in (
        ([piece.myocardium[0] for piece in case.slices], root / CINE_WALL / f"{name}.nii.gz"),
        ([piece.lge_myocardium for piece in case.slices], root / LATE_WALL / f"{name}.nii.gz"),
        ([piece.lge_infarct for piece in case.slices], root / LATE_SCAR / f"{name}.nii.gz"),
        ([piece.infarct for piece in case.slices], truth / "infarct.nii.gz"),
    ):
        write_volume(np.stack(masks, axis=-1).astype(np.uint8), file, affine, volume)
    heart = {"end_systole": case.end_systole, "septum": case.septum}
    (truth / "heart.json").write_text(json.dumps(heart) + "\n", encoding="utf-8")


def _slice(file: Path, shape: str) -> tuple[NDArray[Any], Any]:
    if shape == "T,H,W":
        return read_volume(file, shape)
    try:
        array, image = read_volume(file, "H,W")
        return array[None], image
    except DataError:
        array, image = read_volume(file, shape)
    if array.shape[0] != 1:
        raise DataError(f"{file} has the shape {array.shape}; (H,W) or (1,H,W) was expected.")
    return array, image


def _by_slice(volume: NDArray[Any]) -> NDArray[np.bool_]:
    return np.moveaxis(volume, -1, 0) > 0
