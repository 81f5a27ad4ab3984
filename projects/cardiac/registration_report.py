"""Pictures and files of registration."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from projects.cardiac import agreement, figures
from projects.cardiac.deformation import DeformationNet, jacobian_determinant, warp, warp_masks
from projects.cardiac.prepared import PreparedCase


@dataclass(frozen=True)
class Gallery:
    """Pictures the registration of middle slices, as ``val/CASE``."""

    net: DeformationNet
    cases: Sequence[PreparedCase]

    def __call__(self) -> dict[str, Figure]:
        """Return a figure for each case."""
        return {f"val/{case.name}": picture(case, registered(self.net, case)) for case in self.cases}


@dataclass(frozen=True)
class Report:
    """Computes, scores and writes the registration of every case."""

    net: DeformationNet
    cases: Sequence[PreparedCase]

    def __call__(self, folder: Path) -> dict[str, float]:
        """Fill the folder and return means over the slices.

        ::

            label/CASE.nii.gz    the infarct label carried over, uint8, with the affine of the cine's input
            figures/CASE.png     contours before and after
            per_slice.csv        scores
            metrics.json         the returned metrics
        """
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        rows = []
        for case in self.cases:
            field = registered(self.net, case)
            label = warp(case.optional["lge_infarct"][:, None].float(), field)[:, 0] * case.myocardium
            case.write_mask(label.numpy(), folder / "label" / f"{case.name}.nii.gz")
            picture(case, field).savefig(folder / "figures" / f"{case.name}.png", dpi=110)
            rows += [{"case": case.name, "slice": case.slices[i], **scores(case, field, i)} for i in range(len(field))]
        table = pd.DataFrame(rows)
        table.to_csv(folder / "per_slice.csv", index=False)
        means = table.drop(columns=["case", "slice"]).mean()
        metrics = {f"val/{name}": float(value) for name, value in means.items()}
        (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        return metrics


def registered(net: DeformationNet, case: PreparedCase) -> torch.Tensor:
    """Return displacements (D, 2, S, S) from late enhancement to the end-diastolic frame."""
    return net.field(case.optional["lge"][:, None], case.diastolic)


def scores(case: PreparedCase, field: torch.Tensor, index: int) -> dict[str, float]:
    """Return the scores of one slice for displacements (D, 2, S, S)."""
    before, true = case.optional["lge_myocardium"][index], case.myocardium[index]
    after = warp_masks(case.optional["lge_myocardium"], field)[index]
    found = {
        "dice_myo": agreement.dice(after, true),
        "dice_myo_before": agreement.dice(before, true),
        "folded_percent": agreement.folded_percent(jacobian_determinant(field[index, None])),
    }
    for name, mask in (("hd95_myo_mm", after), ("hd95_myo_before_mm", before)):
        if (distance := agreement.hd95(mask, true, case.pixel_mm)) is not None:
            found[name] = distance
    return found


def picture(case: PreparedCase, field: torch.Tensor) -> Figure:
    """Draw the registration of the middle slice, by displacements (D, 2, S, S)."""
    index = len(case.cine) // 2
    late, walls = case.optional["lge"], case.optional["lge_myocardium"]
    return figures.registration(
        late[index].numpy(),
        warp(late[:, None], field)[index, 0].numpy(),
        case.diastolic[index, 0].numpy(),
        walls[index].numpy(),
        warp_masks(walls, field)[index].numpy(),
        case.myocardium[index].numpy(),
    )
