"""Errors, coverage and width equal those computed by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from projects.tool_wear.estimates import Estimates, calibrate, error_line
from projects.tool_wear.learner import Recipe, WearLearner
from projects.tool_wear.project import Config
from projects.tool_wear.regressor import WearInterval
from projects.tool_wear.windows import Windows


@pytest.fixture
def estimates(small: Windows) -> Estimates:
    """Windows worn by 10, 20, 30 and 40 um. The last lies above its interval."""
    windows = replace(small.where(np.arange(len(small)) < 4), wear=np.array([10, 20, 30, 40], dtype=np.float32))
    wear = np.array([11.0, 18.0, 30.0, 34.0])
    return Estimates(windows, wear, wear - 4.0, wear + 4.0)


def test_scores_are_those_worked_out_by_hand(estimates: Estimates) -> None:
    scores = estimates.scores()
    assert scores["mae_um"] == pytest.approx((1 + 2 + 0 + 6) / 4)
    assert scores["rmse_um"] == pytest.approx(np.sqrt((1 + 4 + 0 + 36) / 4))
    assert scores["coverage"] == pytest.approx(3 / 4)
    assert scores["width_um"] == pytest.approx(8.0)


def test_other_programs_get_the_same_interval_from_the_exported_network(small: Windows) -> None:
    train, val = small.of(["c1", "c4"]), small.of(["c5"])
    recipe = Recipe.of(Config(hidden=4, layers=1, dropout=0.0))
    model = WearLearner.on(train, recipe, 0.8).model.eval()
    calibrate(model, val, 0.8)
    found = Estimates.of(model, val)
    with torch.no_grad():
        exported = WearInterval(model)(torch.from_numpy(val.signals)).numpy()
    np.testing.assert_allclose(exported, np.stack([found.lower, found.wear, found.upper], axis=1), rtol=1e-4, atol=1e-3)
    assert found.scores()["coverage"] >= 0.8


def test_the_written_table_is_read_back(estimates: Estimates, tmp_path: Path) -> None:
    estimates.write(tmp_path / "new")
    table = pd.read_csv(tmp_path / "new" / "predictions.csv")
    assert table["tool"].tolist() == ["c1"] * 4
    assert table["cut"].tolist() == [1, 1, 2, 2]
    assert table["wear_um"].tolist() == [10, 20, 30, 40]
    np.testing.assert_allclose(table[["lower_um", "predicted_um", "upper_um"]].iloc[3], [30, 34, 38])


def test_the_error_stands_in_one_line_beside_the_baselines() -> None:
    line = error_line(7.34, {"mean": 38.2, "ridge": 9.0})
    assert line == "mean error [um]: LSTM 7.3 (mean 38.2, ridge 9.0)"
