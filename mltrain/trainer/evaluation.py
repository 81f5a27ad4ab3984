"""Calling the project's evaluation and pictures beside the training, without changing it."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mltrain import device as devices
from mltrain.data import mixed
from mltrain.metrics import floats
from mltrain.rng import own_rng
from mltrain.steps import HasEpochMetrics
from mltrain.trainer.ports import Tracker
from mltrain.trainer.training import Training

log = logging.getLogger(__name__)


class Evaluation:
    """Calls ``evaluate()`` and ``images()`` of a task, without gradients and under random numbers of its own.

    They may mix tensors of the CPU with those on the training's device, and call ``eval()`` of their models themselves.

    Args:
        training: what is evaluated; its configuration says how often.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._task, self._config = training.task, training.config

    def is_due(self, epoch: int) -> bool:
        """Whether the end of this epoch, counted from 1, is evaluated."""
        return epoch > 0 and (epoch % self._config.eval_interval == 0 or epoch == self._config.epochs)

    def measured(self) -> dict[str, float]:
        """Return what was measured in the epoch that ends, its evaluation included.

        The project's code runs first, before anything else changes: when it raises, the training is as it was.

        Raises:
            UsageError: something that was measured is not a number, or has no name.
        """
        epoch, step, evaluated = self._training.progress.epoch + 1, self._task.step, {}
        if self._task.evaluate is not None and self.is_due(epoch):
            with self._beside_the_training(epoch):
                evaluated = floats(self._task.evaluate(), "evaluate()")
        rate = floats({"learning_rate": step.learning_rate}, "The step") if hasattr(step, "learning_rate") else {}
        of_step = floats(step.epoch_metrics(), "epoch_metrics()") if isinstance(step, HasEpochMetrics) else {}
        means = {**self._training.means.taken(), **of_step}
        return {**{f"train/{name}": value for name, value in means.items()}, **evaluated, **rate}

    def show(self, tracker: Tracker) -> None:
        """Make the pictures of the epoch that has just ended, if they are due; an error is logged as a warning."""
        progress = self._training.progress
        if self._task.images is None or progress.batch or not self.is_due(progress.epoch):
            return
        self._training.late.finish()  # pictures may swap weights, as evaluations may
        try:
            with self._beside_the_training(progress.epoch):
                tracker.log_pictures(self._task.images(), progress.step, progress.epoch)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.warning(
                "The pictures of epoch %d are missing: %s: %s (%s, line %s). The training goes on.",
                progress.epoch,
                type(error).__name__,
                error,
                where.filename,
                where.lineno,
            )
            log.debug("The pictures of epoch %d", progress.epoch, exc_info=True)

    @contextmanager
    def _beside_the_training(self, epoch: int) -> Iterator[None]:
        seed = mixed(self._config.seed, epoch) & 0xFFFFFFFF
        with torch.no_grad(), own_rng(seed), devices.mixing(self._training.device):
            yield
