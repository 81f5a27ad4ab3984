"""Stage 1: the motion of the heart from end diastole to every other frame, trained without labels.

The network refines optical flow, which finds the motion of texture well and that of blood badly.
"""

from collections.abc import Sequence

import torch
from monai.losses.image_dissimilarity import LocalNormalizedCrossCorrelationLoss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset

import mltrain
from projects.cardiac import agreement, function, motion_report, prepared
from projects.cardiac.deformation import (
    Deformation,
    DeformationNet,
    DisplacementField,
    RefinedFlowNet,
    jacobian_determinant,
    roughness,
    warp,
    warp_masks,
)
from projects.cardiac.prepared import PreparedCase
from projects.cardiac.stages.motion import Config as Config


def build(config: Config) -> mltrain.Task:
    """Read the prepared cases and build network, optimizer and schedule.

    Raises:
        mltrain.errors.DataError: there are no prepared cases.
    """
    cohort = prepared.read(config.prepared)
    net = RefinedFlowNet() if config.start == "optical_flow" else DeformationNet("motion")
    loader = mltrain.ResumableLoader(FramePairs(cohort.train, net, config.passes), config.batch_size)
    loss = MotionLoss(config.intensity_weight, config.correlation_weight, config.smoothness_weight)
    optimizer = AdamW(net.parameters(), config.lr)
    # One more than the steps: the schedule also steps after the last one.
    scheduler = OneCycleLR(optimizer, config.lr, total_steps=config.epochs * len(loader) + 1)
    step = mltrain.Supervised(net, loss, optimizer, scheduler=scheduler, clip=config.clip)
    return mltrain.Task(
        step,
        loader,
        evaluate=Validation(net, loss, cohort.val),
        images=motion_report.Gallery(net, cohort.val[: config.shown]),
        report=motion_report.Report(net, cohort.val),
        predictor=lambda: (DisplacementField(net), torch.stack([loader.dataset[index][0] for index in (0, 1)])),
    )


class FramePairs(Dataset[tuple[Tensor, Tensor]]):
    """Each slice's end-diastolic frame with another frame, drawn at random.

    An item is the input of the network, (channels, S, S), end diastole first, and the other frame (1, S, S).
    """

    def __init__(self, cases: Sequence[PreparedCase], net: DeformationNet, passes: int = 1) -> None:
        self._net = net
        self._sequences = [(case.cine[index], case.end_diastole) for case in cases for index in range(len(case.cine))]
        self._passes = passes

    def __len__(self) -> int:
        """Return the number of slices, times the passes."""
        return len(self._sequences) * self._passes

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a pair and its second frame."""
        sequence, first = self._sequences[index % len(self._sequences)]
        frame = int(torch.randint(len(sequence) - 1, ()))
        frame += frame >= first
        fixed = sequence[frame, None]
        return self._net.pairs(sequence[None, first, None], fixed[None])[0], fixed


class MotionLoss(nn.Module):
    """Mean squared difference of grey levels, local correlation (window of nine pixels) and smoothness."""

    def __init__(self, intensity: float, correlation: float, smoothness: float) -> None:
        super().__init__()
        self.weights = (intensity, correlation, smoothness)
        self.correlation = LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=9)

    def forward(self, output: Deformation, fixed: Tensor) -> Tensor:
        """Return the loss of a deformation towards ``fixed`` (N, 1, H, W)."""
        intensity, correlation, smoothness = self.weights
        return torch.as_tensor(
            intensity * F.mse_loss(output.warped, fixed)
            + correlation * self.correlation(output.warped, fixed)
            + smoothness * roughness(output.field)
        )


class Validation:
    """Scores end-diastolic to end-systolic motion in held-out cases.

    It returns ``val/loss`` and ``val/folded_percent``; ``val/dice_es`` of the myocardium if end systole is marked;
    ``val/epe_px`` and ``val/epe_mm`` within it if the displacement is known; ``…_before``, the same without motion; and volumes,
    ejection fraction and strain of :func:`projects.cardiac.function.summary`.
    """

    def __init__(self, net: DeformationNet, loss: MotionLoss, cases: Sequence[PreparedCase]) -> None:
        self._net = net
        self._loss = loss
        self._cases = cases

    def __call__(self) -> dict[str, float]:
        """Return the scores; every slice has the same weight."""
        moving = torch.cat([case.diastolic for case in self._cases])
        fixed = torch.cat([case.systolic for case in self._cases])
        field = self._net.field(moving, fixed)
        losses = [
            float(self._loss(Deformation(warp(one, move), move), other))
            for one, other, move in zip(*(torch.split(part, 8) for part in (moving, fixed, field)), strict=True)
        ]
        measured = {
            "val/loss": sum(losses) / len(losses),
            "val/folded_percent": agreement.folded_percent(jacobian_determinant(field)),
        }
        parts = list(zip(self._cases, torch.split(field, [len(case.cine) for case in self._cases]), strict=True))
        patients = [function.measured(case, own) for case, own in parts]
        return measured | _against_masks(parts) | _against_truth(parts) | function.summary(patients)


def _against_masks(parts: Sequence[tuple[PreparedCase, Tensor]]) -> dict[str, float]:
    marked = [(case, field) for case, field in parts if "end_systolic_myocardium" in case.optional]
    if not marked:
        return {}
    before = torch.cat([case.myocardium for case, _ in marked])
    systolic = torch.cat([case.optional["end_systolic_myocardium"] for case, _ in marked])
    moved = warp_masks(before, torch.cat([field for _, field in marked]))
    return {
        "val/dice_es": agreement.mean_dice(moved, systolic),
        "val/dice_es_before": agreement.mean_dice(before, systolic),
    }


def _against_truth(parts: Sequence[tuple[PreparedCase, Tensor]]) -> dict[str, float]:
    known = [(case, field) for case, field in parts if "displacement" in case.optional]
    if not known:
        return {}
    field = torch.cat([field for _, field in known])
    true = torch.cat([case.optional["displacement"] for case, _ in known])
    within = torch.cat([case.optional["end_systolic_myocardium"] for case, _ in known])
    error = agreement.endpoint_error(field, true, within)
    return {
        "val/epe_px": error,
        "val/epe_mm": error * known[0][0].pixel_mm,
        "val/epe_px_before": agreement.endpoint_error(torch.zeros_like(field), true, within),
    }
