"""What the infarct network sees, from the motion network; and what it should say, from the registration network."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from projects.cardiac.deformation import DeformationNet, inverse, jacobian_determinant
from projects.cardiac.prepared import PreparedCase
from projects.cardiac.registration import carried_over

CHANNELS: dict[str, tuple[str, ...]] = {
    "anatomy": ("diastole", "myocardium"),
    "frames": ("diastole", "systole", "myocardium"),
    "motion": ("myocardium", "rows", "columns", "length", "area"),
    "all": ("diastole", "systole", "myocardium", "rows", "columns", "length", "area"),
}
"""Channels of each choice of input; ``area`` is the determinant of the Jacobian minus one."""

EXACT, CARRIED_OVER = "exact infarct", "label carried over"
"""Names of what infarcts are judged by: of phantoms, and of patients."""

_PIXELS = 4.0  # a usual displacement, so that its channels are about as large as grey levels


@dataclass(frozen=True, eq=False)
class Seen:
    """One patient as the infarct network sees it.

    Attributes:
        case: the patient.
        field: (D, 2, S, S) displacements from end diastole, seen at end diastole; see :func:`forward_motion`.
        label: (D, S, S) bool, what is trained on.
        carried: (D, S, S) bool, the label carried over from late enhancement.
    """

    case: PreparedCase
    field: Tensor
    label: Tensor
    carried: Tensor

    @property
    def exact(self) -> Tensor | None:
        """The exact infarct (D, S, S) of a phantom; ``None`` for a patient, of whom nobody knows it."""
        return self.case.optional.get("infarct")

    @property
    def reference(self) -> Tensor:
        """What is judged by (D, S, S): the exact infarct of a phantom, else the label carried over."""
        return self.carried if self.exact is None else self.exact

    def channels(self, inputs: str) -> Tensor:
        """The input (D, C, S, S)."""
        planes = {
            "diastole": self.case.diastolic[:, 0],
            "systole": self.case.systolic[:, 0],
            "myocardium": self.case.myocardium.float(),
            "rows": self.field[:, 0] / _PIXELS,
            "columns": self.field[:, 1] / _PIXELS,
            "length": self.field.norm(dim=1) / _PIXELS,
            "area": jacobian_determinant(self.field) - 1,
        }
        return torch.stack([planes[name] for name in CHANNELS[inputs]], dim=1)


def forward_motion(motion: DeformationNet, case: PreparedCase) -> Tensor:
    """Where the points of end diastole are at end systole, minus where they were: (D, 2, S, S), in pixels.

    What the network returns stands at the pixels of end systole; its inverse stands where the myocardium is marked.
    """
    return inverse(motion.field(case.diastolic, case.systolic))


def seen(
    cases: Sequence[PreparedCase], motion: DeformationNet, registration: DeformationNet, labels: str
) -> list[Seen]:
    """Run both networks over some cases.

    Args:
        cases: with late enhancement.
        motion: of stage 1.
        registration: of stage 2.
        labels: ``carried_over`` by registration, or ``exact``, which only phantoms have.
    """
    result = []
    for case in cases:
        carried = carried_over(case, registration.field(case.optional["lge"][:, None], case.diastolic))
        label = case.optional["infarct"] if labels == "exact" else carried
        result.append(Seen(case, forward_motion(motion, case), label, carried))
    return result


def reference_name(patients: Sequence[Seen]) -> str:
    """Name of what some patients are judged by, for figures and tables."""
    exact = {patient.exact is not None for patient in patients}
    if len(exact) > 1:
        return "reference"
    return EXACT if True in exact else CARRIED_OVER
