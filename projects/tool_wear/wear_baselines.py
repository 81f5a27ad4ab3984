"""Simple regressors of wear as baselines of the network."""

import numpy as np
from sklearn.base import clone
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from projects.tool_wear.baselines import summary
from projects.tool_wear.estimates import Estimates
from projects.tool_wear.intervals import ConformalRegressor
from projects.tool_wear.rocket import RocketFeatures
from projects.tool_wear.windows import Split, Windows

QUICK = ("mean", "ridge", "random forest")
"""Cheap baselines, which the pictures of every epoch name."""


class WearBaselines:
    """Simple regressors, each fitted and calibrated on first use.

    They are fitted on the training windows and calibrated on the validation windows. ``mean`` is the mean wear of the
    training windows; ``ridge`` and ``random forest`` see mean, standard deviation and maximum of each channel; ``ROCKET``
    is ridge regression on random convolution kernels (:class:`~projects.tool_wear.rocket.RocketFeatures`).

    Args:
        split: windows with a wear each.
        coverage: share of windows that an interval has to cover.
        seed: seed of random forest and kernels.
        kernels: number of kernels of ROCKET; 0 leaves it out.

    Attributes:
        names: names of all baselines.
    """

    def __init__(self, split: Split, coverage: float, seed: int = 0, kernels: int = 2000) -> None:
        features, ridge = FunctionTransformer(summary), RidgeCV(alphas=np.logspace(-3, 3, 10))
        forest = RandomForestRegressor(n_estimators=200, random_state=seed, n_jobs=1)
        self._new = {
            "mean": make_pipeline(features, DummyRegressor(strategy="mean")),
            "ridge": make_pipeline(features, StandardScaler(), ridge),
            "random forest": make_pipeline(features, forest),
        }
        if kernels:
            self._new["ROCKET"] = make_pipeline(RocketFeatures(kernels, seed), StandardScaler(), clone(ridge))
        self.names = tuple(self._new)
        self._split = split
        self._coverage = coverage
        self._fitted: dict[str, ConformalRegressor] = {}

    def fitted(self, name: str) -> ConformalRegressor:
        """Return a fitted baseline: raw windows (N, T, C) to wear [um] with an interval."""
        if name not in self._fitted:
            train, val = self._split.train, self._split.val
            regressor = self._new[name].fit(train.signals, train.wear.astype(np.float64))
            self._fitted[name] = ConformalRegressor.calibrated(
                regressor, val.signals, val.wear.astype(np.float64), self._coverage
            )
        return self._fitted[name]

    def estimates(self, name: str, windows: Windows) -> Estimates:
        """Return the estimates of a baseline for windows."""
        return Estimates.by(self.fitted(name), windows)
