"""A task on several ranks: loader, gradients, evaluation, images, restoring."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from mltrain import device as devices
from mltrain.checkpoint.shards import Assembly
from mltrain.config import Config
from mltrain.data import Divisible
from mltrain.distributed.gradients import Gradients, Replicas
from mltrain.distributed.loading import with_pieces
from mltrain.distributed.pieces import placed
from mltrain.distributed.step import AgreedStop, mean, synchronized
from mltrain.distributed.together import Together
from mltrain.distributed.world import World
from mltrain.errors import UsageError
from mltrain.metrics import floats
from mltrain.task import Task
from mltrain.trainer.loop import Trainer
from mltrain.trainer.ports import Stop
from mltrain.trainer.ranks import parts_of_rank


def check_loader(task: Task) -> None:
    """Check that a task's loader can be divided over ranks.

    Raises:
        UsageError: it cannot.
    """
    loader = task.loader
    if not isinstance(loader, Divisible):
        raise UsageError(
            f"The loader gives every process all batches. Expected one with divide(rank, ranks) and weight, got a "
            f"{type(loader).__name__}. Try: mltrain.ResumableLoader, or one process"
        )


def distribute(world: World, task: Task, config: Config, stop: Stop) -> tuple[Task, Stop]:
    """Return task and stop request, shared by all ranks.

    All ranks call this after they have built the task.

    Raises:
        PeerLost: another rank has failed to build it.
        UsageError: the models of the task cannot be sharded.
    """
    world.agree(None)
    shards = config.strategy == "fsdp"
    if world.channel is None:
        world.open_channel()
    loader: Any = task.loader
    with agreed(world):
        layout = Replicas(world)
        if shards:
            from mltrain.distributed.sharding import shard

            layout = shard(world, task, devices.chosen(config.device).type)
        loader.divide(layout.rank, layout.ranks)
        gradients = Gradients(world, task.parts().values(), layout)
    shared = AgreedStop(stop)
    evaluate = _evaluated(world, task.evaluate, task.evaluate_on, shards) if task.evaluate is not None else None
    images, preview = (
        _pictures(world, make, name, shards) if make is not None and (world.rank == 0 or shards) else None
        for name, make in (("images()", task.images), ("preview()", task.preview))
    )
    step = synchronized(task.step, world, loader, gradients, shared)
    return replace(task, step=step, evaluate=evaluate, images=images, preview=preview), shared


def restore(
    world: World,
    trainer: Trainer,
    parts: Callable[[], Mapping[str, Any]],
    how: Mapping[str, Any],
    assembly: Assembly | None,
) -> None:
    """Restore a training on all ranks, each its own pieces.

    Args:
        world: the ranks.
        trainer: of this rank.
        parts: returns the parts of the checkpoint; sharded tensors may be missing.
        how: see :meth:`mltrain.Trainer.restore`.
        assembly: of the sharded tensors. If ``None``, all tensors are whole.

    Raises:
        MltrainError: on all ranks, if one of them fails; the training is unchanged on each.
    """
    trained = trainer.task.parts()
    own: Mapping[str, Any] = {}
    with agreed(world):
        own = parts_of_rank(parts(), world.rank, world.size)
    with agreed(world):
        assert world.channel is not None
        own = with_pieces(own, trained, assembly, world.channel) if assembly is not None else placed(own, trained)
    with agreed(world):
        trainer.restore(own, **how)


@contextmanager
def agreed(world: World) -> Iterator[None]:
    """Run a block on all ranks; raise errors on all.

    Raises:
        PeerLost: the block failed on another rank.
    """
    try:
        yield
    except Exception as error:
        world.agree(error)
        raise
    world.agree(None)


def _without_peers(world: World, function: Callable[[], Mapping[str, Any]]) -> Callable[[], Mapping[str, Any]]:
    def called() -> Mapping[str, Any]:
        with world.as_single_process():
            return function()

    return called


def _pictures(
    world: World, make: Callable[[], Mapping[str, Any]], name: str, shards: bool
) -> Callable[[], Mapping[str, Any]]:
    called, made = _without_peers(world, make), dict[str, Any]()

    def kept() -> Mapping[str, float]:
        made.update(called())
        return {}

    together = Together(world, kept, name)

    def pictures() -> Mapping[str, Any]:
        made.clear()
        together()
        return dict(made)

    return pictures if shards else called


def _evaluated(
    world: World, evaluate: Callable[[], Mapping[str, float]], where: str, shards: bool
) -> Callable[[], Mapping[str, float]]:
    alone = where == "rank 0"
    called = _without_peers(world, evaluate) if alone else evaluate
    calls = world.rank == 0 or shards or not alone  # a sharded model runs on all ranks, and rank 0's values count
    together = Together(world, lambda: floats(called(), "evaluate()") if calls else {}, "The evaluation")

    def evaluated() -> Mapping[str, float]:
        return mean([(1.0, measured) for measured in together()[: 1 if alone else None]])

    return evaluated
