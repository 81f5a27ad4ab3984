"""Judging an evaluation: the best so far, early stopping, metrics that nothing measures or that are not finite."""

import logging
import math
from collections.abc import Mapping

from mltrain.errors import nearest
from mltrain.steps import FollowsMetric
from mltrain.task import metrics_relied_on
from mltrain.trainer.training import Training

log = logging.getLogger(__name__)

_CONSEQUENCES = {
    "best_metric": ", so no checkpoint is the best one. Try: mltrain train --resume-run with a best_metric that is measured.",
    "early_stopping_metric": ", so early stopping could not end the training.",
    "retention": ", by which the policy was to choose checkpoints.",
    "policy": ", by which the policy was to choose checkpoints.",
}


class Judge:
    """Compares each evaluation with those before it.

    Args:
        training: holds the best so far and the counters of early stopping; its step may follow the best metric.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._relied_on = metrics_relied_on(training.task, training.config)
        self._missed: set[str] = set()
        self._not_finite: set[str] = set()

    def judge(self, measured: Mapping[str, float]) -> None:
        """Take an evaluation into account: schedule, best so far, early stopping."""
        self._warn_of_missed(measured)
        training, progress, step = self._training, self._training.progress, self._training.task.step
        value = measured.get(training.config.best_metric)
        if value is not None and isinstance(step, FollowsMetric) and step.follows is not None:
            step.evaluated(value)
        if value is not None:
            training.best.update(value, progress.epoch, progress.step)
        watched = measured.get(training.stopping.metric)
        if watched is not None:
            training.stopping.update(watched, progress.epoch)

    def conclude(self) -> None:
        """Warn, at the end of the training, of metrics of which no evaluation measured a finite value."""
        for name in sorted(self._missed):
            key, finite = self._relied_on[name], "a finite " if name in self._not_finite else ""
            log.warning("No evaluation measured %s%s=%s%s", finite, key, name, _CONSEQUENCES[key])

    def _warn_of_missed(self, measured: Mapping[str, float]) -> None:
        for name, key in self._relied_on.items():
            if math.isfinite(measured.get(name, math.nan)):
                self._missed.discard(name)
            elif name in measured:
                self._warn_of_not_finite(name, measured[name])
            elif name not in self._missed and not any(name in row for row in self._training.history.rows):
                self._missed.add(name)
                log.warning(
                    "%s=%s was not measured at epoch %d.%s What was measured: %s.",
                    key,
                    name,
                    self._training.progress.epoch,
                    nearest(name, measured),
                    f"{', '.join(measured)}"[:500] or "nothing",
                )

    def _warn_of_not_finite(self, name: str, value: float) -> None:
        rows = self._training.history.rows
        if not any(math.isfinite(row.get(name, math.nan)) for row in rows):
            self._missed.add(name)
        if name not in self._not_finite:
            self._not_finite.add(name)
            log.warning(
                "%s=%s is %s at epoch %d. Only finite values decide.",
                self._relied_on[name],
                name,
                value,
                self._training.progress.epoch,
            )
