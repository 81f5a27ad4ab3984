"""Scores, pictures and files of predicted infarcts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from projects.cardiac import agreement, aha, figures
from projects.cardiac.infarct_input import EXACT, Seen, reference_name


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores of one patient against a reference.

    Attributes:
        dice: over all slices. ``None`` for a patient without an infarct.
        hd95_mm: mean over the slices with an infarct in both; ``None`` without such a slice.
        found_percent, reference_percent: predicted and reference infarct size, relative to the myocardium.
        called, infarcted: whether the network and the reference have an infarct.
        segments: AHA segment to its predicted and its reference share of infarct.
        reference: name of the reference: the exact infarct, or the label carried over.
    """

    name: str
    dice: float | None
    hd95_mm: float | None
    found_percent: float
    reference_percent: float
    called: bool
    infarcted: bool
    segments: dict[int, tuple[float, float]]
    reference: str


@dataclass(frozen=True)
class Judge:
    """Predicts infarcts and scores them.

    Attributes:
        net: the infarct network.
        inputs: its choice of input channels.
        threshold: infarct is where the probability is above this.
        least_mm2: a patient with less than this in every slice has no infarct.
        least_share: an AHA segment counts as infarcted from this share on.
    """

    net: nn.Module
    inputs: str
    threshold: float
    least_mm2: float
    least_share: float

    @torch.no_grad()
    def logits(self, patient: Seen) -> Tensor:
        """Return logits (D, 1, S, S), on the CPU; the network is left in evaluation mode."""
        self.net.eval()
        device = next(self.net.parameters()).device
        found: Tensor = self.net(patient.channels(self.inputs).to(device))
        return found.cpu()

    def probability(self, patient: Seen) -> Tensor:
        """Return the probability of infarct (D, S, S), 0 outside the myocardium."""
        return self.logits(patient).sigmoid()[:, 0] * patient.case.myocardium

    def judged(self, patient: Seen, probability: Tensor) -> Judged:
        """Score a probability (D, S, S)."""
        case, reference = patient.case, patient.reference
        found = (probability > self.threshold) & case.myocardium
        pixels = int(case.myocardium.sum())
        numbers = case.segments()
        found_shares, reference_shares = (aha.shares(numbers, mask.numpy()) for mask in (found, reference))
        largest = float(found.sum((1, 2)).max()) * case.pixel_mm**2
        return Judged(
            name=case.name,
            dice=agreement.dice(found, reference) if bool(reference.any()) else None,
            hd95_mm=agreement.mean_hd95(found, reference, case.pixel_mm),
            found_percent=100 * int(found.sum()) / pixels,
            reference_percent=100 * int(reference.sum()) / pixels,
            called=largest >= max(self.least_mm2, 1e-9),
            infarcted=bool(reference.any()),
            segments={number: (found_shares[number], reference_shares[number]) for number in found_shares},
            reference=reference_name([patient]),
        )


@dataclass(frozen=True)
class Gallery:
    """Pictures the middle slice of some patients, as ``val/CASE``."""

    judge: Judge
    patients: Sequence[Seen]

    def __call__(self) -> dict[str, Figure]:
        """Return a figure for each patient."""
        return {
            f"val/{patient.case.name}": picture(patient, self.judge.probability(patient), self.judge.threshold)
            for patient in self.patients
        }


@dataclass(frozen=True)
class Report:
    """Predicts, scores and writes the infarct of every patient."""

    judge: Judge
    patients: Sequence[Seen]

    def __call__(self, folder: Path) -> dict[str, float]:
        """Fill the folder and return the scores.

        ::

            infarct/CASE.nii.gz   predicted infarct, uint8, with the input's affine and zooms
            figures/CASE.png      predicted and reference infarct over the anatomy
            bulls_eye/CASE.png    predicted and reference share of each AHA segment
            bland_altman.png      infarct size
            per_case.csv  per_segment.csv  metrics.json
        """
        for name in ("figures", "bulls_eye"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        judged = []
        for patient in self.patients:
            probability = self.judge.probability(patient)
            name = patient.case.name
            patient.case.write_mask(probability.numpy(), folder / "infarct" / f"{name}.nii.gz", self.judge.threshold)
            picture(patient, probability, self.judge.threshold).savefig(folder / "figures" / f"{name}.png", dpi=110)
            one = self.judge.judged(patient, probability)
            shares = [{number: pair[side] for number, pair in one.segments.items()} for side in (0, 1)]
            target = figures.bulls_eye(shares, (f"{name}: found", one.reference), "share of infarct")
            target.savefig(folder / "bulls_eye" / f"{name}.png", dpi=90)
            judged.append(one)
        sizes = np.array([(one.found_percent, one.reference_percent) for one in judged])
        names = reference_name(self.patients)
        figures.bland_altman(sizes[:, 0], sizes[:, 1], names).savefig(folder / "bland_altman.png", dpi=110)
        per_case(judged).to_csv(folder / "per_case.csv", index=False)
        per_segment(judged, self.judge.least_share).to_csv(folder / "per_segment.csv", index=False)
        metrics = summary(judged) | segment_summary(judged, self.judge.least_share)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        return metrics


def picture(patient: Seen, probability: Tensor, threshold: float) -> Figure:
    """Draw the infarct in the middle slice of a patient."""
    index = len(patient.label) // 2
    return figures.infarct(
        patient.case.diastolic[index, 0].numpy(),
        probability[index].numpy(),
        (probability[index] > threshold).numpy(),
        patient.reference[index].numpy(),
        patient.case.myocardium[index].numpy(),
        reference_name([patient]),
    )


def summary(judged: Sequence[Judged]) -> dict[str, float]:
    """Return the scores over patients.

    ``val/infarct_dice`` is the mean over patients with an infarct, ``val/hd95_mm`` that over those with a predicted one too.
    Sizes are compared by Bland and Altman's method: bias, and half the width of the limits of agreement.
    """
    overlaps = [one.dice for one in judged if one.dice is not None]
    distances = [one.hd95_mm for one in judged if one.hd95_mm is not None]
    difference = np.array([one.found_percent - one.reference_percent for one in judged])
    scores = {
        "val/patient_accuracy": float(np.mean([one.called == one.infarcted for one in judged])),
        "val/size_bias_percent": float(difference.mean()),
        "val/size_limits_percent": 1.96 * float(difference.std(ddof=1)) if len(judged) > 1 else 0.0,
        # Without any held-out infarct there is nothing to overlap with, but a run needs its best_metric.
        "val/infarct_dice": float(np.mean(overlaps)) if overlaps else 0.0,
    }
    return scores | ({"val/hd95_mm": float(np.mean(distances))} if distances else {})


def segment_summary(judged: Sequence[Judged], least_share: float) -> dict[str, float]:
    """Return sensitivity and specificity over all segments of all patients."""
    calls = [
        (found >= least_share, reference >= least_share) for one in judged for found, reference in one.segments.values()
    ]
    sensitivity, specificity = _rates(calls)
    return {
        name: value
        for name, value in (
            ("val/segment_sensitivity", sensitivity),
            ("val/segment_specificity", specificity),
        )
        if value is not None
    }


def per_case(judged: Sequence[Judged]) -> pd.DataFrame:
    """Return one row per patient; ``true_percent`` only if the exact infarct is known."""
    columns = ("name", "dice", "hd95_mm", "found_percent", "reference", "reference_percent", "called", "infarcted")
    rows = [{column: getattr(one, column) for column in columns} for one in judged]
    for row in rows:
        row["true_percent"] = row["reference_percent"] if row["reference"] == EXACT else None
    return pd.DataFrame(rows)


def per_segment(judged: Sequence[Judged], least_share: float) -> pd.DataFrame:
    """Return one row per segment: patients that have it, those with infarct in it, sensitivity and specificity."""
    rows = []
    for number in aha.SEGMENTS:
        shares = [one.segments[number] for one in judged if number in one.segments]
        calls = [(found >= least_share, reference >= least_share) for found, reference in shares]
        sensitivity, specificity = _rates(calls)
        rows.append(
            {
                "segment": number,
                "patients": len(calls),
                "infarcted": sum(positive for _, positive in calls),
                "sensitivity": sensitivity,
                "specificity": specificity,
            }
        )
    return pd.DataFrame(rows)


def _rates(calls: Sequence[tuple[bool, bool]]) -> tuple[float | None, float | None]:
    positive = [found for found, true in calls if true]
    negative = [not found for found, true in calls if not true]
    return (
        sum(positive) / len(positive) if positive else None,
        sum(negative) / len(negative) if negative else None,
    )
