"""Decides when to save, and passes states to the saver."""

import json
import time
from collections.abc import Mapping
from typing import Any

from mltrain.checkpoint.late_copy import LateCopy
from mltrain.checkpoint.manifest import Kind
from mltrain.errors import NonFiniteLoss
from mltrain.trainer.ports import HasFailure, HasPeek, HasPrepare, Saver, Source, Stop
from mltrain.trainer.training import Training


class Saving:
    """Saves the state of a training, and reads it back.

    Args:
        training: whose state is saved, at the intervals of its configuration.
        data: fingerprint of the data, part of every checkpoint.
        saver: saves the states.
    """

    def __init__(self, training: Training, data: Mapping[str, str], saver: Saver) -> None:
        self._training = training
        self._data = dict(data)
        self._params = json.dumps(training.config.resolved(), indent=1).encode()
        self._saved_at = time.monotonic()
        self._saved_step = 0
        self._resumed_rng: Mapping[str, Any] | None = None
        self._reported: NonFiniteLoss | None = None
        self.attach(saver)

    def attach(self, saver: Saver, source: Source | None = None) -> None:
        """Save from now on with this saver; see :meth:`mltrain.Trainer.attach`."""
        self._saver = saver
        self._source = source
        self._failing = saver if isinstance(saver, HasFailure) else None
        self._unprepared = saver if isinstance(saver, HasPrepare) else None

    @property
    def unsaved(self) -> bool:
        """Whether steps were done since the last save or restore."""
        return self._saved_step != self._training.progress.step

    @property
    def resumed_rng(self) -> Mapping[str, Any] | None:
        """The restored checkpoint's generators, until the next step or save."""
        return None if self.unsaved else self._resumed_rng

    def restored(self, rng: Mapping[str, Any] | None) -> None:
        """Record a restore, and the checkpoint's random number generators."""
        self._saved_step, self._resumed_rng = self._training.progress.step, rng

    def is_due(self, *, epoch_ended: bool) -> bool:
        """Whether a configured interval ends at this step boundary."""
        config, progress = self._training.config, self._training.progress
        return (
            bool(config.save_interval and epoch_ended and progress.epoch % config.save_interval == 0)
            or bool(config.save_every_steps and progress.step % config.save_every_steps == 0)
            or 0 < 60 * config.save_every_minutes <= time.monotonic() - self._saved_at
        )

    def save_if_due(self, measured: Mapping[str, float], stop: Stop, *, epoch_ended: bool) -> None:
        """Save if due.

        A save is due at the end of an interval, after the last or best epoch, and on request.
        """
        training, best = self._training, self._training.best
        asked, stop.checkpoint_wanted = stop.checkpoint_wanted, False
        last_or_best = epoch_ended and (training.done or best.step == training.progress.step)
        if self.is_due(epoch_ended=epoch_ended) or last_or_best or asked:
            self.save("epoch" if epoch_ended else "step", measured, training.late)
        elif stop.requested:
            self.save("interrupted", measured)
        elif self._unprepared is not None:  # after the first step, once the optimizers have a state
            self._unprepared.prepare(training.state_dict())
            self._unprepared = None

    def save(self, kind: Kind, measured: Mapping[str, float], late: LateCopy | None = None) -> None:
        """Save the present state.

        Args:
            kind: why it is saved.
            measured: the metrics of the present step.
            late: copies large tensors during the next step. If ``None``, all tensors are copied now.
        """
        training, progress = self._training, self._training.progress
        if not training.means.skipped_in_a_row:
            training.means.rollbacks = 0
        state = training.state_dict()
        self._saver.save(
            state if late is None else late.allow(state),
            step=progress.step,
            epoch=progress.epoch,
            metrics=measured,
            kind=kind,
            extra=self.described(),
            data=self._data,
        )
        self._saved_at, self._saved_step = time.monotonic(), progress.step
        self._resumed_rng = None

    def described(self) -> dict[str, bytes]:
        """Return a checkpoint's further files: configuration and epoch table."""
        return {
            "params.json": self._params,
            "history.csv": self._training.history.to_csv(),
        }

    def newest(self) -> Mapping[str, Any] | None:
        """Return the newest checkpoint's parts, or else the source's.

        Returns ``None`` before the first checkpoint without a source, or if the saver cannot read checkpoints.
        """
        if not isinstance(self._saver, HasPeek):
            return None
        kept = self._saver.peek()
        return kept if kept is not None or self._source is None else self._source()

    def new_failure(self) -> NonFiniteLoss | None:
        """Return each non-finite state's error once.

        Returns ``None`` if all states since the last call were finite.
        """
        failure = self._failing.failure if self._failing is not None else None
        if not isinstance(failure, NonFiniteLoss) or failure is self._reported:
            return None
        self._reported = failure  # the saver keeps it until a later checkpoint is complete
        return failure
