"""Durable checkpoints for Lightning, as one callback.

>>> from mltrain.adapters.lightning import MltrainCheckpoint
>>> trainer = Trainer(callbacks=[MltrainCheckpoint(every_n_train_steps=500)])
>>> trainer.fit(model, loader)                                    # prints the run's id
>>> trainer.fit(model, loader, ckpt_path="mltrain:RUN_ID")        # continues it, in this process or in another

A Trainer of ``lightning.pytorch`` refuses callbacks of ``pytorch_lightning``, and the other way round. This callback belongs to
the one that is imported when it is made; where both are, to both.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mltrain.adapters.lightning_loops import Boundaries, as_left
from mltrain.adapters.lightning_parts import Curves, Door, OfLightning, refuse_second_logger, refuse_sharding
from mltrain.adapters.origin import SCHEME, Address, Origin
from mltrain.adapters.training import Training, record_late, refuse_ranks
from mltrain.checkpoint.manifest import Kind
from mltrain.checkpoint.retention import Policy
from mltrain.checkpoint.settings import Settings, newest_and_best, refuse_unless
from mltrain.errors import UsageError
from mltrain.metrics import floats

log = logging.getLogger(__name__)

_OWN = "mltrain"
"""The part of a checkpoint that holds what Lightning leaves out."""


class MltrainCheckpoint(OfLightning):
    """Saves a Lightning training in an MLflow run, continues it from there, and records its curves there.

    A state is saved at the ends of epochs, after each validation, every ``every_n_train_steps`` optimizer steps, and when the
    training is interrupted: SIGINT, SIGTERM, SIGHUP and SIGUSR1 let the step under way finish. ``fit`` returns when all of it
    is committed. The run is FINISHED then; FAILED after an exception; KILLED after a signal.

    ``ckpt_path="mltrain:RUN_ID"`` continues a run, and ``"mltrain:RUN_ID@best"`` goes back to its best checkpoint. The methods
    ``validate``, ``test`` and ``predict`` take both as well.

    Args:
        save_dir: a folder that holds the checkpoints, in place of a run; no curves are recorded then.
        every_n_train_steps: save every so many optimizer steps; 0 does not.
        every_n_epochs: save at the ends of every so many epochs; 0 does not. The last state of a training is always saved.
        on_validation: whether to save after each validation.
        max_to_keep: how many of the newest checkpoints stay; the best one stays too.
        policy: which ones stay, in place of ``max_to_keep``.
        monitor: the metric that decides which one is best.
        mode: whether less (``min``) or more (``max``) of it is better.

    Raises:
        UsageError: an argument is invalid, or neither package is installed.
    """

    _base = "Checkpoint"

    def __init__(
        self,
        save_dir: str | Path | None = None,
        *,
        every_n_train_steps: int = 0,
        every_n_epochs: int = 1,
        on_validation: bool = True,
        max_to_keep: int = 5,
        policy: Policy | None = None,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] = "min",
    ) -> None:
        super().__init__()
        for name, number in (("every_n_train_steps", every_n_train_steps), ("every_n_epochs", every_n_epochs)):
            refuse_unless(type(number) is int and number >= 0, name, number, "a whole number of at least 0")
        self._save_dir = save_dir
        self._every = {"batch": every_n_train_steps, "epoch": every_n_epochs}
        self._on_validation = on_validation
        self._kept = Settings(newest_and_best(max_to_keep) if policy is None else policy, monitor, mode)
        self._logger = Curves()
        self._origin: Origin | None = None
        self._training: Training | None = None
        self._boundaries: Boundaries | None = None
        self._trained: Any = None
        self.run_id: str | None = None
        """Id of the run (or the folder) of the last ``fit``; ``None`` before there is one."""
        self._validated: set[str] = set()
        self._is_validated = False

    @property
    def best_model_path(self) -> str:
        """What ``ckpt_path="best"`` stands for."""
        return f"{SCHEME}{self.run_id}@best" if self.run_id is not None else ""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let ``ckpt_path`` name runs, and refuse what cannot be saved whole."""
        io = trainer.strategy.checkpoint_io
        if not isinstance(io, Door):
            trainer.strategy.checkpoint_io = Door(io, lambda address: self._load(address, trainer))
        if stage != "fit" or trainer.fast_dev_run:
            return
        refuse_sharding(trainer.strategy)
        refuse_ranks(trainer.world_size, "Lightning")
        self._origin = None
        self._logger.begin(trainer)
        if self._logger not in trainer.loggers:
            trainer.loggers = [*trainer.loggers, self._logger]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the run, or continue that of the checkpoint."""
        if trainer.fast_dev_run:
            return
        refuse_second_logger(trainer, self._origin)
        boundaries = Boundaries(trainer, lambda boundary: self._reached(trainer, boundary))
        try:
            if self._origin is None and boundaries.step and self.run_id is not None and self._trained is trainer:
                self._origin = Origin.read(Address(self.run_id))  # fit() once more: the state is in memory
            elif self._origin is not None:
                boundaries.resume(self._origin.state[_OWN])
            training = Training(
                self._origin,
                save_dir=self._save_dir,
                kept=self._kept,
                state=self._state(trainer, boundaries.state("epoch")),
                parameters=self._logger.parameters,
            )
        except BaseException:
            boundaries.close()
            raise
        self._boundaries, self._training, self.run_id = boundaries, training, training.place
        self._trained = trainer
        self._logger.attach(training)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Note what was measured, for the checkpoint of this step."""
        if self._training is not None:
            self._is_validated = True
            self._validated |= set(trainer._logger_connector.metrics["callback"])

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note that weights are about to change."""
        if self._boundaries is not None:
            self._boundaries.touch()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the run, once everything is committed; before Lightning puts back the handlers of signals that it found."""
        self._end(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Save the state before the step that failed, if it is whole, and close the run with what has happened."""
        training, boundaries = self._training, self._boundaries
        own = boundaries.untouched() if boundaries is not None and isinstance(exception, Exception) else None
        if training is not None and own is not None and own["step"] > training.saved_step:
            try:
                training.save(self._state(trainer, own), own["step"], trainer.current_epoch, evaluated=False)
            except Exception as error:  # noqa: BLE001 - what ended the training is what the user has to see
                log.warning("The state before the step that failed could not be saved: %s", error)
        self._end(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Record what was logged after the training, by ``test`` for one."""
        self._end(None)
        late = self._logger.taken()
        if late and self.run_id is not None and not Address(self.run_id).is_folder:
            record_late(self.run_id, late)

    def _end(self, error: BaseException | None) -> None:
        training, self._training = self._training, None
        if self._boundaries is not None:
            self._boundaries.close()
        self._logger.detach()
        if training is not None:
            try:
                training.end(error)
            finally:
                self.run_id = training.place  # the run may have been created meanwhile

    def _load(self, address: Address, trainer: Any) -> dict[str, Any]:
        """Return a checkpoint as Lightning knows it."""
        origin = Origin.read(address)
        state = dict(origin.state)
        if "model" not in state or "loops" not in state or _OWN not in state:
            raise UsageError(
                f"{origin.manifest.name} of {address.place} holds {', '.join(state)}. Expected a checkpoint that "
                "MltrainCheckpoint saved. Try: mltrain checkpoints, for the runs and programs that wrote them."
            )
        own, state["state_dict"] = state.pop(_OWN), state.pop("model")
        if trainer.state.fn == "fit":
            self._origin = origin
            as_left(state["loops"], own["boundary"], by_steps=trainer.max_steps != -1)
        return state

    def _state(self, trainer: Any, own: Mapping[str, Any]) -> dict[str, Any]:
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if _OWN in state or "model" in state:
            raise UsageError(
                f"The checkpoint of this training has a part {_OWN!r} or 'model' of its own. Expected others."
            )
        state["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
        return {"model": state.pop("state_dict"), **state, _OWN: own}

    def _reached(self, trainer: Any, boundary: str) -> None:
        """Save where it is due, and stop where that was requested."""
        training, boundaries = self._training, self._boundaries
        assert training is not None
        assert boundaries is not None
        count, every = boundaries.step if boundary == "batch" else trainer.current_epoch, self._every[boundary]
        due = (
            bool(every and count % every == 0)
            or boundaries.is_last(boundary)
            or (self._on_validation and self._is_validated)
        )
        stopping = training.stop.requested
        if due or stopping:
            kind: Kind = "epoch" if boundary == "epoch" else "step" if due else "interrupted"
            step, epoch, measured = boundaries.step, trainer.current_epoch, self._measured(trainer)
            state = self._state(trainer, boundaries.state(boundary))
            training.save(state, step, epoch, measured, kind, evaluated=self._is_validated)
        self._is_validated = False
        if stopping and not (boundary == "epoch" and boundaries.is_last(boundary)):
            training.leave()

    def _measured(self, trainer: Any) -> dict[str, float]:
        """Return the metrics of this step, without those of an earlier validation."""
        stale = set() if self._is_validated else self._validated
        return floats(
            {key: float(value) for key, value in trainer.callback_metrics.items() if key not in stale}, "self.log"
        )
