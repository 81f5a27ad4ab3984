"""Durable checkpoints for Ignite, as a save handler.

>>> to_save = {"model": model, "optimizer": optimizer, "trainer": trainer, "loader": loader}
>>> saver = MltrainSaver(trainer, to_save)                        # or MltrainSaver(trainer, to_save, "mltrain:RUN_ID")
>>> trainer.add_event_handler(Events.ITERATION_COMPLETED(every=500), Checkpoint(to_save, saver))
>>> trainer.run(loader, max_epochs=10)
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mltrain.adapters.origin import Address, Origin
from mltrain.adapters.training import Recorder, Training, refuse_ranks
from mltrain.checkpoint.manifest import Kind
from mltrain.checkpoint.policies import Best, Latest
from mltrain.checkpoint.retention import Mode, Policy
from mltrain.checkpoint.settings import Settings
from mltrain.errors import UsageError
from mltrain.metrics import floats
from mltrain.rng import Rng

log = logging.getLogger(__name__)

_PART = "mltrain"
"""The part of a checkpoint with the random numbers and the kind of boundary."""


class MltrainSaver(Recorder):
    """A save handler that saves and records an engine's training.

    The saver saves when a ``Checkpoint`` calls it, but only after all other handlers of that event; at the last iteration of an
    epoch, after those of ``EPOCH_COMPLETED``. It always saves the last state, and the state after SIGINT, SIGTERM, SIGHUP or
    SIGUSR1. ``run`` returns once all checkpoints are committed. The MLflow run is then FINISHED; after an exception it is
    FAILED, after a signal KILLED. Ignite calls ``remove`` before it saves; the saver ignores that, and ``policy`` removes
    checkpoints after the save.

    Args:
        trainer: the engine that trains.
        to_save: name to object with ``state_dict`` and ``load_state_dict``. The engine must be among them.
        resume: ``mltrain:RUN_ID`` continues a run, ``mltrain:RUN_ID@best`` goes back to its best checkpoint; the constructor
            loads the objects. If ``None``, a training begins in the active MLflow run or a new one.
        save_dir: folder for the checkpoints, in place of a run. The curves are then not recorded.
        policy: retention policy. If ``None``, the newest five checkpoints and the best one stay.
        metric: name of the metric that decides which checkpoint is best: the ``score_name`` of a ``Checkpoint``, or a name
            passed to :meth:`log_metrics`.
        mode: ``min`` if a lower value is better, ``max`` if a higher one is.

    Raises:
        UsageError: an argument is invalid; the engine has several processes; or the checkpoint lacks an object of ``to_save``.
        NoCheckpoint: the run to resume has no matching intact checkpoint.
        RunNotFound: the run to resume does not exist.
        TrackingError: the tracking server does not answer.
    """

    def __init__(
        self,
        trainer: Any,
        to_save: Mapping[str, Any],
        resume: str | None = None,
        *,
        save_dir: str | Path | None = None,
        policy: Policy | None = None,
        metric: str = "score",
        mode: Mode = "max",
    ) -> None:
        from ignite import distributed
        from ignite.engine import Events
        from ignite.handlers.checkpoint import BaseSaveHandler, Checkpoint

        refuse_ranks(distributed.get_world_size(), "Ignite")
        if trainer not in to_save.values() or _PART in to_save:
            raise UsageError(
                f"to_save has {', '.join(map(str, to_save))}. Expected the engine among them, and no object named {_PART!r}. "
                "Try: to_save = {'model': model, 'optimizer': optimizer, 'trainer': trainer}"
            )
        BaseSaveHandler.register(type(self))  # here, so that importing this module does not import Ignite
        self._trainer, self._events = trainer, Events
        self._save_dir = save_dir
        self._settings = Settings(Latest(5) | Best(1) if policy is None else policy, metric, mode)
        self._objects = Checkpoint(to_save, self)
        self._origin: Origin | None = None
        self._due: dict[str, Any] | None = None
        self._resumed: Mapping[str, Any] | None = None
        if resume is not None:
            self._load(resume, to_save, Checkpoint.load_objects)
        trainer.add_event_handler(Events.STARTED, self._begin)

    def __call__(self, checkpoint: Mapping[str, Any], filename: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Save the objects after the other handlers of this event.

        Args:
            checkpoint: state of the objects by name. Only ``checkpointer``, the state of the ``Checkpoint``, is used; the others
                are read again at the time of the save.
            filename: name that Ignite chose; ignored.
            metadata: the ``score_name`` and ``priority`` (the score) of the ``Checkpoint``.
        """
        further = {name: part for name, part in checkpoint.items() if name == "checkpointer"}
        self._due = {**(self._due or {}), **further}
        if metadata is not None and metadata.get("score_name"):
            self._measure(self._trainer.state.iteration, {metadata["score_name"]: metadata["priority"]})

    def remove(self, filename: str) -> None:
        """Do nothing; the policy removes checkpoints after the next commit."""

    def log_metrics(self, values: Mapping[str, Any], step: int | None = None) -> None:
        """Record metrics, each point once over all resumes.

        Args:
            values: name to number, or to a tensor with one element.
            step: iterations done. If ``None``, the engine's iteration.

        Raises:
            UsageError: a value is not one real number.
        """
        numbers, now = floats(values, "log_metrics"), self._trainer.state.iteration
        if self._training is not None:
            self._training.log(numbers, now if step is None else step)
        if step is None:
            self._measure(now, numbers)

    def _load(self, resume: str, to_save: Mapping[str, Any], load_objects: Any) -> None:
        address = Address.parse(resume)
        if address is None:
            raise UsageError(f"resume={resume!r:.80} is invalid. Expected 'mltrain:RUN_ID'. Try: mltrain runs")
        self._origin = origin = Origin.read(address)
        missing = sorted({*map(str, to_save), _PART} - origin.state.keys())
        if missing:
            raise UsageError(
                f"{origin.manifest.name} of {address.location} holds {', '.join(origin.state)}, and lacks {', '.join(missing)}. "
                "Expected a checkpoint of MltrainSaver with the same names in to_save. Try: mltrain runs"
            )
        load_objects(to_save, origin.state)
        self._resumed = origin.state[_PART]

    def _begin(self, engine: Any) -> None:
        """Open the run, and attach behind the engine's other handlers."""
        if self._origin is None and engine.state.iteration and self.run_id is not None:
            self._origin = Origin.read(Address(self.run_id))  # run() was called again: the state is in memory
        if (
            self._origin is not None and engine.state.iteration < self._origin.manifest.step
        ):  # Ignite restarts what is done
            raise UsageError(
                f"{self._origin.address.location} has reached iteration {self._origin.manifest.step}, all of max_epochs="
                f"{engine.state.max_epochs}, and Ignite would begin again at 0. Expected more epochs, to continue it. Try: "
                "run(loader, max_epochs=…) with a larger number, or no resume="
            )
        self._training = training = Training(
            self._origin,
            save_dir=self._save_dir,
            settings=self._settings,
            state=self._state("epoch"),
        )
        self._origin, self.run_id, self._due = None, training.location, None
        events = self._events
        for event, handler in (
            (events.GET_BATCH_STARTED, self._restore),
            (events.ITERATION_COMPLETED, self._iteration_ended),
            (events.EPOCH_COMPLETED, self._epoch_ended),
            (events.COMPLETED, self._completed),
            (events.TERMINATE, self._terminated),
            (events.EXCEPTION_RAISED, self._failed),
        ):
            if not engine.has_event_handler(handler, event):
                engine.add_event_handler(event, handler)
        if self._resumed is not None and self._resumed["boundary"] == "epoch":
            self._restore(engine)

    def _restore(self, engine: Any) -> None:
        """Restore the random numbers of the loaded checkpoint, once.

        A checkpoint from the end of an epoch is restored before the loader creates its iterator, any other after that.
        """
        own, self._resumed = self._resumed, None
        if own is not None:
            Rng().load_state_dict(own["rng"])

    def _iteration_ended(self, engine: Any) -> None:
        length = engine.state.epoch_length
        if length is not None and engine.state.iteration % length:
            self._reached("iteration")  # the last iteration is handled at the end of the epoch

    def _epoch_ended(self, engine: Any) -> None:
        self._reached("epoch")

    def _completed(self, engine: Any) -> None:
        training = self._training
        if training is not None and training.saved_step < engine.state.iteration:
            self._save("epoch", "epoch")
        self._end(None)

    def _terminated(self, engine: Any) -> None:
        if engine.should_terminate == "skip_completed":
            self._completed(engine)

    def _failed(self, engine: Any, error: BaseException) -> None:
        self._end(error)
        if len(engine._event_handlers[self._events.EXCEPTION_RAISED]) == 1:
            raise error  # as Ignite does without a handler of the user

    def _reached(self, boundary: str) -> None:
        training = self._training
        if training is None:
            return
        if self._due is not None or training.stop.requested:
            self._save(boundary, "epoch" if boundary == "epoch" else "step" if self._due is not None else "interrupted")
        if training.stop.requested and not self._trainer._is_done(self._trainer.state):
            training.leave()

    def _save(self, boundary: str, kind: Kind) -> None:
        assert self._training is not None
        state, step = self._trainer.state, self._trainer.state.iteration
        metrics = floats(self._measured_at(step), "score_function")
        epoch = step // state.epoch_length if state.epoch_length else state.epoch
        self._training.save(
            self._state(boundary), step, epoch, metrics, kind, evaluated=self._settings.metric != "score"
        )
        self._due = None

    def _state(self, boundary: str) -> dict[str, Any]:
        own = {"boundary": boundary, "rng": Rng().state_dict()}
        return {**self._objects._setup_checkpoint(), **(self._due or {}), _PART: own}
