"""The processes of one training: rank 0 has the run, and tells the others what to prepare and when to begin.

The others make no request to a tracking server, and hold, save and prune nothing. Where there is one process, :class:`Alone`
takes the place of all this, and torch.distributed is not used.
"""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mltrain import device as devices
from mltrain.commands.checks import refuse_for_several
from mltrain.commands.result import Outcome
from mltrain.config import Config
from mltrain.data import Divisible
from mltrain.errors import PeerLost, UsageError
from mltrain.metrics import floats
from mltrain.project import Project, find
from mltrain.rng import Rng, seed_everything
from mltrain.signals import StopRequest
from mltrain.task import Task
from mltrain.trainer.loop import Trainer
from mltrain.trainer.ports import NullTracker, Saver, Stop
from mltrain.trainer.ranks import RNG, fresh_rng, parts_of_rank

if TYPE_CHECKING:
    from mltrain.distributed.world import World

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")


def is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher such as torchrun has started this process as one of several."""
    return environment.get("WORLD_SIZE", "1") not in ("", "1") and all(name in environment for name in _NEEDED)


def refuse_several(what: str) -> None:
    """Refuse what only one process can do.

    Raises:
        UsageError: a launcher has started several.
    """
    if is_one_of_several(os.environ):
        raise UsageError(
            f"{what} runs in one process, and a launcher has started {os.environ['WORLD_SIZE']}. Expected no launcher. Try: the "
            "same command without torchrun; several processes work for: torchrun ... -m mltrain train PROJECT"
        )


class Alone:
    """The only process of a training.

    Attributes:
        size: how many processes there are.
    """

    size = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def together(self, task: Task, config: Config, stop: Stop) -> tuple[Task, Stop]:
        """Return a task and a request to stop as all processes share them."""
        return task, stop

    def prepare(self, project: Project, config: Config, trainer: Trainer, parts: Mapping[str, Any] | None) -> None:
        """Let the other processes prepare the same training, and return when all of them have."""

    def begin(self) -> None:
        """Let the other processes begin to train."""

    def saver(self, saver: Saver, trainer: Trainer) -> Saver:
        """Return what saves the state of all processes."""
        return saver

    def end(self, outcome: Outcome) -> Outcome:
        """Let the other processes end, and return the outcome."""
        return outcome


class Leader(Alone):
    """Rank 0 of several processes.

    Args:
        world: all of them.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self.size = world.size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._world.__exit__(kind, error, trace)

    def together(self, task: Task, config: Config, stop: Stop) -> tuple[Task, Stop]:
        """Return a task and a request to stop as all processes share them.

        Raises:
            UsageError: the loader, the step or the configuration does not work with several processes.
        """
        refuse_for_several(config)
        return _together(self._world, task, stop)

    def prepare(self, project: Project, config: Config, trainer: Trainer, parts: Mapping[str, Any] | None) -> None:
        """Let the other processes prepare the same training, and return when all of them have.

        Raises:
            PeerLost: one of them cannot.
        """
        progress = parts.get("progress", {}) if parts is not None else {}
        world, ranks = progress.get("world", 1), progress.get("ranks", [])
        if parts is None:
            world, ranks = self.size, [{RNG: fresh_rng(config.seed, 0, rank)} for rank in range(1, self.size)]
        self._world.share(("prepare", project.name, config.model_dump()))
        self._world.share_state({"state": trainer.training.state_dict(), "world": world, "ranks": ranks})
        self._world.agree(None)

    def begin(self) -> None:
        """Let the other processes begin to train."""
        self._world.share(("begin",))

    def saver(self, saver: Saver, trainer: Trainer) -> Saver:
        """Return what saves the state of all processes."""
        from mltrain.distributed.replicas import TogetherSaver

        return TogetherSaver(self._world, trainer.task.parts(), saver)

    def end(self, outcome: Outcome) -> Outcome:
        """Let the other processes end, and return the outcome."""
        self._world.share(("end", outcome))
        return outcome


class Follower(Alone):
    """Another rank than 0.

    Args:
        world: all processes of the training.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self.size = world.size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._world.__exit__(kind, error, trace)

    def follow(self, project: Project | str | None, stop: StopRequest) -> Outcome:
        """Train as rank 0 says, and return its outcome.

        Args:
            project: what the command names. If ``None``, what the run recorded, as rank 0 says.
            stop: a request that came to this process.

        Raises:
            PeerLost: another rank than 0 has ended; rank 0 prints its own error.
        """
        logging.getLogger("mltrain").setLevel(logging.ERROR)  # rank 0 logs the same warnings
        trainer, rng = None, Rng()
        try:
            while True:
                kind, *said = self._world.share()
                if kind == "prepare":
                    recorded, settings = said
                    trainer = self._prepared(project, recorded, settings, stop)
                    begins = rng.state_dict()
                elif kind == "begin":
                    assert trainer is not None
                    self._train(trainer, begins, stop)
                else:
                    outcome: Outcome = said[0]
                    return outcome
        except PeerLost as lost:
            if lost.rank != 0:
                raise
            return Outcome("", lost.exit_code, str(lost), None, None, {})

    def _prepared(
        self, named: Project | str | None, recorded: str, settings: Mapping[str, Any], stop: StopRequest
    ) -> Trainer:
        shared = self._world.share_state()
        try:
            project = named if isinstance(named, Project) else find(named or recorded, recorded=named is None)
            config = project.config.model_validate(settings)
            stop.on_usr1 = config.on_usr1
            devices.set_up(config.num_threads, config.deterministic, config.device)
            seed_everything(config.seed)
            task, agreed = _together(self._world, project.build(config), stop)
            trainer = Trainer(task, config, stop=agreed)
            state = shared["state"]
            progress = {**state["progress"], "world": shared["world"], "ranks": shared["ranks"]}
            trainer.restore(parts_of_rank({**state, "progress": progress}, self._world.rank, self.size))
        except Exception as error:
            self._world.agree(error)
            raise
        self._world.agree(None)
        return trainer

    def _train(self, trainer: Trainer, begins: Mapping[str, Any], stop: StopRequest) -> None:
        from mltrain.distributed.replicas import TogetherSaver

        trainer.attach(NullTracker(), TogetherSaver(self._world, trainer.task.parts(), None))
        Rng().load_state_dict(begins)
        stop.finish_steps()
        for _ in trainer.steps():
            pass


def joined(environment: Mapping[str, str]) -> Alone:
    """Return what this process is among those of its training, once all have found each other.

    Raises:
        PeerLost: the others did not come in time.
        UsageError: this machine has fewer GPUs than processes.
    """
    if not is_one_of_several(environment):
        return Alone()
    from mltrain.distributed.world import World

    world = World()
    return Leader(world) if world.rank == 0 else Follower(world)


def _together(world: "World", task: Task, stop: Stop) -> tuple[Task, Stop]:
    from mltrain.distributed.gradients import Gradients
    from mltrain.distributed.step import AgreedStop, together

    loader = task.loader
    if not isinstance(loader, Divisible):
        raise UsageError(
            f"A {type(loader).__name__} gives every process all batches. Expected a loader that gives each its part. Try: "
            "mltrain.ResumableLoader, a loader with a method divide(rank, ranks) and an attribute weight, or one process."
        )
    loader.divide(world.rank, world.size)
    gradients = Gradients(world, task.parts().values())
    agreed = AgreedStop(stop)
    evaluate = _evaluated(world, task.evaluate, task.evaluate_on) if task.evaluate is not None else None
    images, preview = (
        _by_one(world, make) if make is not None and world.rank == 0 else None for make in (task.images, task.preview)
    )
    step = together(task.step, world, loader, gradients, agreed)
    return replace(task, step=step, evaluate=evaluate, images=images, preview=preview), agreed


def _by_one(world: "World", function: Callable[[], Mapping[str, Any]]) -> Callable[[], Mapping[str, Any]]:
    def called() -> Mapping[str, Any]:
        with world.hidden():
            return function()

    return called


def _evaluated(
    world: "World", evaluate: Callable[[], Mapping[str, float]], where: str
) -> Callable[[], Mapping[str, float]]:
    from mltrain.distributed.step import mean

    alone = where == "rank 0"
    called = _by_one(world, evaluate) if alone else evaluate

    def evaluated() -> Mapping[str, float]:
        values, failure = None, None
        if world.rank == 0 or not alone:
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
        return mean([(1.0, measured) for measured, _ in heard if measured is not None])

    return evaluated
