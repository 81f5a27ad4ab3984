"""Stage 2: registration of late enhancement to the cine frame of end diastole, which carries the infarct label over."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.losses.dice import DiceLoss
from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset

import mltrain
from mltrain.errors import DataError
from projects.cardiac import agreement, prepared, registration_report
from projects.cardiac.deformation import (
    Deformation,
    DeformationNet,
    DisplacementField,
    jacobian_determinant,
    roughness,
    warp,
    warp_masks,
)
from projects.cardiac.prepared import PreparedCase
from projects.cardiac.stages.registration import Config as Config


class Target(NamedTuple):
    """The targets of a deformation, each (N, 1, H, W).

    Attributes:
        fixed: the cine frame.
        fixed_mask: its myocardium.
        moving: late enhancement, with its scar filled if ``fill_scar``.
        moving_mask: its myocardium.
    """

    fixed: Tensor
    fixed_mask: Tensor
    moving: Tensor
    moving_mask: Tensor


def build(config: Config) -> mltrain.Task:
    """Read the prepared cases and build network, optimizer and schedule.

    Raises:
        mltrain.errors.DataError: no case is prepared, or one of the parts has no late enhancement.
    """
    cohort = prepared.read(config.prepared)
    train, val = with_late_enhancement(cohort.train), with_late_enhancement(cohort.val)
    loader = mltrain.ResumableLoader(LatePairs(train, fill_scar=config.fill_scar), config.batch_size)
    net = DeformationNet("registration")
    loss = RegistrationLoss(config.correlation_weight, config.mask_weight, config.smoothness_weight)
    optimizer = AdamW(net.parameters(), config.lr)
    # One more than the steps: the schedule also steps after the last one.
    scheduler = OneCycleLR(optimizer, config.lr, total_steps=config.epochs * len(loader) + 1)
    step = mltrain.Supervised(net, loss, optimizer, scheduler=scheduler, clip=config.clip)
    return mltrain.Task(
        step,
        loader,
        evaluate=Validation(net, loss, val, fill_scar=config.fill_scar),
        images=registration_report.Gallery(net, val[: config.shown]),
        report=registration_report.Report(net, val),
        predictor=lambda: (DisplacementField(net), torch.stack([loader.dataset[index][0] for index in (0, 1)])),
    )


def with_late_enhancement(cases: Sequence[PreparedCase]) -> tuple[PreparedCase, ...]:
    """Return only the cases and slices with late enhancement.

    Raises:
        DataError: no case has any.
    """
    found = tuple(case.where_late() for case in cases if case.has_late())
    if not found:
        raise DataError(
            f"None of {len(cases)} cases has late enhancement: nothing can be registered, and no infarct is marked. "
            "Expected images/lge and labels/lge_original in the layout; ACDC has neither and serves motion only."
        )
    return found


class LatePairs(Dataset[tuple[Tensor, Target]]):
    """Late-enhancement slices with their end-diastolic cine frames (2, S, S), and targets."""

    def __init__(self, cases: Sequence[PreparedCase], *, fill_scar: bool) -> None:
        self._pairs = torch.cat([torch.cat([case.optional["lge"][:, None], case.diastolic], dim=1) for case in cases])
        self._target = targets(cases, fill_scar=fill_scar)

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self._pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Return one slice."""
        return self._pairs[index], Target(*(part[index] for part in self._target))


def targets(cases: Sequence[PreparedCase], *, fill_scar: bool) -> Target:
    """Return the targets of all slices of some cases."""
    return Target(
        torch.cat([case.diastolic for case in cases]),
        torch.cat([case.myocardium[:, None].float() for case in cases]),
        torch.cat([without_scar(case) if fill_scar else case.optional["lge"] for case in cases])[:, None],
        torch.cat([case.optional["lge_myocardium"][:, None].float() for case in cases]),
    )


def without_scar(case: PreparedCase) -> Tensor:
    """Return late enhancement (D, S, S) with its scar filled.

    The scar of each slice gets the median level of the rest of its wall.
    """
    filled = case.optional["lge"].clone()
    for picture, wall, scar in zip(filled, case.optional["lge_myocardium"], case.optional["lge_infarct"], strict=True):
        rest = wall & ~scar
        if bool(rest.any()):
            picture[scar] = picture[rest].median()
    return filled


class RegistrationLoss(nn.Module):
    """Local correlation (window of nine pixels), Dice of myocardium masks, and smoothness.

    The cine frame shows no scar, so a comparison of grey levels would pull bright scar out of the dark wall into the bright
    blood beside it, and its label with it. The comparison therefore excludes the scar (cost-function masking; Brett et al.,
    NeuroImage 2001): it uses ``target.moving``.
    """

    def __init__(self, correlation: float, mask: float, smoothness: float) -> None:
        super().__init__()
        self.weights = (correlation, mask, smoothness)
        self.correlation = LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=9)
        self.dice = DiceLoss()

    def forward(self, output: Deformation, target: Target) -> Tensor:
        """Return the loss of a deformation of late enhancement."""
        correlation, mask, smoothness = self.weights
        return torch.as_tensor(
            correlation * self.correlation(warp(target.moving, output.field), target.fixed)
            + mask * self.dice(warp(target.moving_mask, output.field), target.fixed_mask)
            + smoothness * roughness(output.field)
        )


class Validation:
    """Scores registration in held-out cases.

    It returns ``val/loss``, ``val/dice_myo`` and ``val/hd95_myo_mm`` of the myocardium, and ``val/folded_percent``; for
    phantoms ``val/dice_label`` of the label carried over, over all slices of a patient, as the mean over patients with
    an infarct; and ``…_before``, the same without registration.
    """

    def __init__(
        self, net: DeformationNet, loss: RegistrationLoss, cases: Sequence[PreparedCase], *, fill_scar: bool
    ) -> None:
        self._net = net
        self._loss = loss
        self._cases = cases
        self._fill_scar = fill_scar

    def __call__(self) -> dict[str, float]:
        """Return the scores; every slice has the same weight."""
        late = torch.cat([case.optional["lge"][:, None] for case in self._cases])
        target = targets(self._cases, fill_scar=self._fill_scar)
        field = self._net.field(late, target.fixed)
        pieces = zip(*(torch.split(part, 8) for part in (late, field, *target)), strict=True)
        losses = [float(self._loss(Deformation(warp(one, move), move), Target(*rest))) for one, move, *rest in pieces]
        moved = warp(target.moving_mask, field)[:, 0] > 0.5
        before, true = target.moving_mask[:, 0] > 0.5, target.fixed_mask[:, 0] > 0.5
        measured = {
            "val/loss": sum(losses) / len(losses),
            "val/dice_myo": agreement.mean_dice(moved, true),
            "val/dice_myo_before": agreement.mean_dice(before, true),
            "val/folded_percent": agreement.folded_percent(jacobian_determinant(field)),
        }
        distance = agreement.mean_hd95(moved, true, self._cases[0].pixel_mm)
        if distance is not None:
            measured["val/hd95_myo_mm"] = distance
        return measured | self._labels(field)

    def _labels(self, field: Tensor) -> dict[str, float]:
        after, before = [], []
        for case, own in zip(self._cases, torch.split(field, [len(case.cine) for case in self._cases]), strict=True):
            true = case.optional.get("infarct")
            if true is None or not true.any():
                continue
            after.append(agreement.dice(carried_over(case, own), true))
            before.append(agreement.dice(case.optional["lge_infarct"] & case.myocardium, true))
        if not after:
            return {}
        return {"val/dice_label": sum(after) / len(after), "val/dice_label_before": sum(before) / len(before)}


def carried_over(case: PreparedCase, field: Tensor) -> Tensor:
    """Return the infarct label (D, S, S; bool) warped to cine space.

    It is that of late enhancement, within the cine's myocardium.
    """
    return warp_masks(case.optional["lge_infarct"], field) & case.myocardium
