"""Pictures and files of motion."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from projects.cardiac import agreement, figures, function
from projects.cardiac.deformation import DeformationNet, inverse, jacobian_determinant, warp_masks
from projects.cardiac.function import Function
from projects.cardiac.optical_flow import optical_flow
from projects.cardiac.prepared import PreparedCase

log = logging.getLogger(__name__)

_COMPARED = ("dice_es", "hd95_es_mm", "epe_px", "epe_mm")


@dataclass(frozen=True)
class Gallery:
    """Pictures the motion of middle slices, as ``val/CASE``."""

    net: DeformationNet
    cases: Sequence[PreparedCase]

    def __call__(self) -> dict[str, Figure]:
        """Return a figure for each case."""
        return {f"val/{case.name}": picture(case, self.net.field(case.diastolic, case.systolic)) for case in self.cases}


@dataclass(frozen=True)
class Report:
    """Computes, scores and writes the motion of every case."""

    net: DeformationNet
    cases: Sequence[PreparedCase]

    def __call__(self, folder: Path) -> dict[str, float]:
        """Fill the folder and return means over the slices; for endpoint errors over all pixels, as in training.

        ::

            motion/CASE.nii.gz   displacements from end diastole to end systole at the pixels of end systole, backward, in
                                 mm, (H, W, D, 1, 2), with the input's affine
            figures/CASE.png     arrows, warped grid, determinant of the Jacobian
            strain/CASE.png      circumferential strain of each AHA segment
            cine/CASE.gif        the myocardium of end diastole carried through the beat
            function.csv         volumes, ejection fraction and strain of each case
            per_segment.csv      strain of each AHA segment of each case
            per_slice.csv        scores; …_before: without motion; …_optical_flow: by optical flow alone
            metrics.json         the returned metrics
        """
        for name in ("figures", "cine", "strain"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        rows, patients = [], []
        for case in self.cases:
            field = self.net.field(case.diastolic, case.systolic)
            patients.append(function.measured(case, field))
            strain_picture(patients[-1]).savefig(folder / "strain" / f"{case.name}.png", dpi=90)
            case.write_field(field.numpy(), folder / "motion" / f"{case.name}.nii.gz")
            picture(case, field).savefig(folder / "figures" / f"{case.name}.png", dpi=110)
            write_carried(self.net, case, folder / "cine" / f"{case.name}.gif")
            others = {"before": torch.zeros_like(field), "optical_flow": optical_flow(case.diastolic, case.systolic)}
            for index in range(len(field)):
                row = {"case": case.name, "slice": case.slices[index], **scores(case, field, index)}
                for name, other in others.items():
                    row |= {
                        f"{score}_{name}": value
                        for score, value in scores(case, other, index).items()
                        if score in _COMPARED
                    }
                rows.append(row)
        table = pd.DataFrame(rows)
        table.to_csv(folder / "per_slice.csv", index=False)
        means = table.drop(columns=["case", "slice", "wall_pixels"], errors="ignore").mean()
        for name in [column for column in table.columns if column.startswith("epe_")]:
            means[name] = (table[name] * table["wall_pixels"]).sum() / table["wall_pixels"].sum()
        metrics = {f"val/{name}": float(value) for name, value in means.items()}
        metrics |= function.summary(patients) | function.segment_means(patients)
        per_patient(patients).to_csv(folder / "function.csv", index=False)
        per_segment(patients).to_csv(folder / "per_segment.csv", index=False)
        _log_comparison(metrics)
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        return metrics


def _log_comparison(metrics: Mapping[str, float]) -> None:
    """Log the network beside its baselines, with the best."""
    for score, sense, unit in (("dice_es", -1, ""), ("epe_mm", 1, " mm")):
        values = {
            name: metrics[f"val/{score}{ending}"]
            for name, ending in (("the network", ""), ("optical flow", "_optical_flow"), ("no motion", "_before"))
            if f"val/{score}{ending}" in metrics
        }
        if values:
            shown = ", ".join(f"{name} {value:.3f}{unit}" for name, value in values.items())
            best = min(values, key=lambda name: sense * values[name])
            log.info("%s: %s. The best is %s.", "Dice at end systole" if sense < 0 else "Endpoint error", shown, best)


def per_patient(patients: Sequence[Function]) -> pd.DataFrame:
    """Return one row per patient: volumes in ml, ejection fraction and strain in percent."""
    return pd.DataFrame(
        [
            {
                "case": one.name,
                "edv_ml": one.edv_ml,
                "esv_ml": one.esv_ml,
                "ef_percent": one.ef_percent,
                "esv_reference_ml": one.reference_esv_ml,
                "ef_reference_percent": one.reference_ef_percent,
                function.CIRCUMFERENTIAL: one.circumferential,
                function.RADIAL: one.radial,
            }
            for one in patients
        ]
    )


def per_segment(patients: Sequence[Function]) -> pd.DataFrame:
    """Return one row per segment and patient; for phantoms with the exact strain beside that found."""
    rows = []
    for one in patients:
        for number, (circumferential, radial) in one.segments.items():
            row = {
                "case": one.name,
                "segment": number,
                function.CIRCUMFERENTIAL: circumferential,
                function.RADIAL: radial,
            }
            if number in one.reference_segments:
                known = zip((function.CIRCUMFERENTIAL, function.RADIAL), one.reference_segments[number], strict=True)
                row |= {f"{name}_exact": value for name, value in known}
            rows.append(row)
    return pd.DataFrame(rows)


def strain_picture(patient: Function) -> Figure:
    """Draw the circumferential strain of the segments; for phantoms with the exact strain beside it."""
    both = [("found", patient.segments), ("exact", patient.reference_segments)]
    shown = [(name, {number: pair[0] for number, pair in values.items()}) for name, values in both if values]
    return figures.bulls_eye(
        [values for _, values in shown],
        [f"{patient.name}: {name}" for name, _ in shown],
        "circumferential strain [%]",
        limits=(-25.0, 5.0),
        form="z.0f",
    )


def scores(case: PreparedCase, field: torch.Tensor, index: int) -> dict[str, float]:
    """Return the scores of one slice for displacements (D, 2, S, S)."""
    found = {"folded_percent": agreement.folded_percent(jacobian_determinant(field[index, None]))}
    systolic = case.optional.get("end_systolic_myocardium")
    if systolic is None:
        return found
    moved = warp_masks(case.myocardium, field)[index]
    found["dice_es"] = agreement.dice(moved, systolic[index])
    if (distance := agreement.hd95(moved, systolic[index], case.pixel_mm)) is not None:
        found["hd95_es_mm"] = distance
    if "displacement" in case.optional:
        true = case.optional["displacement"][index, None]
        found["wall_pixels"] = float(systolic[index].sum())
        found["epe_px"] = agreement.endpoint_error(field[index, None], true, systolic[index, None])
        found["epe_mm"] = found["epe_px"] * case.pixel_mm
    return found


def picture(case: PreparedCase, field: torch.Tensor) -> Figure:
    """Draw the motion of the middle slice, by displacements (D, 2, S, S)."""
    index = len(case.cine) // 2
    return figures.motion(
        case.diastolic[index, 0].numpy(),
        case.systolic[index, 0].numpy(),
        inverse(field)[index].numpy(),
        case.myocardium[index].numpy(),
        warp_masks(case.myocardium, field)[index].numpy(),
        pixel_mm=case.pixel_mm,
    )


def write_carried(net: DeformationNet, case: PreparedCase, file: Path) -> None:
    """Write the middle slice as a GIF.

    The myocardium of end diastole is carried into every frame.
    """
    index = len(case.cine) // 2
    frames = case.cine[index, :, None]
    field = net.field(frames[case.end_diastole].expand_as(frames), frames)
    walls = warp_masks(case.myocardium[index].expand(len(frames), -1, -1), field)
    figures.write_cine(frames[:, 0].numpy(), [wall.numpy() for wall in walls], file)
