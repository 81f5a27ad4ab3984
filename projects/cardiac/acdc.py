"""The layout of the ACDC challenge (Bernard et al., IEEE TMI 2018)::

    patientNNN/Info.cfg                     ED, ES (frames from 1), Group, Height, Weight, NbFrame
    patientNNN/patientNNN_4d.nii.gz         (H, W, D, T), or (H, W, T) of a single slice
    patientNNN/patientNNN_frameFF_gt.nii.gz (H, W, D), 1 right ventricle, 2 myocardium, 3 left ventricle

Labels on another grid than the pictures, by their affines, are resampled to that of the pictures. There
is no late enhancement, so these data serve motion only.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mltrain.errors import DataError
from projects.cardiac.label_file import LabelFile
from projects.cardiac.labels import ACDC, LabelMap
from projects.cardiac.orientation import direction
from projects.cardiac.raw import RawCase
from projects.cardiac.stack import read_stack

INFARCTED = "MINF"


@dataclass(frozen=True)
class Acdc:
    """Patients of ACDC in a folder.

    Args:
        root: the folder that holds the patients, or ``training`` and ``testing`` with them.
        labels: structures of the values in the label files.
    """

    root: Path
    labels: LabelMap = ACDC

    def names(self) -> tuple[str, ...]:
        """Return the names of the folders that hold an ``Info.cfg``."""
        return tuple(self._folders)

    @cached_property
    def _folders(self) -> dict[str, Path]:
        found = {file.parent.name: file.parent for file in sorted(self.root.rglob("Info.cfg"))}
        if not found:
            raise DataError(f"No Info.cfg is below {self.root}. Expected patientNNN/Info.cfg.")
        return found

    def case(self, name: str) -> RawCase:
        """Read one patient.

        Raises:
            DataError: a file is missing or unreadable, Info.cfg lacks a key, a picture holds NaN, or a label has unnamed
                values or lies outside of the pictures.
        """
        folder = self._folders[name]
        info = _info(folder / "Info.cfg")
        first, last = (_frame(info, key, folder) for key in ("ED", "ES"))
        files = {frame: _file(folder, f"{name}_frame{frame + 1:02d}_gt") for frame in (first, last)}
        diastole = LabelFile.read(files[first])
        stack = read_stack(_file(folder, f"{name}_4d"), diastole.grid, frames=True)
        for frame in (first, last):
            if frame >= stack.pictures.shape[1]:
                raise DataError(f"{folder / 'Info.cfg'} names the frame {frame + 1} of {stack.pictures.shape[1]}.")
        systole = LabelFile.read(files[last])
        wall, right, cavity = diastole.masks(("myocardium", "rv", "lv"), self.labels, "labels", stack)
        systolic_wall, systolic_cavity = systole.masks(("myocardium", "lv"), self.labels, "labels", stack)
        if not wall.any():
            raise DataError(
                f"{name}: no myocardium (label {self.labels.myocardium}) is marked at end diastole. Expected some, by "
                f"labels={self.labels}."
            )
        affine, zooms = stack.grid.affine, stack.grid.zooms
        return RawCase(
            name=name,
            cine=stack.pictures,
            spacing=zooms[:2],
            affine=affine,
            thickness=zooms[2],
            myocardium=wall,
            end_diastole=first,
            end_systole=last,
            end_systolic_myocardium=systolic_wall,
            cavity=cavity if self.labels.lv else None,
            end_systolic_cavity=systolic_cavity if self.labels.lv else None,
            oriented=stack.grid.known,
            septum=direction(wall, right),
            infarcted=info.get("Group") == INFARCTED,
        )


def _info(file: Path) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in file.read_text(encoding="utf-8").splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _frame(info: dict[str, str], key: str, folder: Path) -> int:
    if not info.get(key, "").isdecimal():
        raise DataError(f"{folder / 'Info.cfg'} has no frame {key}. Expected a line such as '{key}: 1'.")
    return int(info[key]) - 1


def _file(folder: Path, stem: str) -> Path:
    plain = folder / f"{stem}.nii"
    return plain if plain.is_file() else folder / f"{stem}.nii.gz"
