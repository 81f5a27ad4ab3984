"""Durable checkpoints for the ``Trainer`` of transformers, as one callback.

>>> trainer = Trainer(..., callbacks=[MltrainCallback()])
>>> trainer.train()                                               # prints the run's id
>>> trainer.train(resume_from_checkpoint=restore(run_id))         # continues it, in this process or in another

The Trainer writes its own ``checkpoint-N`` and then calls ``on_save``. The callback takes the state from the live objects and not
from those files, some of which are pickles. The Trainer's state names the run, in its own files as well; so
``resume_from_checkpoint=True`` continues the same run.
"""

import atexit
import sys
from collections.abc import Mapping
from functools import partial, wraps
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import MLflowCallback
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from mltrain.adapters.huggingface_folder import NOTE, restore
from mltrain.adapters.huggingface_parts import Silent, calling, numbers_of, state_of
from mltrain.adapters.origin import Address, Origin
from mltrain.adapters.training import Training, refuse_ranks
from mltrain.checkpoint.manifest import Kind
from mltrain.checkpoint.retention import Mode, Policy
from mltrain.checkpoint.settings import Settings, newest_and_best
from mltrain.errors import UsageError
from mltrain.metrics import Curves
from mltrain.rng import Rng
from mltrain.tracking.client import active_run_id

__all__ = ["MltrainCallback", "restore"]

_CLOCK = ("runtime", "_per_second", "total_flos", "train_loss")
"""Ends of the names of metrics that measure one call of ``train``, and so are others after a resume."""


class MltrainCallback(TrainerCallback):  # type: ignore[misc] # mypy does not read transformers
    """Saves each checkpoint of a ``Trainer`` in an MLflow run, and records there what the Trainer logs, each point once.

    A signal lets the step under way finish; the state is saved, ``train`` returns, and the run is KILLED. When ``train``
    raises, the run is FAILED. Each ``train`` that begins at step 0 has a run of its own.

    Args:
        run: id of the run. If ``None``, the one that the resumed checkpoint names, else the active MLflow run, else a new one.
        policy: which checkpoints of the run stay. If ``None``, the newest ``save_total_limit`` (or 5) and the best.

    Attributes:
        run_id: of the run, once ``train`` has opened it.

    Raises:
        UsageError: the Trainer has several processes, DeepSpeed, FSDP or XLA; or the run cannot be continued from where the
            training begins. Nothing has been written then.
        UnsupportedValue: the state of the optimizer or the schedule holds what no checkpoint can hold.
    """

    def __init__(self, run: str | None = None, *, policy: Policy | None = None) -> None:
        self.run_id = self._asked = run
        self._policy = policy
        self._trainer: Any = None
        self._training: Training | None = None
        self._measured: tuple[int, dict[str, float]] = (-1, {})

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Refuse what does not hold, and take the place of the Trainer's own callbacks of the same purpose."""
        self._join(args, state, control)

    def on_train_begin(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        """Open the run, or continue it from the checkpoint that the Trainer has loaded."""
        if calling() is not self._trainer:  # added by add_callback, or shared by several
            self._join(args, state, control)
        self._abandon()
        random_numbers = Rng()
        before = random_numbers.state_dict()
        note = state.stateful_callbacks.get(NOTE, {}).get("attributes", {})
        run_id = self._asked or note.get("run_id") or active_run_id()
        origin = Origin.reached(Address(run_id), state.global_step, note.get("checkpoint")) if run_id else None
        metric = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
        mode: Mode = "max" if args.greater_is_better else "min"
        self._training = training = Training(
            origin,
            run_id=run_id,
            kept=Settings(self._policy or newest_and_best(args.save_total_limit or 5), metric, mode),
            state=state_of(state, live),
            parameters={key: str(value) for key, value in args.to_sanitized_dict().items()},
        )
        atexit.register(self._abandon)
        self.run_id, self._curves = training.place, Curves(partial(training.log, clock=_CLOCK))
        for entry in state.log_history:  # those beyond the origin: a local checkpoint may be newer than any of the run
            values, recorded = numbers_of(entry), origin is not None and entry["step"] <= origin.manifest.step
            self._curves.log(values, entry["step"], recorded=recorded)
        if "loss" in note:
            trainer = self._trainer
            trainer._tr_loss.fill_(note["loss"])
            trainer._total_loss_scalar = -note["loss"]  # of which the mean is that of this call alone
            trainer._globalstep_last_logged = note["last_logged"]
        self._note(state)
        random_numbers.load_state_dict(before)  # opening a run may have drawn some

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After a request to stop, let the Trainer save and end."""
        if self._training is not None and self._training.stop.requested:
            control.should_save = control.should_training_stop = True
        if control.should_save or control.should_evaluate:
            self._note(state)

    on_epoch_end = on_step_end

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any], **_: Any) -> None:
        """Record what the Trainer logs."""
        if self._training is not None:
            self._curves.log(numbers_of(logs), state.global_step)
            self._note(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any], **_: Any) -> None:
        """Keep what was measured at this step for its checkpoint."""
        step, measured = self._measured
        self._measured = state.global_step, {**(measured if step == state.global_step else {}), **numbers_of(metrics)}

    def on_save(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        """Save the live objects."""
        if self._training is not None:
            self._note(state)
            step, measured = self._measured
            stopped, whole = self._training.stop.requested, float(state.epoch or 0).is_integer()
            kind: Kind = "interrupted" if stopped else "epoch" if whole else "step"
            metrics = measured if step == state.global_step else {}
            self._training.save(state_of(state, live), state.global_step, int(state.epoch or 0), metrics, kind)

    def on_train_end(self, args: Any, state: Any, control: Any, **live: Any) -> None:
        """Save the last state unless it is saved, and close the run."""
        training = self._training
        if training is None:
            return
        is_trained_state = not args.load_best_model_at_end or state.best_model_checkpoint is None
        if training.saved_step < state.global_step and is_trained_state:
            self.on_save(args, state, control, **live)
        cut_short = training.stop.requested and state.global_step < state.max_steps
        self._abort(KeyboardInterrupt() if cut_short else None)

    def _join(self, args: Any, state: Any, control: Any) -> None:
        """Attach to the Trainer that calls; no event tells which one that is, or that ``train`` raised."""
        trainer = calling()
        refuse_ranks(args.world_size, "The Trainer")
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled or args.parallel_mode.value == "tpu":
            raise UsageError(
                "The Trainer shards its state by DeepSpeed, FSDP or XLA, and MltrainCallback saves the state of one process. "
                "Expected one process with the whole state. Try: without the sharding."
            )
        callbacks = trainer.callback_handler.callbacks
        for place, one in enumerate(callbacks):
            if isinstance(one, JITCheckpointCallback):  # saves at a signal what no callback hears of
                one.on_train_end(args, state, control)  # which gives the signal back
                callbacks[place] = TrainerCallback()
            if isinstance(one, MLflowCallback):
                if one._initialized:
                    raise UsageError(
                        "report_to='mlflow' has opened a run of its own, and would record each point a second time. Expected "
                        "MltrainCallback to be there first. Try: Trainer(callbacks=[MltrainCallback()]), or report_to='none'."
                    )
                callbacks[place] = Silent()
        if not any(isinstance(one, MLflowCallback) for one in callbacks):
            callbacks.append(Silent())
        self._trainer, train = trainer, trainer.train

        @wraps(train)
        def watched(*arguments: Any, **named: Any) -> Any:
            try:
                return train(*arguments, **named)
            except BaseException as error:
                self._abort(error)
                raise

        trainer.train = watched

    def _abandon(self) -> None:
        """Close the run of a training that did not reach its end, if there is one."""
        self._abort(getattr(sys, "last_value", None) or RuntimeError("train() did not reach its end"))

    def _abort(self, error: BaseException | None) -> None:
        """Close the run, if it is open; without an error, the training is complete."""
        atexit.unregister(self._abandon)
        training, self._training = self._training, None
        if training is not None:
            try:
                training.end(error)
            finally:
                self.run_id = training.place  # the run may have been created meanwhile

    def _note(self, state: Any) -> None:
        """Put into the Trainer's state what it does not keep itself: the run, and the losses since it logged last."""
        trainer = self._trainer
        state.stateful_callbacks[NOTE] = {
            "args": {},
            "attributes": {
                "run_id": self.run_id,
                "loss": float(trainer._tr_loss),
                "last_logged": trainer._globalstep_last_logged,
            },
        }
