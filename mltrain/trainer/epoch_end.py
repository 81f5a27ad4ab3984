"""The end of an epoch: evaluation, early stopping, records, checkpoint.

Work that may fail without losing the epoch comes last.

Judging compares an evaluation with earlier ones: best value so far, early stopping, and metrics that are missing or not
finite.
"""

import logging
import math
import time
from collections.abc import Mapping
from contextlib import suppress

from mltrain.errors import PeerLost, nearest
from mltrain.restoring.modules import versions
from mltrain.steps import FollowsMetric
from mltrain.task import metrics_relied_on
from mltrain.trainer.evaluation import Evaluation
from mltrain.trainer.ports import Stop, Tracker
from mltrain.trainer.recovery import Recovery
from mltrain.trainer.saving import Saving
from mltrain.trainer.training import Training

_CONSEQUENCES = {
    "best_metric": ", so no checkpoint is the best one. Try: mltrain train --resume-run with a best_metric that is measured.",
    "early_stopping_metric": ", so early stopping could not end the training.",
    "retention": ", so the policy could not choose checkpoints by it.",
    "policy": ", so the policy could not choose checkpoints by it.",
}


class Judge:
    """Compares each evaluation with earlier ones.

    Args:
        training: with the best value so far and early stopping; its step may follow the best metric.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._relied_on = metrics_relied_on(training.task, training.config)
        self._missed: set[str] = set()
        self._not_finite: set[str] = set()

    def judge(self, measured: Mapping[str, float]) -> None:
        """Update schedule, best value and early stopping with an evaluation."""
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
        """Log a warning for each metric that was never finite."""
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
                    "%s=%s was not measured at epoch %d.%s Measured: %s.",
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
                "%s=%s is %s at epoch %d. Only finite values count.",
                self._relied_on[name],
                name,
                value,
                self._training.progress.epoch,
            )


log = logging.getLogger(__name__)


class EpochEnd:
    """Ends the epochs of a training.

    Args:
        training: whose epochs end.
        saving: saves the state if due.
        recovery: refuses an epoch without a trained step.
        evaluation: measures at the end of an epoch, and logs pictures.
    """

    def __init__(self, training: Training, saving: Saving, recovery: Recovery, evaluation: Evaluation) -> None:
        self._training = training
        self._saving = saving
        self._recovery = recovery
        self._evaluation = evaluation
        self._judge = Judge(training)
        self._began = time.monotonic()

    def run(self, tracker: Tracker, stop: Stop) -> dict[str, float]:
        """End the current epoch, and return its metrics.

        Args:
            tracker: records the metrics.
            stop: may request a checkpoint, or the end of the training.

        Raises:
            NonFiniteLoss: no step of the epoch had a finite loss and gradient.
            Exception: the evaluation failed; the state before it is saved.
        """
        training, progress = self._training, self._training.progress
        training.late.finish()  # evaluation may swap weights
        self._recovery.refuse_untrained_epoch()
        measured = self._evaluated()
        progress.epoch += 1
        progress.batch = 0
        step, epoch = progress.step, progress.epoch
        if self._evaluation.is_due(epoch):
            self._judge.judge(measured)
        rate = {name: measured.pop(name) for name in ("learning_rate",) if name in measured}
        loss = {"loss_total": measured["train/loss"]} if "train/loss" in measured else {}
        training.history.add({**loss, **measured, **rate, "epoch": epoch, "step": step})
        seconds, self._began = time.monotonic() - self._began, time.monotonic()
        # Before the checkpoint, which carries the points that the tracking server has not acknowledged.
        tracker.log_metrics({**measured, **rate, "epoch": epoch}, step)
        tracker.log_metrics({"system/epoch_seconds": seconds}, step, compared=False)
        self._saving.save_if_due(measured, stop, epoch_ended=True)
        tracker.log_epoch(training.history)
        self._evaluation.show(tracker)
        return measured

    def conclude(self) -> None:
        """Log a warning for each metric that was never finite."""
        self._judge.conclude()

    def _evaluated(self) -> dict[str, float]:
        """Return the metrics of the epoch.

        On an error the state is saved, so that a resume repeats the evaluation.
        """
        parts = self._training.state.parts
        weights = versions(parts.values())
        try:
            return self._evaluation.measured()
        except Exception:
            if versions(parts.values()) == weights:
                self._training.means.ended = True
                with suppress(PeerLost):  # the other ranks may have ended
                    self._saving.save("step", {})
            else:
                log.error(
                    "The end of the epoch is not saved: its evaluation changed the model's parameters, then failed."
                )
            raise
