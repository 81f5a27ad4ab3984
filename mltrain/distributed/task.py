"""A task that several ranks train together: its loader, gradients, evaluation, pictures, and restoring it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mltrain import device as devices
from mltrain.config import Config
from mltrain.data import Divisible
from mltrain.distributed.gradients import Gradients, Replicas
from mltrain.distributed.pieces import placed
from mltrain.distributed.step import AgreedStop, mean, together
from mltrain.distributed.world import World
from mltrain.errors import PeerLost, UsageError
from mltrain.metrics import floats
from mltrain.task import Task
from mltrain.trainer.loop import Trainer
from mltrain.trainer.ports import Stop
from mltrain.trainer.ranks import parts_of_rank


def shards_models(config: Config) -> bool:
    """Whether each rank holds a piece of the models, and not a replica."""
    return config.strategy == "fsdp"


def check_loader(task: Task) -> None:
    """Refuse a loader that cannot give each rank its part.

    Raises:
        UsageError: it cannot.
    """
    loader = task.loader
    if not isinstance(loader, Divisible):
        raise UsageError(
            f"A {type(loader).__name__} gives every process all batches. Expected a loader that gives each its part. Try: "
            "mltrain.ResumableLoader, a loader with a method divide(rank, ranks) and an attribute weight, or one process."
        )


def joined(world: World, task: Task, config: Config, stop: Stop) -> tuple[Task, Stop]:
    """Return a task and a request to stop as all ranks share them, once all have built the task.

    Raises:
        PeerLost: another rank has not.
        UsageError: the models of the task cannot be sharded.
    """
    world.agree(None)
    shards = shards_models(config)
    layout = Replicas(world)
    if shards:
        from mltrain.distributed.sharding import shard

        refusal: UsageError | None = None
        try:
            layout = shard(world, task, devices.chosen(config.device).type)
        except UsageError as error:
            refusal = error
        world.agree(refusal)
    loader: Any = task.loader
    loader.divide(layout.rank, layout.ranks)
    gradients = Gradients(world, task.parts().values(), layout)
    agreed = AgreedStop(stop)
    evaluate = _evaluated(world, task.evaluate, task.evaluate_on, shards) if task.evaluate is not None else None
    images, preview = (
        _by_one(world, make) if make is not None and (world.rank == 0 or shards) else None
        for make in (task.images, task.preview)
    )
    step = together(task.step, world, loader, gradients, agreed)
    return replace(task, step=step, evaluate=evaluate, images=images, preview=preview), agreed


def restore(world: World, trainer: Trainer, parts: Mapping[str, Any], how: Mapping[str, Any]) -> None:
    """Restore a sharded training; every process takes its pieces of a whole state."""
    try:
        own = placed(parts_of_rank(parts, world.rank, world.size), trainer.task.parts())
        trainer.restore(own, **how)
    except Exception as error:
        world.agree(error)
        raise
    world.agree(None)


def _by_one(world: World, function: Callable[[], Mapping[str, Any]]) -> Callable[[], Mapping[str, Any]]:
    def called() -> Mapping[str, Any]:
        with world.hidden():
            return function()

    return called


def _evaluated(
    world: World, evaluate: Callable[[], Mapping[str, float]], where: str, shards: bool
) -> Callable[[], Mapping[str, float]]:
    alone = where == "rank 0"
    called = _by_one(world, evaluate) if alone else evaluate

    def evaluated() -> Mapping[str, float]:
        values, failure = None, None
        if world.rank == 0 or shards or not alone:  # a sharded model needs all of them, and rank 0's values count
            try:
                values = floats(called(), "evaluate()")
            except Exception as error:  # noqa: BLE001 - it is raised on every rank
                failure = error
        heard = world.gather((values, None if failure is None else f"{type(failure).__name__}: {failure}"))
        if failure is not None:
            raise failure
        for rank, (_, why) in enumerate(heard):
            if why is not None:
                raise PeerLost(f"The evaluation on rank {rank} failed: {why}")
        return mean([(1.0, measured) for measured, _ in heard[: 1 if alone else None] if measured is not None])

    return evaluated
