"""Pictures and files about motion."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from projects.cardiac import agreement, figures
from projects.cardiac.deformation import DeformationNet, inverse, jacobian_determinant, warp
from projects.cardiac.prepared import PreparedCase


@dataclass(frozen=True)
class Gallery:
    """Pictures the motion of the middle slice of some cases, as ``val/CASE``."""

    net: DeformationNet
    cases: Sequence[PreparedCase]

    def __call__(self) -> dict[str, Figure]:
        """Return a figure a case."""
        return {f"val/{case.name}": picture(self.net, case, len(case.cine) // 2) for case in self.cases}


@dataclass(frozen=True)
class Report:
    """Measures and writes the motion of every case."""

    net: DeformationNet
    cases: Sequence[PreparedCase]

    def __call__(self, folder: Path) -> dict[str, float]:
        """Fill the folder and return means over the slices; of endpoint errors, over all pixels, as while training.

        ::

            motion/CASE.nii.gz   displacements from end diastole to end systole at the pixels of end systole, backward, in
                                 mm, (H, W, D, 1, 2), with the input's affine
            figures/CASE.png     arrows, warped grid, determinant of the Jacobian
            cine/CASE.gif        the myocardium of end diastole carried through the beat
            per_slice.csv        scores
            metrics.json         what is returned
        """
        for name in ("figures", "cine"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        rows = []
        for case in self.cases:
            field = self.net.field(case.diastolic, case.systolic)
            case.write_field(field.numpy(), folder / "motion" / f"{case.name}.nii.gz")
            middle = len(case.cine) // 2
            picture(self.net, case, middle).savefig(folder / "figures" / f"{case.name}.png", dpi=110)
            write_carried(self.net, case, middle, folder / "cine" / f"{case.name}.gif")
            rows += [{"case": case.name, "slice": case.slices[i], **scores(case, field, i)} for i in range(len(field))]
        table = pd.DataFrame(rows)
        table.to_csv(folder / "per_slice.csv", index=False)
        means = table.drop(columns=["case", "slice", "wall_pixels"], errors="ignore").mean()
        for name in table.columns.intersection(["epe_px", "epe_mm"]):
            means[name] = (table[name] * table["wall_pixels"]).sum() / table["wall_pixels"].sum()
        metrics = {f"val/{name}": float(value) for name, value in means.items()}
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        return metrics


def scores(case: PreparedCase, field: torch.Tensor, index: int) -> dict[str, float]:
    """Scores of one slice, of displacements (D, 2, S, S)."""
    found = {"folded_percent": agreement.folded_percent(jacobian_determinant(field[index, None]))}
    systolic = case.optional.get("end_systolic_myocardium")
    if systolic is None:
        return found
    moved = carried(case, field)[index]
    found["dice_es"] = agreement.dice(moved, systolic[index])
    if (distance := agreement.hd95(moved, systolic[index], case.pixel_mm)) is not None:
        found["hd95_es_mm"] = distance
    if "displacement" in case.optional:
        true = case.optional["displacement"][index, None]
        found["wall_pixels"] = float(systolic[index].sum())
        found["epe_px"] = agreement.endpoint_error(field[index, None], true, systolic[index, None])
        found["epe_mm"] = found["epe_px"] * case.pixel_mm
    return found


def carried(case: PreparedCase, field: torch.Tensor) -> torch.Tensor:
    """The myocardium of end diastole, carried by displacements (D, 2, S, S): (D, S, S) bool."""
    return warp(case.myocardium[:, None].float(), field)[:, 0] > 0.5


def picture(net: DeformationNet, case: PreparedCase, index: int) -> Figure:
    """The motion of one slice."""
    field = net.field(case.diastolic, case.systolic)
    return figures.motion(
        case.diastolic[index, 0].numpy(),
        case.systolic[index, 0].numpy(),
        inverse(field)[index].numpy(),
        case.myocardium[index].numpy(),
        carried(case, field)[index].numpy(),
    )


def write_carried(net: DeformationNet, case: PreparedCase, index: int, file: Path) -> None:
    """Write one slice as a GIF, with the myocardium of end diastole carried into every frame."""
    frames = case.cine[index, :, None]
    field = net.field(frames[case.end_diastole].expand_as(frames), frames)
    walls = warp(case.myocardium[index].float().expand(len(frames), 1, -1, -1), field)[:, 0] > 0.5
    figures.write_cine(frames[:, 0].numpy(), [wall.numpy() for wall in walls], file)
