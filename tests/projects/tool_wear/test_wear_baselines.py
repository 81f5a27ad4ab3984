"""Simple regressors train on some tools and calibrate on others."""

import numpy as np
import pytest

from projects.tool_wear.wear_baselines import QUICK, WearBaselines
from projects.tool_wear.windows import Windows, split_by_tool


@pytest.fixture(scope="module")
def baselines(small: Windows) -> WearBaselines:
    return WearBaselines(split_by_tool(small, ["c5"], ["c6"]), 0.9, kernels=0)


def test_the_mean_is_that_of_the_training_windows(baselines: WearBaselines, small: Windows) -> None:
    estimates = baselines.estimates("mean", small.of(["c6"]))
    np.testing.assert_allclose(estimates.wear, small.of(["c1", "c4"]).wear.mean(), rtol=1e-6)


@pytest.mark.parametrize("name", ["ridge", "random forest"])
def test_signals_tell_more_than_the_mean(baselines: WearBaselines, small: Windows, name: str) -> None:
    test = small.of(["c6"])
    error = baselines.estimates(name, test).scores()["mae_um"]
    assert error < 0.6 * baselines.estimates("mean", test).scores()["mae_um"]


@pytest.mark.parametrize("name", QUICK)
def test_the_interval_covers_the_windows_that_it_was_calibrated_on(
    baselines: WearBaselines, small: Windows, name: str
) -> None:
    scores = baselines.estimates(name, small.of(["c5"])).scores()
    assert 0.9 <= scores["coverage"] <= 0.95


def test_without_kernels_there_is_no_rocket(baselines: WearBaselines) -> None:
    assert baselines.names == QUICK
