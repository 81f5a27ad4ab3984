"""Intervals of wear that hold for a stated share of the windows: split-conformal prediction.

A method is fitted on the training tools; its errors on the validation tools say how wide an interval has to be. If further
windows are exchangeable with those of the validation tools, the interval covers their wear with the stated probability, whatever
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
    """Return how many validation windows an interval of this coverage needs; with fewer it would be infinite."""
    windows = math.ceil(coverage / (1.0 - coverage) - 1e-9)
    return max(windows, 1)


def margin(scores: Array, coverage: float) -> float:
    """Return the margin that covers: of n scores the one in place ceil((n + 1) * coverage), counted from the smallest.

    Args:
        scores: by how much the wear of each validation window lies outside its interval [um], negative inside; shape (n,).
        coverage: share of further windows that have to lie inside, above 0 and below 1.

    Raises:
        ValueError: there are fewer scores than :func:`least_windows`.
    """
    place = math.ceil((len(scores) + 1) * coverage - 1e-9)
    if place > len(scores):
        raise ValueError(
            f"{len(scores)} scores for a coverage of {coverage:g}; {least_windows(coverage)} are the least"
        )
    return float(np.sort(scores)[max(place, 1) - 1])


def outside(wear: Array, lower: Array, upper: Array) -> Array:
    """Return how far wear lies outside of intervals, negative inside [um]; all arrays have the shape (n,).

    It is the score of conformalised quantile regression (Romano, Patterson and Candès, NeurIPS 2019).
    """
    return np.maximum(lower - wear, wear - upper)


def widened(estimate: Array, lower: Array, upper: Array, by: float) -> tuple[Array, Array]:
    """Return the limits of intervals moved outwards [um]; they keep the estimate between them, and stay at 0 or above."""
    return np.maximum(np.minimum(lower - by, estimate), 0.0), np.maximum(np.maximum(upper + by, estimate), 0.0)


class ConformalRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn ships no types
    """A regressor whose predictions get an interval of constant width from windows that it was not fitted on.

    Args:
        regressor: a scikit-learn pipeline, fitted: windows (N, T, C) to wear [um].
        margin: half the width of the interval [um].
    """

    def __init__(self, regressor: Any = None, margin: float = 0.0) -> None:
        self.regressor = regressor
        self.margin = margin

    @classmethod
    def calibrated(cls, regressor: Any, signals: NDArray[np.float32], wear: Array, coverage: float) -> Self:
        """Return the regressor with the margin that covers the wear [um] of these windows (N, T, C).

        Raises:
            ValueError: there are fewer windows than :func:`least_windows`.
        """
        return cls(regressor, margin(np.abs(np.ravel(regressor.predict(signals)) - wear), coverage))

    def predict(self, signals: NDArray[np.float32]) -> Array:
        """Return the wear of windows (N, T, C) [um], shape (N,); it is 0 or more."""
        return np.maximum(np.ravel(self.regressor.predict(signals)).astype(np.float64), 0.0)

    def interval(self, signals: NDArray[np.float32]) -> tuple[Array, Array]:
        """Return the lower and the upper limit of the wear of windows (N, T, C) [um], shape (N,) each."""
        wear = self.predict(signals)
        return widened(wear, wear, wear, self.margin)
