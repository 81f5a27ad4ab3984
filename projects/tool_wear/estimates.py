"""Estimated wear with intervals, its scores and its table."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from projects.tool_wear.intervals import margin, outside, widened
from projects.tool_wear.model import logits_of
from projects.tool_wear.regressor import MEDIAN, WearRegressor
from projects.tool_wear.results import NETWORK
from projects.tool_wear.windows import Windows

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Estimates:
    """Windows with estimated wear and its interval [um]; arrays have the shape (N,)."""

    windows: Windows
    wear: Array
    lower: Array
    upper: Array

    @classmethod
    def of(cls, model: WearRegressor, windows: Windows) -> Self:
        """Return the network's estimates, with limits widened by its margin."""
        quantiles = logits_of(model, windows.signals).double().numpy()
        wear = np.maximum(quantiles[:, MEDIAN], 0.0)
        return cls(windows, wear, *widened(wear, quantiles[:, 0], quantiles[:, -1], float(model.margin)))

    @classmethod
    def by(cls, baseline: Any, windows: Windows) -> Self:
        """Return the estimates of a :class:`~projects.tool_wear.intervals.ConformalRegressor`."""
        return cls(windows, baseline.predict(windows.signals), *baseline.interval(windows.signals))

    @property
    def covered(self) -> NDArray[np.bool_]:
        """Whether each window's measured wear is within the limits."""
        return (self.lower <= self._measured) & (self._measured <= self.upper)

    def scores(self) -> dict[str, float]:
        """Return errors and mean interval width [um], and the coverage."""
        errors = self.wear - self._measured
        return {
            "mae_um": float(np.abs(errors).mean()),
            "rmse_um": float(np.sqrt((errors**2).mean())),
            "coverage": float(self.covered.mean()),
            "width_um": float((self.upper - self.lower).mean()),
        }

    def predictions(self) -> pd.DataFrame:
        """Return a row for each window: tool, cut, measured wear, estimated wear and its limits [um]."""
        return pd.DataFrame(
            {
                "tool": self.windows.tools,
                "cut": self.windows.cuts,
                "wear_um": self.windows.wear,
                "predicted_um": self.wear,
                "lower_um": self.lower,
                "upper_um": self.upper,
            }
        )

    def write(self, folder: Path) -> None:
        """Write ``predictions.csv`` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        self.predictions().to_csv(folder / "predictions.csv", index=False, float_format="%.6g")

    @property
    def _measured(self) -> Array:
        return self.windows.wear.astype(np.float64)


def calibrate(model: WearRegressor, windows: Windows, coverage: float) -> None:
    """Calibrate the margin of a network on validation windows. Intervals then cover this share of similar windows."""
    quantiles = logits_of(model, windows.signals).double().numpy()
    scores = outside(windows.wear.astype(np.float64), quantiles[:, 0], quantiles[:, -1])
    model.margin.fill_(margin(scores, coverage))


def error_line(mae: float, baselines: Mapping[str, float]) -> str:
    """Return a line of mean absolute errors of all methods."""
    others = ", ".join(f"{name} {value:.1f}" for name, value in baselines.items())
    return f"mean error [um]: {NETWORK} {mae:.1f} ({others})"
