"""The folder layout of cine and late-enhancement slices::

    images/cmr/CASE/slice_XX.nii.gz                   (T, H, W), (H, W, T) or (H, W, 1, T); or images/cmr/CASE.nii.gz
    images/lge/CASE/slice_XX.nii.gz                   (H, W), (1, H, W) or (H, W, 1); or images/lge/CASE.nii.gz
    labels/cmr/cmr_Myo_mask/CASE.nii.gz               (H, W, D), at the first frame
    labels/lge_original/lge_Myo_labels/CASE.nii.gz    (H, W, D)
    labels/lge_original/lge_MI_labels/CASE.nii.gz     (H, W, D); not needed where the label above names the infarct
    truth/CASE/                                       only in phantoms

Slices count from base to apex, and the first frame is end diastole. :mod:`projects.cardiac.stack` reads pictures.
"""

import json
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mltrain.errors import DataError
from projects.cardiac.grid import Grid, matched_slices, turned_like
from projects.cardiac.label_file import LabelFile
from projects.cardiac.labels import LabelMap, Structure
from projects.cardiac.orientation import direction
from projects.cardiac.phantom import Case
from projects.cardiac.raw import LateEnhancement, RawCase, Truth, read_volume, write_volume
from projects.cardiac.stack import Stack, place_of, read_stack

log = logging.getLogger(__name__)

CINE, LATE = Path("images/cmr"), Path("images/lge")
CINE_WALL = Path("labels/cmr/cmr_Myo_mask")
LATE_WALL, LATE_SCAR = Path("labels/lge_original/lge_Myo_labels"), Path("labels/lge_original/lge_MI_labels")

THICKNESS_MM = 8.0
"""From slice to slice of a phantom."""


@dataclass(frozen=True)
class Layout:
    """Patients in the layout above.

    Args:
        root: the folder that holds ``images`` and ``labels``.
        pixel_mm: size of a pixel if the files lack it or have a wrong one; their affines are then unused.
        labels: structures of the values in the cine labels. If ``None``, they hold the myocardium alone.
        late_labels: the same for late enhancement. If ``None``, its two files hold the myocardium and the infarct.
    """

    root: Path
    pixel_mm: float | None = None
    labels: LabelMap | None = None
    late_labels: LabelMap | None = None

    def names(self) -> tuple[str, ...]:
        """Return the names of the folders under ``images/cmr``."""
        return self._names

    @cached_property
    def _names(self) -> tuple[str, ...]:
        folder = self.root / CINE
        if not folder.is_dir():
            raise DataError(f"{folder} is not there. Expected it to hold a folder for each case.")
        files = {file.name.removesuffix(".gz").removesuffix(".nii") for file in folder.glob("*.nii*")}
        names = {entry.name for entry in folder.iterdir() if entry.is_dir()}
        if both := sorted(files & names):
            raise DataError(f"{folder} has a file and a folder for {', '.join(both)}. Expected one of them.")
        if not files | names:
            raise DataError(f"{folder} holds no folder. Expected one for each case.")
        return tuple(sorted(files | names))

    def case(self, name: str) -> RawCase:
        """Read one case, with late enhancement if it has any.

        Raises:
            DataError: a file is missing, unreadable or holds NaN; shapes, pixel sizes or places differ; or a label has values
                that the map does not name.
        """
        label = LabelFile.read(self.root / CINE_WALL / f"{name}.nii.gz", self.pixel_mm)
        stack = self._stack(CINE, name, label.grid, frames=True)
        named = self.labels or LabelMap(myocardium=(1,))
        wanted: list[Structure] = ["myocardium", *(("lv",) if named.lv else ()), *(("rv",) if named.rv else ())]
        masks = dict(zip(wanted, label.masks(wanted, self.labels, "labels", stack), strict=True))
        wall, right = masks["myocardium"], masks.get("rv")
        if not wall.any():
            raise DataError(f"{name}: its mask of the myocardium is empty.")
        late = self._late(name, stack) if place_of(self.root / LATE, name) is not None else None
        septum = self._heart(name).get("septum")
        return RawCase(
            name=name,
            cine=stack.pictures,
            spacing=stack.grid.zooms[:2],
            affine=stack.grid.affine,
            thickness=stack.grid.zooms[2],
            myocardium=wall,
            cavity=masks.get("lv"),
            oriented=stack.grid.known,
            septum=direction(wall, right) if septum is None and right is not None else septum,
            infarcted=late is not None and bool(late.infarct.any()),
            late=late,
            truth=self._truth(name, len(stack.pictures)),
        )

    def _late(self, name: str, cine: Stack) -> LateEnhancement:
        label = LabelFile.read(self.root / LATE_WALL / f"{name}.nii.gz", self.pixel_mm)
        stack = self._stack(LATE, name, label.grid, frames=False)
        (wall,) = label.masks(("myocardium",), self.late_labels, "late_labels", stack)
        scar = self._scar(name, label, stack)
        pictures, grid, slices = stack.pictures[:, 0], stack.grid, None
        if cine.grid.known and grid.known:
            volumes = [np.moveaxis(array, 0, -1) for array in (pictures, wall, scar)]
            turned, grid = turned_like(volumes, grid, cine.grid, name)
            pictures, wall, scar = (np.moveaxis(volume, -1, 0) for volume in turned)
            slices = _matched(name, grid, cine.grid)
            chosen = list(slices.values())
            pictures, wall, scar = pictures[chosen], wall[chosen], scar[chosen]
        elif len(pictures) != len(cine.pictures):
            raise DataError(
                f"{name}: {len(cine.pictures)} cine slices and {len(pictures)} of late enhancement. Expected the same number, "
                "because their files have no affine."
            )
        return LateEnhancement(
            image=np.ascontiguousarray(pictures, np.float32),
            spacing=grid.zooms[:2],
            myocardium=wall,
            infarct=scar,
            slices=None if slices is None or len(slices) == len(cine.pictures) else tuple(slices),
        )

    def _scar(self, name: str, wall: LabelFile, stack: Stack) -> NDArray[np.bool_]:
        """Return the infarct.

        It is in the label of the myocardium if the map names it, else in its own file.
        """
        file = self.root / LATE_SCAR / f"{name}.nii.gz"
        named = self.late_labels is not None and bool(self.late_labels.infarct)
        (inside,) = wall.masks(("infarct",), self.late_labels, "late_labels", stack) if named else (None,)
        if inside is not None and not file.is_file():
            return inside
        own = LabelFile.read(file, self.pixel_mm)
        alone = len(np.unique(own.values)) <= 2
        (scar,) = own.masks(("infarct",), None if alone else self.late_labels, "late_labels", stack)
        if inside is not None and not np.array_equal(scar, inside):
            raise DataError(
                f"{name}: {file} marks {int(scar.sum())} voxels as infarct and {wall.file} {int(inside.sum())}. Expected the "
                "same. Try: remove the wrong one, or name no infarct in late_labels."
            )
        return scar

    def _stack(self, folder: Path, name: str, given: Grid, *, frames: bool) -> Stack:
        place = place_of(self.root / folder, name)
        assert place is not None
        stack = read_stack(place, given, frames=frames)
        if self.pixel_mm is None:
            return stack
        zooms = (self.pixel_mm, self.pixel_mm, stack.grid.zooms[2])
        return replace(stack, grid=replace(stack.grid, zooms=zooms, known=False))

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
            infarct=np.moveaxis(scar, -1, 0) > 0,
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


def _matched(name: str, late: Grid, cine: Grid) -> dict[int, int]:
    slices = matched_slices(late, cine)
    if not slices:
        raise DataError(
            f"{name}: none of {late.shape[2]} slices of late enhancement lies at one of {cine.shape[2]} cine slices, by their "
            "affines. Expected the same place. Try: compare both in a viewer, and correct the wrong header."
        )
    if len(slices) < cine.shape[2]:
        log.info("%s: late enhancement lies at %d of %d cine slices.", name, len(slices), cine.shape[2])
    return slices
