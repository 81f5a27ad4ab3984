"""Simple classifiers as baselines of the network, on its split."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from projects.tool_wear.rocket import RocketFeatures
from projects.tool_wear.windows import Windows

QUICK = ("majority", "logistic regression", "random forest")
"""Cheap baselines, which the pictures of every epoch name."""


class Baselines:
    """Simple classifiers, fitted to the training windows on first use.

    ``logistic regression`` and ``random forest`` see mean, standard deviation and maximum of each channel; ``ROCKET`` is ridge
    regression on random convolution kernels (:class:`~projects.tool_wear.rocket.RocketFeatures`).

    Args:
        train: windows with a class each.
        seed: seed of random forest and kernels.
        kernels: number of kernels of ROCKET; 0 leaves it out.

    Attributes:
        names: names of all baselines.
    """

    def __init__(self, train: Windows, seed: int = 0, kernels: int = 2000) -> None:
        features = FunctionTransformer(summary)
        forest = RandomForestClassifier(n_estimators=200, random_state=seed, n_jobs=1)
        self._new = {
            "majority": make_pipeline(features, DummyClassifier(strategy="most_frequent")),
            "logistic regression": make_pipeline(features, StandardScaler(), LogisticRegression(max_iter=2000)),
            "random forest": make_pipeline(features, forest),
        }
        if kernels:
            ridge = RidgeClassifierCV(alphas=np.logspace(-3, 3, 10))
            self._new["ROCKET"] = make_pipeline(RocketFeatures(kernels, seed), StandardScaler(), ridge)
        self.names = tuple(self._new)
        self._train = train
        self._fitted: dict[str, Any] = {}

    def fitted(self, name: str) -> Any:
        """Return the fitted scikit-learn pipeline from raw windows (N, T, C) to labels."""
        if name not in self._fitted:
            self._fitted[name] = self._new[name].fit(self._train.signals, self._train.labels)
        return self._fitted[name]

    def accuracy(self, windows: Windows, names: Sequence[str] | None = None) -> Mapping[str, float]:
        """Return the accuracy of the named baselines on some windows; if ``names`` is ``None``, of all."""
        chosen = self.names if names is None else names
        return {name: float(self.fitted(name).score(windows.signals, windows.labels)) for name in chosen}


def summary(signals: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each channel's mean, standard deviation and maximum over time: (N, T, C) to (N, 3 C), without padding."""
    if np.isnan(signals).any():
        parts = [np.nanmean(signals, axis=1), np.nanstd(signals, axis=1), np.nanmax(signals, axis=1)]
    else:
        parts = [signals.mean(axis=1), signals.std(axis=1), signals.max(axis=1)]
    return np.concatenate(parts, axis=1)
