"""Intervals of wear that cover a given share of windows: split-conformal prediction.

A method is fitted on the training tools; its errors on the validation tools determine the width of the interval. If further
windows are exchangeable with those of the validation tools, the interval covers their wear with the given probability, whatever
the method (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; Lei et al., "Distribution-Free Predictive
Inference for Regression", Journal of the American Statistical Association 113, 2018). Windows of another tool are
exchangeable only as far as tools resemble one another, so reports measure the coverage on the test tools.
"""

import math
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin

Array = NDArray[np.float64]


def least_windows(coverage: float) -> int:
    """Return the least number of validation windows for this coverage; with fewer the interval would be infinite."""
    return math.ceil(coverage / (1.0 - coverage) - 1e-9)


def margin(scores: Array, coverage: float) -> float:
    """Return the margin: of n scores the ceil((n + 1) * coverage)-th smallest.

    Args:
        scores: distance by which the wear of each validation window lies outside its interval [um], negative inside; shape (n,).
        coverage: share of further windows that have to lie inside, above 0 and below 1.

    Raises:
        ValueError: there are fewer scores than :func:`least_windows`.
    """
    place = math.ceil((len(scores) + 1) * coverage - 1e-9)
    if place > len(scores):
        raise ValueError(
            f"{len(scores)} scores for a coverage of {coverage:g}. Expected at least {least_windows(coverage)}"
        )
    return float(np.sort(scores)[place - 1])


def outside(wear: Array, lower: Array, upper: Array) -> Array:
    """Return wear's distance from its interval [um], negative inside; all arrays have the shape (n,).

    It is the score of conformalised quantile regression (Romano, Patterson and Candès, NeurIPS 2019).
    """
    return np.maximum(lower - wear, wear - upper)


def widened(estimate: Array, lower: Array, upper: Array, by: float) -> tuple[Array, Array]:
    """Return interval limits moved outwards [um]; the estimate stays between them, and both are at least 0."""
    return np.maximum(np.minimum(lower - by, estimate), 0.0), np.maximum(np.maximum(upper + by, estimate), 0.0)


class ConformalRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types
    """A regressor with an interval of constant width.

    The interval is calibrated on windows that the regressor was not fitted on.

    Args:
        regressor: a fitted scikit-learn pipeline from windows (N, T, C) to wear [um].
        margin: half the width of the interval [um].
    """

    def __init__(self, regressor: Any = None, margin: float = 0.0) -> None:
        self.regressor = regressor
        self.margin = margin

    @classmethod
    def calibrated(cls, regressor: Any, signals: NDArray[np.float32], wear: Array, coverage: float) -> Self:
        """Return the regressor, calibrated on windows (N, T, C) and wear [um].

        Raises:
            ValueError: there are fewer windows than :func:`least_windows`.
        """
        return cls(regressor, margin(np.abs(np.ravel(regressor.predict(signals)) - wear), coverage))

    def predict(self, signals: NDArray[np.float32]) -> Array:
        """Return the wear of windows (N, T, C) [um], shape (N,); it is 0 or more."""
        return np.maximum(np.ravel(self.regressor.predict(signals)).astype(np.float64), 0.0)

    def interval(self, signals: NDArray[np.float32]) -> tuple[Array, Array]:
        """Return lower and upper limits (N,) [um] for windows (N, T, C)."""
        wear = self.predict(signals)
        return widened(wear, wear, wear, self.margin)
