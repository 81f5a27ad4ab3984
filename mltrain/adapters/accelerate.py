"""Durable checkpoints for training loops on accelerate.

>>> manager = CheckpointManager(run_id)                                 # None for a new run
>>> accelerator = Accelerator(log_with=MltrainTracker(manager))
>>> model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
>>> position = load(accelerator, manager)
>>> while position.epoch < 5:
...     for batch in position.batches(loader):                          # the rest of the epoch, after a resume
...         ...
...         save(accelerator, manager, position)

:func:`save` and :func:`load` replace ``accelerator.save_state``, which pickles and deletes old checkpoints before it writes the
new one, and ``accelerator.load_state``. The state consists of the objects passed to ``accelerator.prepare`` and to
``register_for_checkpointing``.
"""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import DistributedType

from mltrain.adapters.position import Position
from mltrain.checkpoint.manifest import CheckpointId, Kind
from mltrain.checkpoint.pytree import flatten
from mltrain.errors import UsageError
from mltrain.manager import CheckpointManager
from mltrain.metrics import Curves, floats
from mltrain.run.tracked import TrackedRun
from mltrain.state import TrainState


def save(
    accelerator: Accelerator,
    manager: CheckpointManager,
    position: Position,
    *,
    metrics: Mapping[str, float] | None = None,
) -> CheckpointId:
    """Save everything that the accelerator has prepared.

    Replaces ``accelerator.save_state``. The state is copied, and written in the background. No checkpoint is deleted before a
    newer one is committed.

    Args:
        accelerator: the accelerator with the prepared models, optimizers and schedules, and the registered objects.
        manager: the manager of the run or folder.
        position: the loop's position, from :func:`load`.
        metrics: metrics measured at this step, name to number.

    Returns:
        The identity of the checkpoint.

    Raises:
        UsageError: there are several processes, or accumulated gradients that no optimizer step has applied.
        UnsupportedValue: an object's state contains a value that is neither a tensor nor plain data; the message names it.
        RunHeld: another process has taken the run over.
    """
    prepared = _prepared(accelerator)
    if not accelerator.sync_gradients:
        raise UsageError(
            f"Step {position.step} has gradients that are accumulated and not applied, and a checkpoint holds no gradients. "
            "Expected save() after an optimizer step. Try: if accelerator.sync_gradients: save(…)"
        )
    state = {
        **prepared.state_dict(),
        "position": position.state_dict(),
        "accelerator": {"step": accelerator.step},
    }
    kind: Kind = "step" if position.batch else "epoch"
    return manager.save(state, step=position.step, epoch=position.epoch, metrics=metrics, kind=kind)


def load(accelerator: Accelerator, manager: CheckpointManager, which: str = "latest") -> Position:
    """Load a checkpoint into everything that the accelerator has prepared.

    Replaces ``accelerator.load_state``. An error leaves all objects unchanged. Call this after ``accelerator.prepare`` and
    before the first ``accelerator.log``.

    Args:
        accelerator: the accelerator, with the same prepared and registered objects as when the checkpoint was saved.
        manager: the manager of the run or folder to continue.
        which: name of the checkpoint; see :meth:`mltrain.CheckpointManager.load`.

    Returns:
        The position at which the loop continues. Before the first checkpoint, all its counters are 0.

    Raises:
        UsageError: there are several processes, or another program saved the checkpoint.
        StateMismatch: the checkpoint does not fit the objects.
        UnsupportedValue: an object's state contains a value that no later checkpoint could hold; the message names it.
        NoCheckpoint: no checkpoint matches ``which``, or all that match are damaged.
    """
    prepared = _prepared(accelerator)
    flatten(prepared.state_dict())
    found = manager.read(which)
    if found is None:
        manager.load(which)
        return Position()
    manifest, state = found
    if "accelerator" not in state:
        raise UsageError(
            f"{manifest.title} ({manifest.name}) holds {', '.join(state)}. Expected a checkpoint that save() of "
            "mltrain.adapters.accelerate wrote. Try: manager.load(), which returns the state unchanged."
        )
    prepared.restore({name: part for name, part in state.items() if name not in _LOOP_PARTS})
    accelerator.step = state["accelerator"]["step"]
    manager.continue_from(manifest)
    if isinstance(manager.run, TrackedRun) and which in ("latest", "interrupted"):
        manager.run.continue_exactly_after(manifest.step)
    return Position(state["position"])


class MltrainTracker(GeneralTracker):  # type: ignore[misc] # accelerate has no types that mypy reads here
    """Records ``accelerator.log`` in the manager's run, each point once.

    Kills and resumes duplicate no point. ``accelerator.end_training()`` closes the manager and sets the run FINISHED.

    Args:
        manager: the manager of the run.

    Raises:
        UsageError: the manager saves to a folder, without a run.
    """

    name = "mltrain"
    requires_logging_directory = False

    def __init__(self, manager: CheckpointManager) -> None:
        super().__init__()
        if not isinstance(manager.run, TrackedRun):
            raise UsageError(
                f"{manager.store.title} has no tracking server to log to. Expected a manager of a run. Try: CheckpointManager() "
                "without a folder, or an Accelerator without this tracker."
            )
        self._manager, self._run, self._curves = manager, manager.run, Curves(manager.run.log_metrics)

    @property
    def tracker(self) -> TrackedRun:
        """The run."""
        return self._run

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Record parameters; recorded ones keep their value."""
        self._run.record_parameters({key: str(value) for key, value in values.items()})

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        """Record metrics of a step without waiting for the server.

        Args:
            values: name to number, or to a tensor with one element.
            step: number of batches trained, such as ``position.step``.

        Raises:
            UsageError: ``step`` is ``None``, or a value is not one real number.
        """
        if step is None:
            raise UsageError(
                "accelerator.log was called without a step, which a resume needs to recognise recorded points. Expected a whole "
                "number. Try: accelerator.log(values, step=position.step)"
            )
        self._curves.log(floats(values, "accelerator.log"), step)

    def finish(self) -> None:
        """Wait for all commits, and set the run FINISHED.

        Raises:
            MltrainError: the newest checkpoint was not committed.
        """
        self._manager.close()


_LOOP_PARTS = ("position", "accelerator")


def _prepared(accelerator: Accelerator) -> TrainState:
    """Return all prepared and registered objects by name."""
    if accelerator.distributed_type != DistributedType.NO or accelerator.num_processes > 1:
        raise UsageError(
            f"The accelerator runs {accelerator.num_processes} process(es) as {accelerator.distributed_type.value}, but save() "
            "saves the state of one process only. Expected one process. Try: accelerate launch --num_processes 1, or "
            "`mltrain train` under torchrun (docs/distributed.md)."
        )
    state = TrainState()
    kinds = {
        "model": [accelerator.unwrap_model(model) for model in accelerator._models],
        "optimizer": [optimizer.optimizer for optimizer in accelerator._optimizers],
        "scheduler": [schedule.scheduler for schedule in accelerator._schedulers],
        "scaler": [accelerator.scaler] if accelerator.scaler is not None else [],
        "registered": accelerator._custom_objects,
    }
    for kind, objects in kinds.items():
        for number, one in enumerate(objects):
            state.add(kind if number == 0 else f"{kind}_{number}", one)
    if not state.parts:
        raise UsageError(
            "The accelerator has prepared nothing, so there is no state to save or load. Expected a prepared model. Try: "
            "accelerator.prepare(model, optimizer, loader)"
        )
    return state
