"""Recovers from a non-finite loss, gradient or weights."""

import logging
import math
from collections.abc import Mapping

from mltrain.errors import MltrainError, NonFiniteLoss
from mltrain.restoring.buffers import Buffers
from mltrain.trainer.saving import Saving
from mltrain.trainer.training import Training

log = logging.getLogger(__name__)

_ROLLBACKS = 3
"""Most rollbacks to the same checkpoint before the training aborts."""

_WATCHED = ("loss", "grad_norm")


class Recovery:
    """Skips a step, rolls back or aborts, as ``on_nonfinite`` configures.

    Args:
        training: to roll back; its configuration has ``on_nonfinite`` and ``nonfinite_limit``.
        saving: reads the newest checkpoint.
    """

    def __init__(self, training: Training, saving: Saving) -> None:
        self._training = training
        self._config = training.config
        self._saving = saving
        self._first = True
        self._buffers = Buffers(training.parts if self._config.on_nonfinite == "skip" else ())

    def prepare(self) -> None:
        """Copy the buffers that a skipped step must restore."""
        self._buffers.keep()

    def recovered(self, values: Mapping[str, float]) -> bool:
        """Skip or roll back a non-finite step; return whether it was one.

        Raises:
            NonFiniteLoss: ``on_nonfinite`` is ``abort``, or skipping and rolling back did not help.
        """
        if self._first and self._config.on_nonfinite != "abort" and not set(_WATCHED) & values.keys():
            log.warning(
                "on_nonfinite=%s acts only once weights are not finite, because the step returns neither loss nor grad_norm.",
                self._config.on_nonfinite,
            )
        self._first = False
        wrong = [f"{name} is {values[name]}" for name in _WATCHED if not math.isfinite(values.get(name, 0.0))]
        refused = self._saving.new_failure()
        if refused is not None:
            if self._config.on_nonfinite != "rollback":
                raise refused
            wrong = wrong or ["the last checkpoint would have held weights or optimizer state that are not finite"]
        if wrong:
            self._recover(wrong[0])
        return bool(wrong)

    def refuse_untrained_epoch(self) -> None:
        """Check that a step of the ending epoch has trained.

        Raises:
            NonFiniteLoss: none of several steps had a finite loss and gradient.
        """
        means, epoch = self._training.means, self._training.progress.epoch + 1
        if means.skipped > 1 and not means.steps:
            raise self._error(f"None of the {means.skipped} steps of epoch {epoch} had a finite loss and gradient.")

    def refuse_untrained(self) -> None:
        """Check that a step of the ending training has trained.

        Raises:
            NonFiniteLoss: none of its steps had a finite loss and gradient.
        """
        steps = self._training.progress.step
        if steps and not self._training.means.trained:
            raise self._error(f"None of {steps} steps had a finite loss and gradient.")

    def _recover(self, wrong: str) -> None:
        means, progress = self._training.means, self._training.progress
        means.skip()
        what = f"At step {progress.step} (epoch {progress.epoch + 1}, batch {progress.batch}) {wrong}"
        if self._config.on_nonfinite == "abort":
            raise self._error(f"{what}.", ", or continue with on_nonfinite=skip or on_nonfinite=rollback")
        if means.skipped_in_a_row >= self._config.nonfinite_limit:
            raise self._error(f"{what}, for the {means.skipped_in_a_row}th time in a row (nonfinite_limit).")
        if self._config.on_nonfinite == "rollback":
            if means.rollbacks >= _ROLLBACKS:
                raise self._error(f"{what}. {means.rollbacks} rollbacks to the last checkpoint did not help.")
            kept = self._saving.newest()
            if kept is None:
                raise self._error(f"{what}.")
            self._training.roll_back(kept)
            means.rollbacks += 1
            log.warning("%s: rolled back to step %d; the data continue from here.", what, kept["progress"]["step"])
            return
        self._buffers.restore()
        if means.skipped_in_a_row == 1:
            log.warning("%s: the step is skipped.", what)

    def _error(self, what: str, alternative: str = "") -> NonFiniteLoss:
        """Return the error that ends the training, with resume advice."""
        try:
            kept, readable = self._saving.newest(), True
        except MltrainError:
            kept, readable = None, False
        remedy = "a lower learning rate or gradient clipping"
        if not readable:
            advice = f"The last checkpoint cannot be read now. Try: mltrain verify, then resume from an intact one with {remedy}"
        elif kept is not None and self._training.means.trained:
            advice = f"The checkpoint of step {kept['progress']['step']} is intact. Try: resume from it with {remedy}"
        else:
            advice = f"No checkpoint holds a trained state. Try: a new training with {remedy}"
        return NonFiniteLoss(f"{what} {advice}{alternative}.")
