"""The training loop. It has no hooks: code of a callback goes into the loop's body.

>>> for progress in trainer.steps():
...     print(progress.step, trainer.measured)
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mltrain.checkpoint.manifest import Kind
from mltrain.checkpoint.settings import refuse_unless
from mltrain.config import Config
from mltrain.errors import RunHeld, UsageError
from mltrain.metrics import Metrics, floats
from mltrain.rng import Rng
from mltrain.state import Progress
from mltrain.task import Task
from mltrain.trainer.epoch_end import EpochEnd
from mltrain.trainer.evaluation import Evaluation
from mltrain.trainer.ports import NeverStop, NullSaver, NullTracker, Saver, Source, Stop, Tracker
from mltrain.trainer.recovery import Recovery
from mltrain.trainer.remedies import advise
from mltrain.trainer.saving import Saving
from mltrain.trainer.training import Training


class Trainer:
    """Trains a task: steps, evaluations, and a save decision after each step.

    Args:
        task: to train.
        config: epochs, intervals, device and more.
        tracker: records metrics. If ``None``, nothing is recorded.
        saver: saves checkpoints. If ``None``, none is saved.
        stop: checked after every step. If ``None``, the training runs to its end.
        data: fingerprint of the data, part of every checkpoint.

    Raises:
        UsageError: an argument is invalid; see also :class:`~mltrain.trainer.training.Training`.

    Attributes:
        training: the task with the trainer's own state.
        measured: metrics of the epoch that the present step ended; empty within an epoch.
        device, state, progress, history, best, stopping: see :class:`~mltrain.trainer.training.Training`.
    """

    def __init__(
        self,
        task: Task,
        config: Config,
        tracker: Tracker | None = None,
        saver: Saver | None = None,
        stop: Stop | None = None,
        data: Mapping[str, str] | None = None,
    ) -> None:
        _refuse_wrong_types(task, config, {"tracker": tracker, "saver": saver, "stop": stop})
        self.training = training = Training(task, config)
        self.task, self.config, self.device, self.state = task, config, training.device, training.state
        self.progress, self.history = training.progress, training.history
        self.best, self.stopping = training.best, training.stopping
        self.measured: dict[str, float] = {}
        self._tracker = tracker if tracker is not None else NullTracker()
        self._stop = stop if stop is not None else NeverStop()
        self._saving = Saving(training, data or {}, saver if saver is not None else NullSaver())
        self._recovery = Recovery(training, self._saving)
        self._evaluation = Evaluation(training)
        self._epoch_end = EpochEnd(training, self._saving, self._recovery, self._evaluation)

    def attach(self, tracker: Tracker, saver: Saver, source: Source | None = None) -> None:
        """Use another tracker and saver from now on.

        Args:
            tracker: records metrics.
            saver: saves checkpoints.
            source: returns the parts to roll back to until the saver has a checkpoint. If ``None``, a rollback before the first
                checkpoint ends the training.
        """
        self._tracker = tracker
        self._saving.attach(saver, source)

    @property
    def done(self) -> bool:
        """Whether all epochs are done or early stopping has ended."""
        return self.training.done

    @property
    def batches(self) -> int | None:
        """Number of batches per epoch. ``None`` if the loader has no length."""
        try:
            return len(self.task.loader)  # type: ignore[arg-type] # a loader need not have a length
        except TypeError:
            return None

    @property
    def unsaved(self) -> bool:
        """Whether steps were done since the last save or restore."""
        return self._saving.unsaved

    def steps(self) -> Iterator[Progress]:
        """Train, and yield after each optimizer step.

        By then the step's evaluation and save decision are done.

        Raises:
            NonFiniteLoss: the loss, its gradient or the weights became NaN or infinite, and ``on_nonfinite`` is ``abort`` or
                did not help.
            RunHeld: another process has taken the run over.
        """
        try:
            yield from self._steps()
            if self._stop.requested and self.unsaved:  # the request came after the save decision of its step
                self.save("interrupted")
        except RuntimeError as error:
            advise(error, self.device, self.progress.step)
            raise
        finally:
            self.training.late.finish()  # the caller may change the model

    def _steps(self) -> Iterator[Progress]:
        self.training.check_savable()
        if self.done:
            self._recovery.refuse_untrained()
        self._evaluation.preview(self._tracker)
        stops = self.done or self._stop.requested
        if self.training.means.ended and not stops:  # the evaluation failed before the resume
            self.measured = self._epoch_end.run(self._tracker, self._stop)
        fruitless = -1
        while not (self.done or self._stop.requested):
            ended = False
            for batch in self._rest_of_epoch():
                self._recovery.prepare()
                metrics = self.task.step(batch)
                self.progress.step += 1
                self.progress.batch += 1
                ended = self.progress.batch == self.batches
                self.measured = {}
                self._record(metrics)
                if ended:
                    self.measured = self._epoch_end.run(self._tracker, self._stop)
                else:
                    self._saving.save_if_due({}, self._stop, epoch_ended=False)
                yield self.progress
                if self._stop.requested:
                    return
            if not ended and self.progress.batch:  # only now is the end of an epoch without a length known
                self.measured = self._epoch_end.run(self._tracker, self._stop)
            elif not ended and fruitless == self.progress.step:
                raise UsageError("The loader has no batch. Expected at least one in an epoch.")
            elif not ended:  # a loader restored at the end of an epoch has no batch before the next one
                fruitless = self.progress.step
                self._restore_rng()
        if self.done:
            self._recovery.refuse_untrained()
            self._epoch_end.conclude()

    def _rest_of_epoch(self) -> Iterator[Any]:
        """Iterate over the rest of an epoch.

        The generators are restored after the loader may have used them.
        """
        batches = iter(self.task.loader)
        if self.progress.batch:
            self._restore_rng()
        return batches

    def _restore_rng(self) -> None:
        if self._saving.resumed_rng is not None:
            Rng().load_state_dict(self._saving.resumed_rng)

    def _record(self, metrics: Metrics) -> None:
        """Record a step's metrics, or recover if not finite."""
        values, step = floats(metrics, "The step"), self.progress.step
        if self._recovery.recovered(values):
            self._tracker.log_metrics({"step/nonfinite": 1.0}, step)
            return
        self.training.means.add(values)
        if step % self.config.log_interval == 0:
            self._tracker.log_metrics({f"step/{name}": value for name, value in values.items()}, step)
        if self._tracker.overtaken:
            raise RunHeld("Another process has taken this run over; this one stops without writing anything more.")

    def save(self, kind: Kind) -> None:
        """Save the present state."""
        self._saving.save(kind, self.measured)

    def described(self) -> dict[str, bytes]:
        """Return the present state's further checkpoint files by name."""
        return self._saving.described()

    def show(self) -> None:
        """Log the pictures of the epoch that just ended.

        An exact resume calls this too, because the process may have been killed between the checkpoint and its pictures.
        """
        self._evaluation.show(self._tracker)

    def restore(
        self,
        parts: Mapping[str, Any],
        *,
        imported: bool = False,
        changed: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        """Continue from the parts of a checkpoint.

        Hyper-parameters of optimizers, schedules and other parts that were built with other values than in the training
        that wrote the checkpoint take effect; all others continue from the checkpoint.

        Args:
            parts: name to state.
            imported: whether the checkpoint was imported, so that any part except the model may be missing.
            changed: configuration keys that changed since the checkpoint, each with (before, now). If ``None``, none did.

        Raises:
            StateMismatch: the parts do not fit this task.
        """
        self.training.restore(parts, imported=imported, changed=changed)
        self._saving.restored(parts.get("rng"))


def _refuse_wrong_types(task: Any, config: Any, ports: Mapping[str, Any]) -> None:
    refuse_unless(isinstance(task, Task), "task", task, "a mltrain.Task(step, loader)")
    refuse_unless(isinstance(config, Config), "config", config, "a mltrain.Config()")
    for name, part in ports.items():
        refuse_unless(not isinstance(part, type), name, part, "an instance instead of its class")
