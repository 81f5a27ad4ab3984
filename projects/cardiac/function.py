"""Function of the left ventricle: volumes, ejection fraction, and strain of the wall."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from torch import Tensor
from torch.nn import functional as F

from projects.cardiac import aha
from projects.cardiac.deformation import inverse, warp
from projects.cardiac.prepared import PreparedCase

_FINER = 4
"""Samples of a carried mask along a side of a pixel."""

CIRCUMFERENTIAL, RADIAL = "circumferential_strain_percent", "radial_strain_percent"


@dataclass(frozen=True, kw_only=True)
class Function:
    """A patient's left-ventricular function from end diastole to end systole.

    Attributes:
        name: name of the case.
        edv_ml: end-diastolic volume.
        esv_ml: end-systolic volume of the cavity carried there by the displacements.
        reference_esv_ml: end-systolic volume of the marked cavity; ``None`` if end systole is not marked.
        segments: AHA segment to circumferential and radial strain in percent.
        circumferential, radial: strain of the whole wall in percent.
        reference_segments: strains by the exact displacement of a phantom; empty for patients.
    """

    name: str
    edv_ml: float
    esv_ml: float
    reference_esv_ml: float | None
    segments: dict[int, tuple[float, float]]
    circumferential: float
    radial: float
    reference_segments: dict[int, tuple[float, float]]

    @property
    def ef_percent(self) -> float | None:
        """Ejection fraction; ``None`` if the wall encloses no cavity."""
        return _ejected(self.edv_ml, self.esv_ml)

    @property
    def reference_ef_percent(self) -> float | None:
        """Ejection fraction by the marked end systole; ``None`` if it is not marked."""
        return None if self.reference_esv_ml is None else _ejected(self.edv_ml, self.reference_esv_ml)

    def strain_error(self) -> float | None:
        """Return the mean absolute error of segments' circumferential strain (percentage points)."""
        known = self.reference_segments
        return float(np.mean([abs(self.segments[key][0] - known[key][0]) for key in known])) if known else None


def measured(case: PreparedCase, field: Tensor) -> Function:
    """Measure one patient.

    Args:
        case: the patient.
        field: (D, 2, S, S) displacements in pixels from end diastole, at the pixels of end systole, backward.
    """
    cavity = cavities(case.myocardium, case.optional.get("cavity"))
    carried = carried_shares(cavity, field)
    marked = case.optional.get("end_systolic_myocardium")
    systolic = None if marked is None else cavities(marked, case.optional.get("end_systolic_cavity"))
    at_diastole = inverse(field)
    known = case.optional.get("displacement")
    numbers = case.segments()
    circumferential, radial = strains(at_diastole, case.myocardium)
    wall = case.myocardium.numpy()
    return Function(
        name=case.name,
        edv_ml=volume_ml(cavity, case),
        esv_ml=volume_ml(carried, case),
        reference_esv_ml=None if systolic is None else volume_ml(systolic, case),
        segments=by_segment(numbers, circumferential, radial),
        circumferential=100 * float(circumferential[wall].mean()),
        radial=100 * float(radial[wall].mean()),
        reference_segments={} if known is None else by_segment(numbers, *strains(inverse(known), case.myocardium)),
    )


def cavities(wall: Tensor, marked: Tensor | None) -> Tensor:
    """Return the cavity of the left ventricle (D, S, S) bool: as marked, else enclosed by the wall of each slice."""
    if marked is not None:
        return marked
    return torch.from_numpy(np.stack([binary_fill_holes(mask) for mask in wall.numpy()])) & ~wall


def carried_shares(mask: Tensor, field: Tensor) -> Tensor:
    """Return each pixel's share (0 to 1) under a carried mask.

    A mask (D, S, S) bool is carried by displacements (D, 2, S, S) at four times the resolution. An interpolated mask at
    the original one has a ramp for an edge, whose outer half shrinks less than the inner one, because the wall around a
    cavity does; so the cavity would be too large.
    """
    fine = F.interpolate(mask[:, None].float(), scale_factor=_FINER, mode="bilinear")
    moved = F.interpolate(field, scale_factor=_FINER, mode="bicubic") * _FINER
    return F.avg_pool2d((warp(fine, moved) > 0.5).float(), _FINER)[:, 0]


def volume_ml(mask: Tensor, case: PreparedCase) -> float:
    """Volume in millilitres of a mask (D, S, S; bool or shares): the sum of its slices (Simpson's rule)."""
    return float(mask.sum()) * case.pixel_mm**2 * case.thickness / 1000


def strains(field: Tensor, myocardium: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return circumferential and radial Green-Lagrange strain, each (D, S, S), as fractions.

    ``E = (FᵀF - I) / 2`` with ``F = I + ∂u/∂X``, along and across the circle about the centroid of a slice's wall. Shortening is
    negative. Motion through the plane is not included.

    Args:
        field: (D, 2, S, S), displacement of each point of end diastole in pixels, rows first.
        myocardium: (D, S, S) bool at end diastole.
    """
    down, across = torch.gradient(field.double(), dim=(2, 3))
    gradient = torch.stack([down, across], dim=2)  # (D, component, direction, S, S)
    deformation = gradient + torch.eye(2, dtype=torch.float64)[None, :, :, None, None]
    tensor = (torch.einsum("dkiyx,dkjyx->dijyx", deformation, deformation)) / 2
    tensor = tensor - torch.eye(2, dtype=torch.float64)[None, :, :, None, None] / 2
    outward = np.stack([_outward(mask) for mask in myocardium.numpy()])
    around = np.stack([-outward[:, 1], outward[:, 0]], axis=1)
    along, over = (
        torch.einsum("diyx,dijyx,djyx->dyx", unit, tensor, unit).numpy()
        for unit in (torch.from_numpy(around), torch.from_numpy(outward))
    )
    return along, over


def _outward(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return unit vectors (2, S, S) away from the centroid of a mask (S, S)."""
    at = np.indices(mask.shape).astype(np.float64)
    if mask.any():
        at -= np.array([axis.mean() for axis in mask.nonzero()])[:, None, None]
    return np.asarray(at / np.maximum(np.hypot(*at), 1e-9))


def by_segment(
    numbers: NDArray[np.int64], circumferential: NDArray[np.float64], radial: NDArray[np.float64]
) -> dict[int, tuple[float, float]]:
    """Return each AHA segment's mean strains in percent; segments without pixels are left out."""
    return {
        number: (100 * float(circumferential[inside].mean()), 100 * float(radial[inside].mean()))
        for number in aha.SEGMENTS
        if bool((inside := numbers == number).any())
    }


def summary(patients: Sequence[Function]) -> dict[str, float]:
    """Return means over patients: ``val/edv_ml``, ``val/esv_ml``, ``val/ef_percent``, and both strains of the whole wall.

    Where end systole is marked, ``val/esv_reference_ml``, ``val/ef_reference_percent`` and ``val/ef_error_points``, the mean
    absolute difference; of phantoms ``val/strain_error_points`` of the circumferential strain of segments.
    """
    errors = [
        abs(one.ef_percent - one.reference_ef_percent)
        for one in patients
        if one.ef_percent is not None and one.reference_ef_percent is not None
    ]
    means = {
        "edv_ml": _mean(one.edv_ml for one in patients),
        "esv_ml": _mean(one.esv_ml for one in patients),
        "ef_percent": _mean(one.ef_percent for one in patients),
        "esv_reference_ml": _mean(one.reference_esv_ml for one in patients),
        "ef_reference_percent": _mean(one.reference_ef_percent for one in patients),
        "ef_error_points": _mean(errors),
        CIRCUMFERENTIAL: _mean(one.circumferential for one in patients),
        RADIAL: _mean(one.radial for one in patients),
        "strain_error_points": _mean(one.strain_error() for one in patients),
    }
    return {f"val/{name}": value for name, value in means.items() if value is not None}


def segment_means(patients: Sequence[Function]) -> dict[str, float]:
    """Return each segment's mean strains over patients, as ``val/segment_07_circumferential_strain_percent``."""
    means: dict[str, float] = {}
    for number in aha.SEGMENTS:
        own = [one.segments[number] for one in patients if number in one.segments]
        if own:
            for name, values in zip((CIRCUMFERENTIAL, RADIAL), zip(*own, strict=True), strict=True):
                means[f"val/segment_{number:02d}_{name}"] = float(np.mean(values))
    return means


def _ejected(diastole: float, systole: float) -> float | None:
    return 100 * (diastole - systole) / diastole if diastole > 0 else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
