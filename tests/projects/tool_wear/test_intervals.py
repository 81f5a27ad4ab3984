"""Split-conformal intervals cover the promised share."""

import numpy as np
import pytest

from projects.tool_wear.intervals import ConformalRegressor, least_windows, margin, outside, widened


@pytest.mark.parametrize(("coverage", "windows"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_so_many_windows_are_the_least_that_give_a_finite_interval(coverage: float, windows: int) -> None:
    assert least_windows(coverage) == windows
    scores = np.arange(windows, dtype=np.float64)
    assert margin(scores, coverage) == windows - 1
    with pytest.raises(ValueError, match=f"Expected at least {windows}"):
        margin(scores[1:], coverage)


def test_the_margin_is_the_score_in_the_place_that_the_rule_names() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 21.0))
    assert margin(scores, 0.9) == 19.0  # ceil(21 * 0.9)
    assert margin(scores, 0.5) == 11.0


def test_further_windows_are_covered_as_often_as_promised(rng: np.random.Generator) -> None:
    covered = []
    for _ in range(400):
        known, further = rng.exponential(10.0, 30), rng.exponential(10.0, 50)
        covered.append((further <= margin(known, 0.8)).mean())
    # 25 of 31 places; the mean over so many draws is within 0.02 of it
    assert np.mean(covered) == pytest.approx(25 / 31, abs=0.02)


def test_limits_that_are_too_far_apart_come_closer_and_never_leave_the_estimate_out() -> None:
    wear, lower, upper = np.array([50.0, 60.0]), np.array([10.0, 50.0]), np.array([90.0, 70.0])
    assert outside(wear, lower, upper).tolist() == [-40.0, -10.0]
    low, high = widened(wear, lower, upper, -15.0)
    assert low.tolist() == [25.0, 60.0]
    assert high.tolist() == [75.0, 60.0]


def test_wear_is_never_below_zero() -> None:
    low, high = widened(np.array([3.0]), np.array([1.0]), np.array([5.0]), 4.0)
    assert (low.tolist(), high.tolist()) == ([0.0], [9.0])


class _Constant:
    def predict(self, signals: np.ndarray) -> np.ndarray:
        return np.full(len(signals), 40.0)


def test_a_calibrated_regressor_covers_the_windows_that_it_was_calibrated_on() -> None:
    signals, wear = np.zeros((20, 4, 1), dtype=np.float32), np.arange(30.0, 50.0)
    regressor = ConformalRegressor.calibrated(_Constant(), signals, wear, 0.9)
    low, high = regressor.interval(signals)
    assert regressor.margin == 9.0
    assert ((low <= wear) & (wear <= high)).mean() >= 0.9
    assert regressor.predict(signals).tolist() == [40.0] * 20
