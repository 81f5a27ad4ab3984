"""Durable checkpoints for the ``Trainer`` of transformers, as one callback.

>>> trainer = Trainer(..., callbacks=[MltrainCallback()])
>>> trainer.train()                                               # prints the run's id
>>> trainer.train(resume_from_checkpoint=restore(run_id))         # continues it, in this process or in another

The Trainer writes its own ``checkpoint-N`` and then calls ``on_save``. The callback copies the state from the live objects
instead of those files, some of which are pickles. It adds the run's id to the Trainer's state, which the Trainer saves in its own
files too, so ``resume_from_checkpoint=True`` continues the same run.
"""

import atexit
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial, wraps
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations import MLflowCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from mltrain.adapters.huggingface_folder import STATE_KEY, restore, state_of
from mltrain.adapters.origin import Address, Origin
from mltrain.adapters.training import Recorder, Training, refuse_ranks
from mltrain.checkpoint.manifest import Kind
from mltrain.checkpoint.retention import Mode, Policy
from mltrain.checkpoint.settings import Settings, newest_and_best
from mltrain.errors import UsageError
from mltrain.metrics import Curves, floats
from mltrain.rng import Rng
from mltrain.tracking.client import active_run_id

__all__ = ["MltrainCallback", "restore"]

_TIMING_SUFFIXES = ("runtime", "_per_second", "total_flos", "train_loss")
"""Name endings of metrics of one ``train`` call, which differ after a resume."""


class MltrainCallback(Recorder, TrainerCallback):  # type: ignore[misc] # mypy does not read transformers
    """Saves and records a ``Trainer``'s training in an MLflow run.

    The callback saves whenever the Trainer saves, and records each logged point once. SIGINT, SIGTERM, SIGHUP and SIGUSR1 let the
    current step finish; then the callback saves, ``train`` returns, and the run is KILLED. If ``train`` raises, the run is
    FAILED. Each ``train`` that begins at step 0 gets a run of its own.

    Args:
        run: id of the run. If ``None``, the run that the resumed checkpoint names, otherwise the active MLflow run, otherwise a
            new run.
        policy: retention policy. If ``None``, the newest ``save_total_limit`` checkpoints (or 5) and the best one stay.

    Attributes:
        run_id: id of the run. ``None`` before ``train`` opens the run, unless ``run`` was passed.

    Raises:
        UsageError: the Trainer has several processes, DeepSpeed, FSDP or XLA; or all checkpoints of the run are later than the
            step at which ``train`` begins. Nothing is written in these cases.
        UnsupportedValue: the state of optimizer or schedule contains a value that is neither a tensor nor plain data.
    """

    def __init__(self, run: str | None = None, *, policy: Policy | None = None) -> None:
        self.run_id = self._asked = run
        self._policy = policy
        self._trainer: Any = None

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the Trainer and replace its MLflow and JIT-checkpoint callbacks."""
        self._attach(args, state, control)

    def on_train_begin(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        """Open a new run, or continue the loaded checkpoint's run."""
        if calling_trainer() is not self._trainer:  # added by add_callback, or shared by several
            self._attach(args, state, control)
        self._close_unfinished()
        random_numbers = Rng()
        before = random_numbers.state_dict()
        saved = state.stateful_callbacks.get(STATE_KEY, {}).get("attributes", {})
        run_id = self._asked or saved.get("run_id") or active_run_id()
        origin = Origin.find(Address(run_id), state.global_step, saved.get("checkpoint")) if run_id else None
        metric = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
        mode: Mode = "max" if args.greater_is_better else "min"
        self._training = training = Training(
            origin,
            run_id=run_id,
            settings=Settings(self._policy or newest_and_best(args.save_total_limit or 5), metric, mode),
            state=state_of(state, live),
            parameters={key: str(value) for key, value in args.to_sanitized_dict().items()},
        )
        atexit.register(self._close_unfinished)
        self.run_id, self._curves = training.location, Curves(partial(training.log, timing_suffixes=_TIMING_SUFFIXES))
        for entry in state.log_history:  # the Trainer's own checkpoint may be newer than the origin
            values, recorded = _numbers_of(entry), origin is not None and entry["step"] <= origin.manifest.step
            self._curves.log(values, entry["step"], recorded=recorded)
        if "loss" in saved:
            trainer = self._trainer
            trainer._tr_loss.fill_(saved["loss"])
            trainer._total_loss_scalar = -saved["loss"]  # train_loss is the mean of this call alone
            trainer._globalstep_last_logged = saved["last_logged"]
        self._update_trainer_state(state)
        random_numbers.load_state_dict(before)  # opening the run may have drawn some

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Let the Trainer save and end after a stop request."""
        if self._training is not None and self._training.stop.requested:
            control.should_save = control.should_training_stop = True
        if control.should_save or control.should_evaluate:
            self._update_trainer_state(state)

    on_epoch_end = on_step_end

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        """Record the metrics that the Trainer logs."""
        if self._training is not None:
            self._curves.log(_numbers_of(logs), state.global_step)
            self._update_trainer_state(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any], **_: Any) -> None:
        """Keep the metrics of this step for its checkpoint."""
        self._measure(state.global_step, _numbers_of(metrics))

    def on_save(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        """Save a checkpoint from the live objects."""
        if self._training is not None:
            self._update_trainer_state(state)
            stopped, whole = self._training.stop.requested, float(state.epoch or 0).is_integer()
            kind: Kind = "interrupted" if stopped else "epoch" if whole else "step"
            step = state.global_step
            self._training.save(state_of(state, live), step, int(state.epoch or 0), self._measured_at(step), kind)

    def on_train_end(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        """Save the last state if necessary, and close the run."""
        training = self._training
        if training is None:
            return
        is_trained_state = not args.load_best_model_at_end or state.best_model_checkpoint is None
        if training.saved_step < state.global_step and is_trained_state:
            self.on_save(args, state, control, **live)
        cut_short = training.stop.requested and state.global_step < state.max_steps
        self._end(KeyboardInterrupt() if cut_short else None)

    def _attach(self, args: Any, state: Any, control: Any) -> None:
        """Attach to the calling Trainer and catch errors of ``train``.

        No event of a callback passes the Trainer or an exception of ``train``.
        """
        trainer = calling_trainer()
        refuse_ranks(args.world_size, "The Trainer")
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or args.parallel_mode.value == "tpu":
            raise UsageError(
                "The Trainer shards its state by DeepSpeed, FSDP or XLA, but MltrainCallback saves the state of one process. "
                "Expected one process with the whole state. Try: TrainingArguments without deepspeed and fsdp"
            )
        callbacks = trainer.callback_handler.callbacks
        for index, one in enumerate(callbacks):
            if isinstance(one, JITCheckpointCallback):  # on a signal, it saves without calling on_save
                one.on_train_end(args, state, control)  # restores the signal handler
                callbacks[index] = TrainerCallback()
            if isinstance(one, MLflowCallback):
                if one._initialized:
                    raise UsageError(
                        "report_to='mlflow' has opened a run of its own, and would record each point a second time. Expected "
                        "MltrainCallback before that. Try: Trainer(callbacks=[MltrainCallback()]), or report_to='none'"
                    )
                callbacks[index] = _DisabledMLflowCallback()
        if not any(isinstance(one, MLflowCallback) for one in callbacks):
            callbacks.append(_DisabledMLflowCallback())
        self._trainer, train = trainer, trainer.train

        @wraps(train)
        def watched(*arguments: Any, **named: Any) -> Any:
            try:
                return train(*arguments, **named)
            except BaseException as error:
                self._end(error)
                raise

        trainer.train = watched

    def _close_unfinished(self) -> None:
        """Close the run of an unfinished training."""
        self._end(getattr(sys, "last_value", None) or RuntimeError("train() did not reach its end"))

    def _end(self, error: BaseException | None) -> None:
        atexit.unregister(self._close_unfinished)
        super()._end(error)

    def _update_trainer_state(self, state: Any) -> None:
        """Add run and unlogged losses to the Trainer's state."""
        trainer = self._trainer
        state.stateful_callbacks[STATE_KEY] = {
            "args": {},
            "attributes": {
                "run_id": self.run_id,
                "loss": float(trainer._tr_loss),
                "last_logged": trainer._globalstep_last_logged,
            },
        }


class _DisabledMLflowCallback(MLflowCallback):  # type: ignore[misc] # mypy does not read transformers
    """An ``MLflowCallback`` that records nothing.

    It replaces that of the Trainer and of MLflow's autologging, which would record each point a second time.
    """

    def __init__(self) -> None:
        self._initialized = self._auto_end_run = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Do nothing."""

    on_log = on_train_end = on_save = on_train_begin


def calling_trainer() -> Any:
    """Return the Trainer that calls this event.

    Raises:
        UsageError: the caller is not a Trainer.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Trainer):
            return frame.f_locals["self"]
        frame = frame.f_back  # type: ignore[assignment]
    raise UsageError(
        "An event of MltrainCallback was called without a Trainer. Expected a call by a Trainer. Try: "
        "Trainer(callbacks=[MltrainCallback()])"
    )


def _numbers_of(logs: Mapping[str, Any]) -> dict[str, float]:
    """Return the logged values that are single numbers, without ``step``."""
    found: dict[str, float] = {}
    for key, value in logs.items():
        with suppress(UsageError):
            found |= floats({key: value}, "the Trainer") if key != "step" else {}
    return found
