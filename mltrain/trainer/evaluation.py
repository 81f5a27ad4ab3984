"""Calls a task's evaluation and pictures without changing the training."""

import logging
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mltrain import device as devices
from mltrain.batches import mixed
from mltrain.metrics import floats
from mltrain.rng import own_rng
from mltrain.steps import HasEpochMetrics
from mltrain.trainer.ports import Tracker
from mltrain.trainer.training import Training

log = logging.getLogger(__name__)


class Evaluation:
    """Calls a task's ``evaluate()`` and ``images()`` without gradients.

    They draw separate random numbers, may mix CPU tensors with those on the training's device, and call ``eval()`` of their
    models themselves.

    Args:
        training: with the task, and how often to evaluate.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._task, self._config = training.task, training.config
        self._warned = False

    def is_due(self, epoch: int) -> bool:
        """Whether this epoch, counted from 1, ends with an evaluation."""
        return epoch > 0 and (epoch % self._config.eval_interval == 0 or epoch == self._config.epochs)

    def measured(self) -> dict[str, float]:
        """Return the metrics of the ending epoch, with its evaluation.

        The task's code runs first, so the training is unchanged if it raises.

        Raises:
            UsageError: a metric is not a number, or has no name.
        """
        epoch, step, evaluated = self._training.progress.epoch + 1, self._task.step, {}
        if self._task.evaluate is not None and self.is_due(epoch):
            with self._isolated(epoch):
                evaluated = floats(self._task.evaluate(), "evaluate()")
        rate = floats({"learning_rate": step.learning_rate}, "The step") if hasattr(step, "learning_rate") else {}
        of_step = floats(step.epoch_metrics(), "epoch_metrics()") if isinstance(step, HasEpochMetrics) else {}
        means = {**self._training.means.pop(), **of_step}
        own = {"epoch", "step", "system/epoch_seconds", *rate}
        self._warn_of_own(sorted(own & evaluated.keys()))
        evaluated = {name: value for name, value in evaluated.items() if name not in own}
        return {**{f"train/{name}": value for name, value in means.items()}, **evaluated, **rate}

    def _warn_of_own(self, names: Sequence[str]) -> None:
        """Warn once of metrics that the trainer measures itself."""
        if names and not self._warned:
            self._warned = True
            log.warning(
                "evaluate() returned %s, which the trainer records itself. The values of evaluate() are not used. Try: other "
                "names, such as val/%s",
                ", ".join(names),
                names[0],
            )

    def show(self, tracker: Tracker) -> None:
        """Log the pictures of the ended epoch, if due.

        An error is logged as a warning.
        """
        progress = self._training.progress
        if self._task.images is None or progress.batch or not self.is_due(progress.epoch):
            return
        self._training.late.finish()  # pictures may swap weights, as evaluations may
        self._log_pictures(tracker, self._task.images, f"The pictures of epoch {progress.epoch}")

    def preview(self, tracker: Tracker) -> None:
        """Log pictures of the data before the first step.

        An error is logged as a warning.
        """
        if self._task.preview is not None and not self._training.progress.step:
            self._log_pictures(tracker, self._task.preview, "The pictures of the data")

    def _log_pictures(self, tracker: Tracker, make: Callable[[], Mapping[str, Any]], what: str) -> None:
        progress = self._training.progress
        try:
            with self._isolated(progress.epoch):
                tracker.log_pictures(make(), progress.step, progress.epoch)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.warning(
                "%s are missing: %s: %s (%s, line %s). The training continues.",
                what,
                type(error).__name__,
                error,
                where.filename,
                where.lineno,
            )
            log.debug(what, exc_info=True)

    @contextmanager
    def _isolated(self, epoch: int) -> Iterator[None]:
        seed = mixed(self._config.seed, epoch) & 0xFFFFFFFF
        with torch.no_grad(), own_rng(seed), devices.mixing(self._training.device):
            yield
