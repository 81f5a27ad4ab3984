"""Stage 3: the infarct in the cine pictures, from the motion of the wall.

Training needs late enhancement, prediction does not: the registration network carries its label over, and the motion
network computes displacements for the input.
"""

from collections.abc import Sequence
from typing import cast

import torch
from monai.losses.dice import DiceFocalLoss
from monai.networks.nets.attentionunet import AttentionUnet
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset

import mltrain
from mltrain.errors import DataError
from projects.cardiac import agreement, infarct_report, prepared, weights
from projects.cardiac.deformation import DeformationNet
from projects.cardiac.infarct_input import CHANNELS, Seen, seen
from projects.cardiac.prepared import PreparedCase
from projects.cardiac.registration import with_late_enhancement
from projects.cardiac.stages.infarct import Config as Config

VECTORS = ("rows", "columns")


def build(config: Config) -> mltrain.Task:
    """Build network, optimizer and schedule from prepared cases.

    The two earlier networks run on the cases first.

    Raises:
        mltrain.errors.DataError: prepared cases or weights are missing, or there is no infarct to learn from.
    """
    cohort = prepared.read(config.prepared)
    motion, registration = weights.motion_net(config.motion_weights), DeformationNet("registration")
    weights.load(registration, config.registration_weights, "registration")
    train, val = (
        seen(_usable(part, config.labels), motion, registration, config.labels) for part in (cohort.train, cohort.val)
    )
    if not any(patient.label.any() for patient in train):
        raise DataError(f"None of the {len(train)} patients to train on has an infarct; there is nothing to learn.")
    loader = mltrain.ResumableLoader(Slices(train, config.inputs, turns=config.turns), config.batch_size)
    net = InfarctNet(config.inputs)
    loss = DiceFocalLoss(sigmoid=True)
    optimizer = AdamW(net.parameters(), config.lr)
    # One more than the steps: the schedule also steps after the last one.
    scheduler = OneCycleLR(optimizer, config.lr, total_steps=config.epochs * len(loader) + 1)
    step = mltrain.Supervised(net, loss, optimizer, scheduler=scheduler, clip=config.clip)
    judge = infarct_report.Judge(net, config.inputs, config.threshold, config.least_mm2, config.least_share)
    return mltrain.Task(
        step,
        loader,
        evaluate=Validation(judge, loss, val),
        images=infarct_report.Gallery(judge, val[: config.shown]),
        report=infarct_report.Report(judge, val),
        predictor=lambda: (nn.Sequential(net, nn.Sigmoid()), train[0].channels(config.inputs)[[0, 0]]),
    )


def _usable(cases: Sequence[PreparedCase], labels: str) -> tuple[PreparedCase, ...]:
    late = with_late_enhancement(cases)
    if labels == "exact" and not all("infarct" in case.optional for case in late):
        raise DataError("labels=exact needs exact infarcts, which only phantoms have. Try: labels=carried_over")
    return late


class InfarctNet(nn.Module):
    """Maps inputs (N, C, H, W) to logits (N, 1, H, W), far below zero outside the myocardium; H and W: multiples of 8.

    An attention U-Net (Oktay et al., MIDL 2018) with 16, 32, 64 and 128 channels.

    Args:
        inputs: the channels, see :data:`projects.cardiac.infarct_input.CHANNELS`.
    """

    def __init__(self, inputs: str) -> None:
        super().__init__()
        names = CHANNELS[inputs]
        self._wall = names.index("myocardium")
        self.unet = AttentionUnet(2, len(names), 1, (16, 32, 64, 128), (2, 2, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of the infarct."""
        wall = inputs[:, self._wall, None]
        return cast(Tensor, self.unet(inputs)) * wall - 15.0 * (1 - wall)


class Slices(Dataset[tuple[Tensor, Tensor]]):
    """Inputs (C, S, S) and labels (1, S, S) float32 of all slices.

    If ``turns``, each is turned and mirrored at random.
    """

    def __init__(self, patients: Sequence[Seen], inputs: str, *, turns: bool) -> None:
        self._inputs = torch.cat([patient.channels(inputs) for patient in patients])
        self._labels = torch.cat([patient.label[:, None].float() for patient in patients])
        names = CHANNELS[inputs]
        self._vector = [names.index(name) for name in VECTORS] if VECTORS[0] in names else []
        self._turns = turns

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self._inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one slice."""
        inputs, label = self._inputs[index], self._labels[index]
        if not self._turns:
            return inputs, label
        turns, mirrored = int(torch.randint(4, ())), bool(torch.randint(2, ()))
        return turned(inputs, turns, mirrored, self._vector), turned(label, turns, mirrored, [])


def turned(planes: Tensor, turns: int, mirrored: bool, vector: Sequence[int]) -> Tensor:
    """Mirror planes (C, H, W) left to right, then turn them.

    A quarter turn is from rows towards columns. The two planes named by ``vector``, rows and columns of a displacement,
    change their direction too.
    """
    planes = planes.clone()
    if mirrored:
        planes = planes.flip(-1)
        if vector:
            planes[vector[1]] *= -1
    for _ in range(turns):
        planes = planes.rot90(1, (-2, -1))
        if vector:
            rows, columns = vector
            planes[[rows, columns]] = torch.stack([-planes[columns], planes[rows]])
    return planes


class Validation:
    """Scores the infarcts of held-out patients, see :class:`projects.cardiac.infarct_report.Judge`.

    ``val/loss`` compares with the training labels. All other scores compare with the exact infarct of a phantom, or with the
    label carried over of a patient. ``val/carried_over_dice``, for phantoms only, compares the label carried over with the exact
    infarct: the mean Dice coefficient over phantoms with an infarct.
    """

    def __init__(self, judge: infarct_report.Judge, loss: nn.Module, patients: Sequence[Seen]) -> None:
        self._judge = judge
        self._loss = loss
        self._patients = patients

    def __call__(self) -> dict[str, float]:
        """Return the scores."""
        logits = [self._judge.logits(patient) for patient in self._patients]
        labels = torch.cat([patient.label[:, None].float() for patient in self._patients])
        carried = [
            agreement.dice(patient.carried, patient.exact)
            for patient in self._patients
            if patient.exact is not None and bool(patient.exact.any())
        ]
        measured = {"val/loss": float(self._loss(torch.cat(logits), labels))}
        if carried:
            measured["val/carried_over_dice"] = sum(carried) / len(carried)
        judged = [
            self._judge.judged(patient, one.sigmoid()[:, 0])
            for patient, one in zip(self._patients, logits, strict=True)
        ]
        return measured | infarct_report.summary(judged)
