"""The end of an epoch: evaluate, judge, record, save; only then comes what may fail without costing the epoch."""

import logging
import time

from mltrain.restoring.modules import versions
from mltrain.trainer.evaluation import Evaluation
from mltrain.trainer.judging import Judge
from mltrain.trainer.ports import Stop, Tracker
from mltrain.trainer.recovery import Recovery
from mltrain.trainer.saving import Saving
from mltrain.trainer.training import Training

log = logging.getLogger(__name__)


class EpochEnd:
    """Ends the epochs of a training.

    Args:
        training: whose epochs end.
        saving: saves the state where that is due.
        recovery: refuses an epoch in which nothing was trained.
    """

    def __init__(self, training: Training, saving: Saving, recovery: Recovery) -> None:
        self._training = training
        self._saving = saving
        self._recovery = recovery
        self._evaluation = Evaluation(training)
        self._judge = Judge(training)
        self._began = time.monotonic()

    def run(self, tracker: Tracker, stop: Stop) -> dict[str, float]:
        """End the epoch under way, and return what it measured.

        Args:
            tracker: records what was measured.
            stop: may ask for a checkpoint, or for the end of the training.

        Raises:
            NonFiniteLoss: no step of the epoch had a finite loss and gradient.
            Exception: the evaluation raised it; the state from before it is saved.
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
        training.history.add({**measured, **loss, **rate, "epoch": epoch, "step": step})
        seconds, self._began = time.monotonic() - self._began, time.monotonic()
        # Before the checkpoint, which carries the points that the tracking server has not acknowledged.
        tracker.log_metrics({**measured, **rate, "epoch": epoch}, step)
        tracker.log_metrics({"system/epoch_seconds": seconds}, step, compared=False)
        self._saving.save_if_due(measured, stop, epoch_ended=True)
        tracker.log_epoch(training.history)
        self.show(tracker)
        return measured

    def show(self, tracker: Tracker) -> None:
        """Make the pictures of the epoch that has just ended, and hand them to the tracker."""
        self._evaluation.show(tracker)

    def conclude(self) -> None:
        """Warn, at the end of the training, of metrics of which no evaluation measured a finite value."""
        self._judge.conclude()

    def _evaluated(self) -> dict[str, float]:
        """Return what the epoch measured; when that fails, save the state, so that a resume begins with this evaluation."""
        parts = self._training.state.parts
        weights = versions(parts.values())
        try:
            return self._evaluation.measured()
        except Exception:
            if versions(parts.values()) == weights:
                self._training.means.ended = True
                self._saving.save("step", {})
            else:
                log.error(
                    "The end of the epoch is not saved: its evaluation changed the model's parameters, then failed."
                )
            raise
