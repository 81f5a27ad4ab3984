"""Best metric value and early stopping, kept over resumes."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from mltrain.checkpoint.retention import Mode

log = logging.getLogger(__name__)


def improves(value: float, over: float | None, mode: Mode, min_delta: float = 0.0) -> bool:
    """Return whether ``value`` beats ``over`` by more than ``min_delta``; non-finite values never do."""
    if not math.isfinite(value):
        return False
    if over is None or not math.isfinite(over):
        return True
    return value < over - min_delta if mode == "min" else value > over + min_delta


class BestSoFar:
    """The best value of a metric, with epoch and step."""

    def __init__(self, metric: str, mode: Mode) -> None:
        self._mode: Mode = mode
        self._judged_by = [metric, mode]
        self.value: float | None = None
        self.epoch = 0
        self.step = 0

    def update(self, value: float, epoch: int, step: int) -> None:
        """Process the metric of an evaluation."""
        if improves(value, self.value, self._mode):
            self.value, self.epoch, self.step = value, epoch, step

    def state_dict(self) -> dict[str, Any]:
        """Return value, epoch, step, and the deciding metric and mode."""
        return {"value": self.value, "epoch": self.epoch, "step": self.step, "judged_by": self._judged_by}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore value, epoch and step, unless metric or mode differ."""
        if state_dict.get("judged_by", self._judged_by) != self._judged_by:
            log.warning(
                "The best value so far is of %s %s, and the training now uses %s %s; it starts again.",
                *state_dict["judged_by"],
                *self._judged_by,
            )
            return
        self.value, self.epoch, self.step = state_dict["value"], state_dict["epoch"], state_dict["step"]


class EarlyStopping:
    """Ends a training after ``patience`` consecutive evaluations without improvement.

    The rule is algorithm 7.1 of Goodfellow, Bengio and Courville, "Deep Learning" (2016), with evaluations at
    epochs instead of steps, and with ``min_delta``, the smallest change that counts as an improvement. If ``patience``
    is ``None``, the training never ends early.
    """

    def __init__(self, metric: str, mode: Mode, patience: int | None, min_delta: float = 0.0) -> None:
        self.metric = metric
        self.mode: Mode = mode
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_epoch = 0
        self.without_improvement = 0

    def update(self, value: float, epoch: int) -> None:
        """Process the metric of an evaluation."""
        if improves(value, self.best, self.mode, self.min_delta):
            self.best, self.best_epoch, self.without_improvement = value, epoch, 0
        else:
            self.without_improvement += 1

    @property
    def exhausted(self) -> bool:
        """Whether the patience is used up."""
        return self.patience is not None and self.without_improvement >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Return counters, metric and mode; a resume may change patience."""
        counters = {"best": self.best, "best_epoch": self.best_epoch, "without_improvement": self.without_improvement}
        return {**counters, "judged_by": [self.metric, self.mode]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counters, unless metric or mode differ."""
        if state.get("judged_by", [self.metric, self.mode]) != [self.metric, self.mode]:
            log.warning(
                "Early stopping counted evaluations of %s %s, and the training now uses %s %s; it starts again.",
                *state["judged_by"],
                self.metric,
                self.mode,
            )
            return
        self.best = state["best"]
        self.best_epoch = state["best_epoch"]
        self.without_improvement = state["without_improvement"]
