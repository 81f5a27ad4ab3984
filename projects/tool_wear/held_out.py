"""Evaluation of a classifier on validation and test tools: scores, pictures and report."""

import logging
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from projects.tool_wear import figures
from projects.tool_wear.baselines import QUICK, Baselines
from projects.tool_wear.model import logits_of
from projects.tool_wear.results import NETWORK, Results, comparison, method_key
from projects.tool_wear.windows import Split, Windows

logger = logging.getLogger(__name__)


class HeldOut:
    """Evaluates a model on the validation and test tools.

    Args:
        model: gives logits for raw windows; each call evaluates its present weights.
        split: the windows.
        weights: weight of each class in the loss, shape (classes,), on the CPU.
        baselines: baselines of the training part.
    """

    def __init__(self, model: nn.Module, split: Split, weights: Tensor, baselines: Baselines) -> None:
        self._model = model
        self._split = split
        self._weights = weights
        self._baselines = baselines

    def evaluate(self) -> dict[str, float]:
        """Return loss and scores on the validation tools."""
        return _named("val", self._scores(self._split.val))

    def images(self) -> dict[str, Figure]:
        """Return confusion matrix and wear curves of the validation tools."""
        results = self._results(self._split.val)
        title = comparison(results.accuracy, self._baselines.accuracy(self._split.val, QUICK))
        return {
            "confusion": figures.confusion(results, title),
            "wear": figures.wear_curves(results, title),
        }

    def report(self, folder: Path) -> dict[str, float]:
        """Write tables and figures of held-out tools, and return scores.

        Without test tools there are only scores of the validation tools, which chose the best epoch. These are somewhat too
        good, and a warning is logged.
        """
        scores: dict[str, float] = {}
        compared: dict[str, dict[str, float]] = {}
        for name, windows in (("val", self._split.val), ("test", self._split.test)):
            if len(windows):
                scores |= _named(name, self._scores(windows))
                compared[name] = self._written(windows, f"{', '.join(windows.tool_names)} ({name})", folder / name)
                scores |= _named(
                    name, {method_key("accuracy", other): value for other, value in compared[name].items()}
                )
        table = pd.DataFrame(compared).rename_axis("method")
        table.to_csv(folder / "comparison.csv", float_format="%.4f")
        logger.info(
            "Best on the validation tools: %s.\n%s\nExport it: python -m projects.tool_wear.export RUN_ID FOLDER",
            table["val"].idxmax(),
            table.to_string(float_format="%.3f"),
        )
        if not len(self._split.test):
            logger.warning("No test tools: the best epoch was chosen on the tools that these scores are from.")
        return scores

    def _results(self, windows: Windows) -> Results:
        return Results.of(windows, logits_of(self._model, windows.signals))

    def _scores(self, windows: Windows) -> dict[str, float]:
        logits = logits_of(self._model, windows.signals)
        loss = F.cross_entropy(logits, torch.from_numpy(windows.labels), self._weights)
        return {"loss": float(loss), **Results.of(windows, logits).scores()}

    def _written(self, windows: Windows, tools: str, folder: Path) -> dict[str, float]:
        """Write one set's files, and return every method's accuracy."""
        results, baselines = self._results(windows), self._baselines.accuracy(windows)
        line = f"{tools}: {comparison(results.accuracy, baselines)}"
        results.write(folder)
        for stem, figure in (
            ("confusion", figures.confusion(results, line)),
            ("wear", figures.wear_curves(results, line)),
            ("traces", figures.traces(results, tools)),
            ("roc", figures.roc(results, f"{tools}: each class against the others")),
        ):
            figure.savefig(folder / f"{stem}.png", dpi=120)
        logger.info("%s\n%s", line, results.per_class().to_string(index=False, float_format="%.3f"))
        return {NETWORK: results.accuracy, **baselines}


def _named(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name, value in values.items()}
