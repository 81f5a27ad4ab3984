"""Inputs and labels of the infarct network.

The inputs come from the motion network, the labels from the registration network.
"""

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
"""Names of the references of phantoms and of patients."""

_PIXELS = 4.0  # a usual displacement; scales its channels to the size of grey levels


@dataclass(frozen=True, eq=False)
class Seen:
    """One patient as the infarct network sees it.

    Attributes:
        case: the patient.
        field: (D, 2, S, S) displacements of the points of end diastole; see :func:`forward_motion`.
        label: (D, S, S) bool, the training label.
        carried: (D, S, S) bool, the label carried over from late enhancement.
    """

    case: PreparedCase
    field: Tensor
    label: Tensor
    carried: Tensor

    @property
    def exact(self) -> Tensor | None:
        """The exact infarct (D, S, S) of a phantom; ``None`` for a patient, whose exact infarct is unknown."""
        return self.case.optional.get("infarct")

    @property
    def reference(self) -> Tensor:
        """The reference (D, S, S): the exact infarct of a phantom, else the label carried over."""
        return self.carried if self.exact is None else self.exact

    def channels(self, inputs: str) -> Tensor:
        """Return the input (D, C, S, S)."""
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
    """Return the end-diastolic points' displacements (D, 2, S, S) to end systole, in pixels.

    The network gives displacements at the pixels of end systole; their inverse is at those of end diastole, where the
    myocardium is marked.
    """
    return inverse(motion.field(case.diastolic, case.systolic))


def seen(
    cases: Sequence[PreparedCase], motion: DeformationNet, registration: DeformationNet, labels: str
) -> list[Seen]:
    """Run both networks on some cases.

    Args:
        cases: cases with late enhancement.
        motion: the network of stage 1.
        registration: the network of stage 2.
        labels: ``carried_over`` by registration, or ``exact``, which only phantoms have.
    """
    result = []
    for case in cases:
        carried = carried_over(case, registration.field(case.optional["lge"][:, None], case.diastolic))
        label = case.optional["infarct"] if labels == "exact" else carried
        result.append(Seen(case, forward_motion(motion, case), label, carried))
    return result


def reference_name(patients: Sequence[Seen]) -> str:
    """Name the reference of patients in figures and tables."""
    exact = {patient.exact is not None for patient in patients}
    if len(exact) > 1:
        return "reference"
    return EXACT if True in exact else CARRIED_OVER
