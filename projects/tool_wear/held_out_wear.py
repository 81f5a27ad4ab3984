"""Evaluation of a regression on validation and test tools: errors, intervals, pictures and report."""

import logging
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from projects.tool_wear import wear_figures
from projects.tool_wear.estimates import Estimates, calibrate, error_line
from projects.tool_wear.model import logits_of
from projects.tool_wear.regressor import PinballLoss, WearRegressor
from projects.tool_wear.results import NETWORK, method_key
from projects.tool_wear.wear_baselines import QUICK, WearBaselines
from projects.tool_wear.windows import Split, Windows

logger = logging.getLogger(__name__)


class HeldOutWear:
    """Evaluates a regression on the validation and test tools.

    The intervals are calibrated on the validation tools, so their coverage there is not a score. ``val/quantile_coverage`` is
    the coverage of the two outer quantiles before calibration.

    Args:
        model: the network; each call evaluates its present weights.
        split: the windows; all have a wear.
        loss: the training loss.
        baselines: baselines fitted on the training part and calibrated on the validation part.
        coverage: share of windows that an interval has to cover.
    """

    def __init__(
        self, model: WearRegressor, split: Split, loss: PinballLoss, baselines: WearBaselines, coverage: float
    ) -> None:
        self._model = model
        self._split = split
        self._loss = loss
        self._baselines = baselines
        self._coverage = coverage

    def evaluate(self) -> dict[str, float]:
        """Calibrate the interval, and return the validation loss and errors."""
        calibrate(self._model, self._split.val, self._coverage)
        return self._val_scores()

    def images(self) -> dict[str, Figure]:
        """Return figures of the validation tools: wear with intervals, and estimated over measured wear."""
        val = self._split.val
        estimates = Estimates.of(self._model, val)
        others = {name: self._baselines.estimates(name, val).scores()["mae_um"] for name in QUICK}
        title = error_line(estimates.scores()["mae_um"], others)
        return {
            "wear": wear_figures.curves(estimates, title, self._coverage),
            "agreement": wear_figures.agreement(estimates, title),
        }

    def report(self, folder: Path) -> dict[str, float]:
        """Write tables and figures of held-out tools, and return scores.

        Without test tools there is no coverage to report, the errors are those of the tools that chose the best epoch, and a
        warning is logged.
        """
        scores, rows = self._val_scores(), []
        for name, windows in (("val", self._split.val), ("test", self._split.test)):
            if not len(windows):
                continue
            for method, found in self._written(windows, f"{', '.join(windows.tool_names)} ({name})", folder / name):
                if name == "val":
                    del found["coverage"]
                rows.append({"set": name, "method": method, **found})
                scores |= {f"{name}/{method_key(score, method)}": value for score, value in found.items()}
        table = pd.DataFrame(rows, columns=["set", "method", "mae_um", "rmse_um", "coverage", "width_um"])
        table.to_csv(folder / "comparison.csv", index=False, float_format="%.4g")
        logger.info(
            "Smallest mean error on the validation tools: %s. Intervals are meant to cover %g %% of the windows.\n%s\n"
            "Export it: python -m projects.tool_wear.export RUN_ID FOLDER",
            table[table["set"] == "val"].set_index("method")["mae_um"].idxmin(),
            100.0 * self._coverage,
            table.to_string(index=False, float_format="%.3g", na_rep=""),
        )
        if not len(self._split.test):
            logger.warning(
                "No test tools: the best epoch was chosen, and the interval calibrated, on the tools that these errors are from."
            )
        return scores

    def _val_scores(self) -> dict[str, float]:
        val = self._split.val
        quantiles = logits_of(self._model, val.signals)
        wear = torch.from_numpy(val.wear)
        inside = (quantiles[:, 0] <= wear) & (wear <= quantiles[:, -1])
        scores = Estimates.of(self._model, val).scores()
        del scores["coverage"]
        scores |= {"loss": float(self._loss(quantiles, wear)), "quantile_coverage": float(inside.float().mean())}
        return {f"val/{name}": value for name, value in scores.items()}

    def _written(self, windows: Windows, tools: str, folder: Path) -> list[tuple[str, dict[str, float]]]:
        """Write one set's files, and return every method's scores."""
        estimates = Estimates.of(self._model, windows)
        compared = [(NETWORK, estimates.scores())]
        compared += [(name, self._baselines.estimates(name, windows).scores()) for name in self._baselines.names]
        errors = {name: scores["mae_um"] for name, scores in compared[1:]}
        line = f"{tools}: {error_line(estimates.scores()['mae_um'], errors)}"
        estimates.write(folder)
        for stem, figure in (
            ("wear", wear_figures.curves(estimates, line, self._coverage)),
            ("agreement", wear_figures.agreement(estimates, line)),
        ):
            figure.savefig(folder / f"{stem}.png", dpi=120)
        logger.info("%s", line)
        return compared
