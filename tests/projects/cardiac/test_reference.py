"""The figure of the motion network beside its baselines: no motion at all, and classical registration. See docs/cardiac.md."""

from pathlib import Path

import pandas as pd
import pytest
import torch

import mltrain
from projects.cardiac import chain, motion, preparation, weights

SCORES = ("epe_px", "dice_es")
SEEDS = (0, 1, 2)


def measured(seed: int, folder: Path) -> dict[str, float]:
    """Train motion; return the scores of held-out patients and baselines."""
    given = {"seed": seed, "num_threads": 1}
    preparation.prepare(preparation.Config.load(preset="small", overrides={**given, "cases": 24}), folder / "prepared")
    given["prepared"] = folder / "prepared"
    chain.train("motion", "small", folder / "motion", **given)
    task = motion.build(motion.Config.load(overrides=given))
    assert isinstance(task.step, mltrain.Supervised)
    weights.load(task.step.model, folder / "motion", "motion")
    assert task.report is not None
    with torch.no_grad():
        return dict(task.report(folder / "report"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_motion_network_keeps_its_figures_beside_its_baselines(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    table = pd.DataFrame([measured(seed, tmp_path / str(seed)) for seed in SEEDS], index=SEEDS)
    wanted = [f"val/{score}{other}" for score in SCORES for other in ("", "_optical_flow", "_before")]
    print(table[[*wanted, "val/ef_error_points", "val/ef_reference_percent", "val/strain_error_points"]].to_string())
    # The network refines classical registration, and must not spoil it.
    assert (table["val/epe_px"] < 1.02 * table["val/epe_px_optical_flow"]).all()
    assert (table["val/epe_px"] < 0.25 * table["val/epe_px_before"]).all()
    assert (table["val/dice_es"] > table["val/dice_es_optical_flow"]).all()
    assert (table["val/dice_es"] > table["val/dice_es_before"] + 0.15).all()
    assert (table["val/strain_error_points"] < 3).all()
    # Without motion nothing is ejected, so the reference itself is the error of that baseline.
    assert (table["val/ef_error_points"] < table["val/ef_reference_percent"] / 10).all()
