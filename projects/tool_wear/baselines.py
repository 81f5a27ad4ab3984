"""What simple methods reach on the same split: the measure of what the network adds."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from projects.tool_wear.windows import Windows


class Baselines:
    """Three classifiers fitted on the training windows; two of them see mean, standard deviation and maximum a channel."""

    def __init__(self, train: Windows, seed: int = 0) -> None:
        self._models = {
            "majority": DummyClassifier(strategy="most_frequent"),
            "logistic regression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
            "random forest": RandomForestClassifier(n_estimators=200, random_state=seed, n_jobs=1),
        }
        features = summary(train.signals)
        for model in self._models.values():
            model.fit(features, train.labels)

    def accuracy(self, windows: Windows) -> Mapping[str, float]:
        """Return the share of the windows that each baseline classifies correctly."""
        features = summary(windows.signals)
        return {name: float(model.score(features, windows.labels)) for name, model in self._models.items()}


def summary(signals: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return mean, standard deviation and maximum of every channel over time: (N, T, C) to (N, 3 C)."""
    return np.concatenate([signals.mean(axis=1), signals.std(axis=1), signals.max(axis=1)], axis=1)
