"""The output of preparation: patients cut to one size, and their split::

preparation.json           written last; a folder without it is incomplete
splits.json                {"train": [...], "val": [...]}
cases/CASE.json            frames, window and affine, for the way back to the input's grid
cases/CASE.safetensors     pictures and masks
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mltrain.errors import DataError
from projects.cardiac import aha, orientation, splits
from projects.cardiac.raw import write_volume
from projects.cardiac.window import Window

RECORD = "preparation.json"
FORMAT = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedCase:
    """One prepared patient: D slices of S by S pixels of ``window.pixel_mm``.

    Attributes:
        name: name of the case.
        cine: (D, T, S, S) float32 in [0, 1].
        myocardium: (D, S, S) bool at end diastole.
        end_diastole, end_systole: frames from 0.
        end_systole_by: ``given``, ``area`` or ``motion``.
        septum: direction of the right ventricle in radians; π, the left of the picture, if unknown.
        infarcted: whether the patient is known to have had an infarct.
        slices: indices of these slices in the input; slices without myocardium are left out.
        depth: number of slices of the input.
        affine, thickness: affine and slice distance of the input's volume (H, W, depth).
        window: position of the square in the input's slices.
        oriented: whether the affine gives the directions of the axes.
        late_slices: indices of the L of D slices with late enhancement. If ``None``, all D have it.
        optional: further tensors, by name: ``end_systolic_myocardium``, ``cavity`` and ``end_systolic_cavity`` (D, S, S) bool;
            ``lge`` (L, S, S) float32, ``lge_myocardium`` and ``lge_infarct`` bool; of phantoms ``displacement``
            (D, 2, S, S) float32 in pixels at end systole and ``infarct`` (D, S, S) bool; ``segments`` (D, S, S) in what
            :meth:`where_late` returns.
    """

    name: str
    cine: Tensor
    myocardium: Tensor
    end_diastole: int
    end_systole: int
    end_systole_by: str
    septum: float
    infarcted: bool
    slices: tuple[int, ...]
    depth: int
    affine: NDArray[np.float64]
    thickness: float
    window: Window
    optional: Mapping[str, Tensor]
    oriented: bool = True
    late_slices: tuple[int, ...] | None = None

    @property
    def diastolic(self) -> Tensor:
        """The frame of end diastole, (D, 1, S, S)."""
        return self.cine[:, self.end_diastole, None]

    @property
    def systolic(self) -> Tensor:
        """The frame of end systole, (D, 1, S, S)."""
        return self.cine[:, self.end_systole, None]

    @property
    def pixel_mm(self) -> float:
        """Size of a pixel in mm."""
        return self.window.pixel_mm

    def has_late(self) -> bool:
        """Whether the case has late enhancement."""
        return "lge" in self.optional

    def where_late(self) -> "PreparedCase":
        """Return the case with only its late-enhancement slices."""
        if self.late_slices is None:
            return self
        kept = list(self.late_slices)
        cine_space = {name: tensor for name, tensor in self.optional.items() if not name.startswith("lge")}
        return replace(
            self,
            cine=self.cine[kept],
            myocardium=self.myocardium[kept],
            slices=tuple(self.slices[index] for index in kept),
            late_slices=None,
            optional={
                **self.optional,
                **{name: tensor[kept] for name, tensor in cine_space.items()},
                "segments": torch.from_numpy(self.segments())[kept],  # thirds of the whole ventricle
            },
        )

    def segments(self) -> NDArray[np.int64]:
        """Return each pixel's AHA segment (D, S, S); 0 outside the myocardium."""
        if "segments" in self.optional:
            return self.optional["segments"].numpy()
        masks = self.myocardium.numpy()
        base_first = orientation.base_is_first(masks, self.affine, oriented=self.oriented)
        clockwise = not self.oriented or orientation.turns_clockwise(self.affine, base_first=base_first)
        if base_first:
            return aha.segments(masks, self.septum, clockwise=clockwise)
        return aha.segments(masks[::-1], self.septum, clockwise=clockwise)[::-1].copy()

    def on_input_grid(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return pictures (D, S, S) on the input's grid (H, W, depth); 0 outside of the squares."""
        placed = self.window.put_back(pictures)
        volume = np.zeros((*placed.shape[1:], self.depth), np.float32)
        volume[..., list(self.slices)] = np.moveaxis(placed, 0, -1)
        return volume

    def write_mask(self, probability: NDArray[np.float32], file: Path, threshold: float = 0.5) -> None:
        """Write a NIfTI mask (uint8) of pictures (D, S, S) above a threshold.

        It has the input's affine and zooms.
        """
        mask = (self.on_input_grid(probability) > threshold).astype(np.uint8)
        write_volume(mask, file, self.affine, (*self.window.spacing, self.thickness))

    def write_field(self, field: NDArray[np.float32], file: Path) -> None:
        """Write displacements (D, 2, S, S), in pixels, as NIfTI vectors in mm.

        The volume is (H, W, depth, 1, 2), with components along the first two axes.
        """
        components = [self.on_input_grid(field[:, axis] * np.float32(self.pixel_mm)) for axis in range(2)]
        vectors = np.stack(components, axis=-1)[:, :, :, None]

        def named(header: Any) -> None:
            header.set_intent("vector", name="displacement")

        write_volume(vectors, file, self.affine, (*self.window.spacing, self.thickness, 1.0, 1.0), named)


@dataclass(frozen=True, eq=False)
class Cohort:
    """The training patients and the held-out patients."""

    train: tuple[PreparedCase, ...]
    val: tuple[PreparedCase, ...]


def read(folder: Path | None) -> Cohort:
    """Read a prepared folder.

    Raises:
        DataError: the folder is not a prepared one, or is incomplete.
    """
    if folder is None:
        raise DataError("No prepared data are given. Try: prepared=FOLDER")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder} holds no prepared data ({RECORD}: {error}). Try: "
            f"python -m projects.cardiac.preparation --to {folder}"
        ) from None
    if record.get("format") != FORMAT:
        raise DataError(f"{folder} has the format {record.get('format')}. Expected {FORMAT}. Prepare the data again.")
    split = splits.read(folder / "splits.json", record["cases"])
    return Cohort(*(tuple(_read_case(folder, name) for name in part) for part in (split.train, split.val)))


def write_prepared_case(case: PreparedCase, folder: Path) -> None:
    """Write one case below ``folder / cases``, grey levels as float16."""
    place = folder / "cases"
    place.mkdir(parents=True, exist_ok=True)
    tensors = {"cine": case.cine.half(), "myocardium": case.myocardium, **case.optional}
    if "lge" in tensors:
        tensors["lge"] = tensors["lge"].half()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / f"{case.name}.safetensors")
    values = {
        "name": case.name,
        "end_diastole": case.end_diastole,
        "end_systole": case.end_systole,
        "end_systole_by": case.end_systole_by,
        "septum": case.septum,
        "infarcted": case.infarcted,
        "slices": list(case.slices),
        "depth": case.depth,
        "affine": case.affine.tolist(),
        "thickness": case.thickness,
        "window": case.window.values(),
        "oriented": case.oriented,
    }
    if case.late_slices is not None:
        values["late_slices"] = list(case.late_slices)
    (place / f"{case.name}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _read_case(folder: Path, name: str) -> PreparedCase:
    place = folder / "cases" / name
    try:
        values = json.loads(place.with_name(f"{name}.json").read_text(encoding="utf-8"))
        tensors = load_file(place.with_name(f"{name}.safetensors"))
        values["slices"] = tuple(values["slices"])
        values["affine"] = np.array(values["affine"], float)
        values["window"] = Window.of(values["window"])
        if "late_slices" in values:
            values["late_slices"] = tuple(values["late_slices"])
        floats = {key: tensor.float() if tensor.dtype == torch.half else tensor for key, tensor in tensors.items()}
        return PreparedCase(cine=floats.pop("cine"), myocardium=floats.pop("myocardium"), optional=floats, **values)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise DataError(
            f"The prepared case {name} in {folder} is damaged: {error!r}. Prepare the data again."
        ) from None
