"""Durable checkpoints for Lightning, as one callback.

>>> from mltrain.adapters.lightning import MltrainCheckpoint
>>> trainer = Trainer(callbacks=[MltrainCheckpoint(every_n_train_steps=500)])
>>> trainer.fit(model, loader)                                    # prints the run's id
>>> trainer.fit(model, loader, ckpt_path="mltrain:RUN_ID")        # continues it, in this process or in another

A Trainer of ``lightning.pytorch`` refuses callbacks of ``pytorch_lightning``, and vice versa. This callback is one of each
package that is imported when the callback is created.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mltrain.adapters.lightning_loops import Boundaries, align_progress
from mltrain.adapters.lightning_parts import AddressIO, LightningMixin, RunLogger, refuse_second_logger, refuse_sharding
from mltrain.adapters.origin import SCHEME, Address, Origin
from mltrain.adapters.training import Recorder, Training, record_late, refuse_ranks
from mltrain.checkpoint.manifest import Kind
from mltrain.checkpoint.retention import Policy
from mltrain.checkpoint.settings import Settings, newest_and_best, refuse_unless
from mltrain.errors import UsageError
from mltrain.metrics import floats
from mltrain.signals import Terminated

log = logging.getLogger(__name__)

_PART = "mltrain"
"""The part of a checkpoint with the state that Lightning's own checkpoints lack."""


class MltrainCheckpoint(Recorder, LightningMixin):
    """Saves and records a Lightning training in an MLflow run.

    The callback saves at the ends of epochs, after each validation, every ``every_n_train_steps`` optimizer steps, and after
    SIGINT, SIGTERM, SIGHUP or SIGUSR1, which let the current step finish. ``fit`` returns once all checkpoints are committed.
    The run is then FINISHED; after an exception it is FAILED, after a signal KILLED.

    ``ckpt_path="mltrain:RUN_ID"`` continues a run, and ``"mltrain:RUN_ID@best"`` goes back to its best checkpoint. The methods
    ``validate``, ``test`` and ``predict`` accept both addresses, too.

    Args:
        save_dir: folder for the checkpoints, in place of a run. The curves are then not recorded.
        every_n_train_steps: save after every so many optimizer steps; 0 turns this off.
        every_n_epochs: save after every so many epochs; 0 turns this off. The last state of a training is always saved.
        on_validation: whether to save after each validation.
        max_to_keep: number of newest checkpoints that stay. The best one stays too.
        policy: retention policy, in place of ``max_to_keep``. If ``None``, ``max_to_keep`` applies.
        monitor: name of the metric that decides which checkpoint is best.
        mode: ``min`` if a lower value is better, ``max`` if a higher one is.

    Raises:
        UsageError: an argument is invalid, or neither Lightning package is installed.
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
        self._settings = Settings(newest_and_best(max_to_keep) if policy is None else policy, monitor, mode)
        self._logger = RunLogger()
        self._origin: Origin | None = None
        self._boundaries: Boundaries | None = None
        self._trained: Any = None
        self._validated: set[str] = set()
        self._is_validated = False

    @property
    def best_model_path(self) -> str:
        """Address of the best checkpoint, for ``ckpt_path="best"``; empty without a run."""
        return f"{SCHEME}{self.run_id}@best" if self.run_id is not None else ""

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Accept addresses as ``ckpt_path``, and check the strategy.

        Raises:
            UsageError: the Trainer has several processes or a sharded strategy.
        """
        io = trainer.strategy.checkpoint_io
        if not isinstance(io, AddressIO):
            trainer.strategy.checkpoint_io = AddressIO(io, lambda address: self._load(address, trainer))
        if stage != "fit" or trainer.fast_dev_run:
            return
        refuse_sharding(trainer.strategy)
        refuse_ranks(trainer.world_size, "Lightning")
        self._origin = None
        self._logger.begin(trainer)
        if self._logger not in trainer.loggers:
            trainer.loggers = [*trainer.loggers, self._logger]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open a new run, or continue the loaded checkpoint's run.

        Raises:
            UnsupportedValue: the state contains a value that no checkpoint can hold.
            UsageError: the run has checkpoints that this training does not continue, or ``MLFlowLogger`` writes to the run.
            RunHeld: another process writes to the run.
            TrackingError, StorageError: the run cannot be written to.
        """
        if trainer.fast_dev_run:
            return
        refuse_second_logger(trainer, self._origin)
        boundaries = Boundaries(trainer, lambda boundary: self._reached(trainer, boundary))
        try:
            if self._origin is None and boundaries.step and self.run_id is not None and self._trained is trainer:
                self._origin = Origin.read(Address(self.run_id))  # fit() was called again: the state is in memory
            elif self._origin is not None:
                boundaries.resume(self._origin.state[_PART])
            training = Training(
                self._origin,
                save_dir=self._save_dir,
                settings=self._settings,
                state=self._state(trainer, boundaries.state("epoch")),
                parameters=self._logger.parameters,
            )
        except BaseException:
            boundaries.close()
            raise
        self._boundaries, self._training, self.run_id = boundaries, training, training.location
        self._trained = trainer
        self._logger.attach(training)
        if trainer.received_sigterm:  # before our handlers; Lightning would end without saving
            trainer._signal_connector.received_sigterm = False
            training.stop.request("SIGTERM")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Remember which metrics come from this validation."""
        if self._training is not None:
            self._is_validated = True
            self._validated |= set(trainer._logger_connector.metrics["callback"])

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Mark the previous state as no longer in memory."""
        if self._boundaries is not None:
            self._boundaries.invalidate()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Wait until all checkpoints are committed, and close the run.

        This happens before Lightning restores the signal handlers that it found.
        """
        self._end(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Save the state before the failure, and close the run.

        Nothing is saved if the optimizer may have changed that state.
        """
        if isinstance(exception, SystemExit) and trainer.received_sigterm and exception.code is None:
            exception.code = Terminated.exit_code  # Lightning exits with 0
        training, boundaries = self._training, self._boundaries
        own = boundaries.before_failed_step() if boundaries is not None and isinstance(exception, Exception) else None
        if training is not None and own is not None and own["step"] > training.saved_step:
            try:
                training.save(self._state(trainer, own), own["step"], trainer.current_epoch, evaluated=False)
            except Exception as error:  # noqa: BLE001 - the user has to see the error that ended the training
                log.warning("The state before the failed step could not be saved: %s", error)
        self._end(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Record metrics logged outside of ``fit``, such as by ``test``."""
        self._end(None)
        late = self._logger.take_unrecorded()
        if late and self.run_id is not None and not Address(self.run_id).is_folder:
            record_late(self.run_id, late)

    def _end(self, error: BaseException | None) -> None:
        if self._boundaries is not None:
            self._boundaries.close()
        self._logger.detach()
        super()._end(error)

    def _load(self, address: Address, trainer: Any) -> dict[str, Any]:
        """Return a checkpoint in Lightning's layout."""
        origin = Origin.read(address)
        state = dict(origin.state)
        if "model" not in state or "loops" not in state or _PART not in state:
            raise UsageError(
                f"{origin.manifest.name} of {address.location} holds {', '.join(state)}. Expected a checkpoint that "
                "MltrainCheckpoint saved. Try: mltrain runs"
            )
        own, state["state_dict"] = state.pop(_PART), state.pop("model")
        if trainer.state.fn == "fit":
            self._origin = origin
            align_progress(state["loops"], own["boundary"], by_steps=trainer.max_steps != -1)
        return state

    def _state(self, trainer: Any, own: Mapping[str, Any]) -> dict[str, Any]:
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if _PART in state or "model" in state:
            raise UsageError(
                f"A callback or module adds {_PART!r} or 'model' to the checkpoint. Expected names that mltrain does not use."
            )
        state["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
        return {"model": state.pop("state_dict"), **state, _PART: own}

    def _reached(self, trainer: Any, boundary: str) -> None:
        """Save if due at this boundary, and stop if requested."""
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
        """Return this step's metrics, without an earlier validation's."""
        stale = set() if self._is_validated else self._validated
        return floats(
            {key: float(value) for key, value in trainer.callback_metrics.items() if key not in stale}, "self.log"
        )
