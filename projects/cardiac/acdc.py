"""The layout of the ACDC challenge (Bernard et al., IEEE TMI 2018)::

    patientNNN/Info.cfg                     ED, ES (frames from 1), Group, Height, Weight, NbFrame
    patientNNN/patientNNN_4d.nii.gz         (H, W, D, T)
    patientNNN/patientNNN_frameFF_gt.nii.gz (H, W, D), 1 right ventricle, 2 myocardium, 3 left ventricle

It has no late enhancement, so it serves motion only.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mltrain.errors import DataError
from projects.cardiac.raw import RawCase, read_volume

RIGHT_VENTRICLE, MYOCARDIUM, LEFT_VENTRICLE = 1, 2, 3
INFARCTED = "MINF"


@dataclass(frozen=True)
class Acdc:
    """Patients of ACDC, in the folder itself or in ``training`` and ``testing`` below it."""

    root: Path

    def names(self) -> tuple[str, ...]:
        """Return the names of the folders that hold an ``Info.cfg``."""
        return tuple(self._folders)

    @cached_property
    def _folders(self) -> dict[str, Path]:
        found = {file.parent.name: file.parent for file in sorted(self.root.rglob("Info.cfg"))}
        if not found:
            raise DataError(f"No Info.cfg is below {self.root}; patientNNN/Info.cfg was expected.")
        return found

    def case(self, name: str) -> RawCase:
        """Read one patient.

        Raises:
            DataError: a file is missing or unreadable, Info.cfg lacks a key, or shapes differ.
        """
        folder = self._folders[name]
        info = _info(folder / "Info.cfg")
        first, last = (_frame(info, key, folder) for key in ("ED", "ES"))
        array, image = read_volume(_file(folder, f"{name}_4d"), "H,W,D,T")
        cine = np.ascontiguousarray(array.transpose(2, 3, 0, 1), dtype=np.float32)
        labels = {}
        for frame in (first, last):
            if not 0 <= frame < cine.shape[1]:
                raise DataError(f"{folder / 'Info.cfg'} names the frame {frame + 1} of {cine.shape[1]}.")
            label, _ = read_volume(_file(folder, f"{name}_frame{frame + 1:02d}_gt"), "H,W,D")
            if label.shape != array.shape[:3]:
                raise DataError(f"{name}: frame {frame + 1} is labelled with {label.shape} for {array.shape[:3]}.")
            labels[frame] = np.moveaxis(np.rint(label).astype(int), -1, 0)
        wall = labels[first] == MYOCARDIUM
        if not wall.any():
            raise DataError(f"{name}: no myocardium (label {MYOCARDIUM}) is marked at end diastole.")
        zooms = tuple(float(size) for size in image.header.get_zooms())
        return RawCase(
            name=name,
            cine=cine,
            spacing=(zooms[0], zooms[1]),
            affine=np.asarray(image.affine, float),
            thickness=zooms[2],
            myocardium=wall,
            end_diastole=first,
            end_systole=last,
            end_systolic_myocardium=labels[last] == MYOCARDIUM,
            septum=_direction(wall, labels[first] == RIGHT_VENTRICLE),
            infarcted=info.get("Group") == INFARCTED,
        )


def _info(file: Path) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _frame(info: dict[str, str], key: str, folder: Path) -> int:
    if not info.get(key, "").isdecimal():
        raise DataError(f"{folder / 'Info.cfg'} has no frame {key}; a line such as '{key}: 1' was expected.")
    return int(info[key]) - 1


def _file(folder: Path, stem: str) -> Path:
    plain = folder / f"{stem}.nii"
    return plain if plain.is_file() else folder / f"{stem}.nii.gz"


def _direction(wall: NDArray[np.bool_], right: NDArray[np.bool_]) -> float | None:
    """Angle from the centre of the left ventricle's wall to that of the right ventricle."""
    if not right.any():
        return None
    rows, columns = (a.mean() - b.mean() for a, b in zip(right.nonzero()[1:], wall.nonzero()[1:], strict=True))
    return float(np.arctan2(rows, columns))
