"""Durable checkpoints for loops on accelerate: ``save`` and ``load`` in place of ``save_state`` and ``load_state``.

>>> manager = CheckpointManager(run_id)                                 # None for a new run
>>> accelerator = Accelerator(log_with=MltrainTracker(manager))
>>> model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
>>> position = load(accelerator, manager)
>>> while position.epoch < 5:
...     for batch in position.batches(loader):                          # the rest of the epoch, after a resume
...         ...
...         save(accelerator, manager, position)

``save_state`` deletes old checkpoints before it writes the new one, and pickles; neither is used here. The state is what
``accelerator.prepare`` was given, and what was registered for checkpointing.
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
    """Save what the accelerator has prepared, in place of ``accelerator.save_state``.

    The state is copied and written in the background. Nothing is deleted before a newer checkpoint is committed.

    Args:
        accelerator: that prepared the models, optimizers and schedules, and was given other objects to checkpoint.
        manager: of the checkpoints.
        position: of the loop, from :func:`load`.
        metrics: measured at this step.

    Raises:
        UsageError: there are several processes, or gradients that are accumulated and not applied.
        UnsupportedValue: an object's state holds what no checkpoint can hold; the message names it.
    """
    prepared = _prepared(accelerator)
    if not accelerator.sync_gradients:
        raise UsageError(
            f"Step {position.step} has gradients that are accumulated and not applied, and no checkpoint holds gradients. "
            "Expected a save after optimizer.step(). Try: if accelerator.sync_gradients: save(…)"
        )
    state = {
        **prepared.state_dict(),
        "position": position.state_dict(),
        "accelerator": {"step": accelerator.step},
    }
    kind: Kind = "step" if position.batch else "epoch"
    return manager.save(state, step=position.step, epoch=position.epoch, metrics=metrics, kind=kind)


def load(accelerator: Accelerator, manager: CheckpointManager, which: str = "latest") -> Position:
    """Load a checkpoint into what the accelerator has prepared, in place of ``accelerator.load_state``.

    Either everything is loaded or nothing is changed. Call it after ``accelerator.prepare`` and before anything is logged.

    Args:
        accelerator: with the same objects, prepared and registered, as when it was saved.
        manager: of the run that is continued.
        which: see :meth:`mltrain.CheckpointManager.load`.

    Returns:
        Where the loop goes on: at its begin where the run has no checkpoint yet.

    Raises:
        UsageError: there are several processes, or another program saved the checkpoint.
        StateMismatch: it does not fit the objects; they are as they were.
        UnsupportedValue: an object's state holds what no checkpoint could hold later; the message names it.
        NoCheckpoint: the run has no checkpoint of this name, or only damaged ones.
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
            "mltrain.adapters.accelerate wrote. Try: manager.load(), which returns the state as it is."
        )
    prepared.restore({name: part for name, part in state.items() if name not in _OF_THE_LOOP})
    accelerator.step = state["accelerator"]["step"]
    manager.continue_from(manifest)
    if isinstance(manager.run, TrackedRun) and which in ("latest", "interrupted"):
        manager.run.continue_exactly_after(manifest.step)
    return Position(state["position"])


class MltrainTracker(GeneralTracker):  # type: ignore[misc] # accelerate has no types that mypy reads here
    """Records what ``accelerator.log`` is given in the manager's run, each key and step once over kills and resumes.

    ``accelerator.end_training()`` closes the manager, and the run is FINISHED.

    Args:
        manager: of the run.

    Raises:
        UsageError: the manager keeps its checkpoints in a folder.
    """

    name = "mltrain"
    requires_logging_directory = False

    def __init__(self, manager: CheckpointManager) -> None:
        super().__init__()
        if not isinstance(manager.run, TrackedRun):
            raise UsageError(
                f"{manager.store.title} has no tracking server, so nothing can be logged. Expected a manager of a run. Try: "
                "CheckpointManager() without a folder, or an Accelerator without this tracker."
            )
        self._manager, self._run, self._curves = manager, manager.run, Curves(manager.run.log_metrics)

    @property
    def tracker(self) -> TrackedRun:
        """The run."""
        return self._run

    def store_init_configuration(self, values: Mapping[str, Any]) -> None:
        """Record parameters; those that the run has already stay as they are."""
        self._run.record_parameters({key: str(value) for key, value in values.items()})

    def log(self, values: Mapping[str, Any], step: int | None = None, **_: Any) -> None:
        """Record metrics of a step; never waits for the server.

        Raises:
            UsageError: there is no step, or a value is not a number.
        """
        if step is None:
            raise UsageError(
                "accelerator.log was called without a step, by which a resume knows what is recorded. Expected a whole number. "
                "Try: accelerator.log(values, step=position.step)"
            )
        self._curves.log(floats(values, "accelerator.log"), step)

    def finish(self) -> None:
        """Wait until everything saved is kept, and close the run as FINISHED."""
        self._manager.close()


_OF_THE_LOOP = ("position", "accelerator")


def _prepared(accelerator: Accelerator) -> TrainState:
    """Return what the accelerator has prepared, and what was registered, by name."""
    if accelerator.distributed_type != DistributedType.NO or accelerator.num_processes > 1:
        raise UsageError(
            f"The accelerator runs {accelerator.num_processes} process(es) as {accelerator.distributed_type.value}, and save() "
            "keeps the state of one process. Expected one process. Try: accelerate launch --num_processes 1, or `mltrain train` "
            "under torchrun (docs/distributed.md)."
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
            "accelerator.prepare(model, optimizer, loader) first."
        )
    return state
