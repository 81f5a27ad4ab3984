"""Predicted classes of windows, with their scores, tables and files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn import metrics
from torch import Tensor

from projects.tool_wear.windows import UNLABELLED, Windows

NETWORK = "LSTM"
"""The name of the network beside those of the baselines."""


@dataclass(frozen=True, eq=False)
class Results:
    """Windows with the probabilities of their classes, shape (N, classes)."""

    windows: Windows
    probabilities: NDArray[np.float64]

    @classmethod
    def of(cls, windows: Windows, logits: Tensor) -> Self:
        """Return the results of logits (N, classes) for these windows."""
        return cls(windows, torch.softmax(logits.double(), dim=1).numpy())

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most likely class of each window, shape (N,)."""
        return np.asarray(self.probabilities.argmax(axis=1), dtype=np.int64)

    @property
    def accuracy(self) -> float:
        """Share of the windows that are classified correctly."""
        return float(metrics.accuracy_score(self.windows.labels, self.predicted))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts of labelled windows by true (row) and predicted class (column)."""
        counts = np.zeros((len(self._classes), len(self._classes)), dtype=np.int64)
        labelled = self.windows.labels != UNLABELLED
        np.add.at(counts, (self.windows.labels[labelled], self.predicted[labelled]), 1)
        return counts

    def scores(self) -> dict[str, float]:
        """Return accuracy, balanced accuracy, macro F1 and log loss.

        Balanced accuracy is the mean recall of the true classes. F1 ignores classes that are neither true nor predicted. Log
        loss is the mean negative log-likelihood.
        """
        truth, predicted = self.windows.labels, self.predicted
        recall = metrics.recall_score(truth, predicted, labels=np.unique(truth), average="macro")
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": float(recall),
            "f1": float(metrics.f1_score(truth, predicted, average="macro")),
            "log_loss": float(metrics.log_loss(truth, self.probabilities, labels=self._classes)),
        }

    def per_class(self) -> pd.DataFrame:
        """Return each class's precision, recall, F1 and number of windows; undefined values are 0."""
        precision, recall, f1, support = metrics.precision_recall_fscore_support(
            self.windows.labels, self.predicted, labels=self._classes, zero_division=0.0
        )
        return pd.DataFrame(
            {"class": self.windows.classes, "precision": precision, "recall": recall, "f1": f1, "windows": support}
        )

    def predictions(self) -> pd.DataFrame:
        """Return a row for each window: tool, cut, wear, true and predicted class, and the probability of each class."""
        windows, names = self.windows, np.array((*self.windows.classes, ""))
        known = np.where(windows.labels == UNLABELLED, len(windows.classes), windows.labels)
        table = pd.DataFrame(
            {
                "tool": windows.tools,
                "cut": windows.cuts,
                "wear_um": windows.wear,
                "class": names[known],
                "predicted": names[self.predicted],
            }
        )
        for label, name in enumerate(windows.classes):
            table[f"p({name})"] = self.probabilities[:, label]
        return table

    def write(self, folder: Path) -> None:
        """Write ``predictions.csv``, ``per_class.csv`` and ``confusion.csv`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.predictions().to_csv(folder / "predictions.csv", index=False, float_format="%.6g")
        self.per_class().to_csv(folder / "per_class.csv", index=False, float_format="%.4f")
        confusion = pd.DataFrame(self.confusion, index=pd.Index(self.windows.classes, name="true"))
        confusion.to_csv(folder / "confusion.csv", header=list(self.windows.classes))

    @property
    def _classes(self) -> list[int]:
        return list(range(len(self.windows.classes)))


def comparison(accuracy: float, baselines: Mapping[str, float]) -> str:
    """Return a line with the accuracies of all methods."""
    others = ", ".join(f"{name} {value:.3f}" for name, value in baselines.items())
    return f"accuracy: {NETWORK} {accuracy:.3f} ({others})"


def method_key(score: str, method: str) -> str:
    """Return the metric name of a method's score; that of the network has no suffix."""
    return score if method == NETWORK else f"{score}_{method.lower().replace(' ', '_')}"
