"""The processes of one training: rank 0 has the run, and tells the others what to prepare and when to begin.

The others make no request to a tracking server, and hold, save and prune nothing. Where there is one process, :class:`Alone`
takes the place of all this, and torch.distributed is not used.
"""

import logging
import os
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from mltrain import device as devices
from mltrain.commands.checks import refuse_for_several
from mltrain.commands.result import Outcome
from mltrain.config import Config
from mltrain.errors import PeerLost, UsageError
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

    def together(self, project: Project, task: Task, config: Config, stop: Stop) -> tuple[Task, Stop]:
        """Return a task and a request to stop as all processes share them, once all have built the task."""
        return task, stop

    def restore(self, trainer: Trainer, parts: Mapping[str, Any], **how: Any) -> None:
        """Restore a checkpoint on all processes; see :meth:`mltrain.Trainer.restore`."""
        trainer.restore(parts_of_rank(parts, 0, self.size), **how)

    def prepare(self, trainer: Trainer, parts: Mapping[str, Any] | None) -> None:
        """Let the other processes take over rank 0's state, and return when all of them have."""

    def show(self, trainer: Trainer) -> None:
        """Make the pictures of the epoch that has just ended."""
        trainer.show()

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

    def together(self, project: Project, task: Task, config: Config, stop: Stop) -> tuple[Task, Stop]:
        """Return a task and a request to stop as all processes share them, once all have built the task.

        Raises:
            UsageError: the loader, the step or the configuration does not work with several processes.
            PeerLost: another process cannot build the task.
        """
        refuse_for_several(config)
        from mltrain.distributed.task import check_loader, joined

        check_loader(task)
        self._world.share(("build", project.name, config.model_dump()))
        return joined(self._world, task, config, stop)

    def restore(self, trainer: Trainer, parts: Mapping[str, Any], **how: Any) -> None:
        """Restore a checkpoint on all processes; see :meth:`mltrain.Trainer.restore`.

        Raises:
            PeerLost: one of them cannot.
        """
        if not _shards(trainer.config):
            super().restore(trainer, parts, **how)
            return
        from mltrain.distributed.task import restore

        self._world.share(("restore", how))
        self._world.share_state(parts)
        restore(self._world, trainer, parts, how)

    def prepare(self, trainer: Trainer, parts: Mapping[str, Any] | None) -> None:
        """Let the other processes take over rank 0's state, and return when all of them have.

        Raises:
            PeerLost: one of them cannot.
        """
        if parts is not None and _shards(trainer.config):
            return  # all of them have restored it
        progress = parts.get("progress", {}) if parts is not None else {}
        world, ranks = progress.get("world", 1), progress.get("ranks", [])
        if parts is None:
            world, ranks = self.size, [{RNG: fresh_rng(trainer.config.seed, 0, rank)} for rank in range(1, self.size)]
        state = trainer.training.state_dict()
        if _shards(trainer.config):
            from mltrain.distributed.pieces import has_sharded

            state = {name: part for name, part in state.items() if not has_sharded(part)}
        self._world.share(("state",))
        self._world.share_state({"state": state, "world": world, "ranks": ranks})
        self._world.agree(None)

    def show(self, trainer: Trainer) -> None:
        """Make the pictures of the epoch that has just ended; with a sharded model on all processes."""
        if _shards(trainer.config):
            self._world.share(("show",))
        trainer.show()

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
        from mltrain.distributed.task import restore

        trainer: Any = None
        rng = Rng()
        begins: Mapping[str, Any] = {}
        try:
            while True:
                kind, *said = self._world.share()
                if kind == "build":
                    trainer = self._built(project, said[0], said[1], stop)
                elif kind == "state":
                    self._take_over(trainer)
                elif kind == "restore":
                    restore(self._world, trainer, self._world.share_state(), said[0])
                elif kind == "show":
                    trainer.show()
                elif kind == "begin":
                    self._train(trainer, begins, stop)
                else:
                    outcome: Outcome = said[0]
                    return outcome
                begins = rng.state_dict() if kind in ("state", "restore") else begins
        except PeerLost as lost:
            if lost.rank != 0:
                raise
            return Outcome("", lost.exit_code, str(lost), None, None, {})

    def _built(
        self, named: Project | str | None, recorded: str, settings: Mapping[str, Any], stop: StopRequest
    ) -> Trainer:
        from mltrain.distributed.task import check_loader, joined

        try:
            project = named if isinstance(named, Project) else find(named or recorded, recorded=named is None)
            config = project.config.model_validate(settings)
            stop.on_usr1 = config.on_usr1
            devices.set_up(config.num_threads, config.deterministic, config.device)
            seed_everything(config.seed)
            task = project.build(config)
            check_loader(task)
            task, agreed = joined(self._world, task, config, stop)
            return Trainer(task, config, stop=agreed)
        except PeerLost:
            raise
        except Exception as error:
            self._world.agree(error)
            raise

    def _take_over(self, trainer: Trainer) -> None:
        shared = self._world.share_state()
        try:
            state = {**trainer.training.state_dict(), **shared["state"]}
            progress = {**state["progress"], "world": shared["world"], "ranks": shared["ranks"]}
            trainer.restore(parts_of_rank({**state, "progress": progress}, self._world.rank, self.size))
        except Exception as error:
            self._world.agree(error)
            raise
        self._world.agree(None)

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


def _shards(config: Config) -> bool:
    return config.strategy == "fsdp"
