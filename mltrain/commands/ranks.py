"""The processes of one training, which rank 0 directs.

The others send no request to a tracking server, and hold, save and prune nothing. A single process is :class:`Alone`, and uses
no torch.distributed.
"""

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.reader import Configured, configured
from mltrain.checkpoint.store import CheckpointStore
from mltrain.commands.checks import refuse_for_several
from mltrain.commands.result import Outcome
from mltrain.config import Config
from mltrain.errors import UsageError
from mltrain.project import Project
from mltrain.task import Task
from mltrain.trainer.loop import Trainer
from mltrain.trainer.ports import Saver, Stop
from mltrain.trainer.ranks import RNG, fresh_rng, parts_of_rank

if TYPE_CHECKING:
    from mltrain.checkpoint.shards import Assembly
    from mltrain.distributed.node import Destination
    from mltrain.distributed.world import World

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")
_DIGITS = re.compile("[0-9]{1,7}")


def is_one_of_several(environment: Mapping[str, str]) -> bool:
    """Whether a launcher started this process as one of several.

    Raises:
        UsageError: variables of the launcher are missing or invalid. Else every process would train a run of its own.
    """
    given = {name: environment.get(name, "").strip() for name in ("WORLD_SIZE", "LOCAL_RANK", *_NEEDED)}
    missing = [name for name in ("WORLD_SIZE", *_NEEDED) if not given[name]]
    if "WORLD_SIZE" in missing and len(missing) > 1:
        return False  # batch scripts set some of the others themselves, for torchrun's options
    if given["WORLD_SIZE"] == "1" and given["RANK"] in ("", "0"):
        return False
    if missing:
        known = ", ".join(f"{name}={value!r:.40}" for name, value in given.items() if value)
        raise _invalid(f"{', '.join(missing)} not set", f"WORLD_SIZE, {', '.join(_NEEDED)}", known)
    size = int(given["WORLD_SIZE"]) if _DIGITS.fullmatch(given["WORLD_SIZE"]) else 0
    for name, (least, most) in {"WORLD_SIZE": (1, 10**6), "RANK": (0, size - 1), "MASTER_PORT": (1, 65535)}.items():
        if not _DIGITS.fullmatch(given[name]) or not least <= int(given[name]) <= most:
            raise _invalid(name, f"{least} to {most}", f"{given[name]!r:.40}")
    if not _DIGITS.fullmatch(given["LOCAL_RANK"] or "0"):
        raise _invalid("LOCAL_RANK", "a number from 0", f"{given['LOCAL_RANK']!r:.40}")
    return size > 1


def _invalid(problem: str, expected: str, came: str) -> UsageError:
    return UsageError(
        f"The launcher's variables are invalid: {problem}. Expected {expected}, got {came}. "
        "Try: torchrun --nproc-per-node N -m mltrain train PROJECT, or unset WORLD_SIZE RANK"
    )


def refuse_several() -> None:
    """Refuse to run a pipeline in several processes.

    Raises:
        UsageError: a launcher started several processes.
    """
    if is_one_of_several(os.environ):
        raise UsageError(
            f"A pipeline runs in one process, but a launcher started {os.environ['WORLD_SIZE']}. Expected no launcher. Try: "
            "the same command without torchrun; several processes work for: torchrun ... -m mltrain train PROJECT"
        )


class Alone:
    """The only process of a training.

    Attributes:
        size: number of processes.
    """

    size = 1

    def read(self, store: CheckpointStore, manifest: Manifest) -> Configured:
        """Return the verified parts and configuration of a checkpoint."""
        return configured(store, manifest)

    def together(self, project: Project, task: Task, config: Config, stop: Stop) -> tuple[Task, Stop]:
        """Return the task and stop request shared by all processes."""
        return task, stop

    def restore(self, trainer: Trainer, parts: Mapping[str, Any], **how: Any) -> None:
        """Restore a checkpoint on all processes; see :meth:`mltrain.Trainer.restore`."""
        trainer.restore(parts_of_rank(parts, 0, self.size), **how)

    def prepare(self, trainer: Trainer, parts: Mapping[str, Any] | None) -> None:
        """Send rank 0's state, and wait until all have it."""

    def show(self, trainer: Trainer) -> None:
        """Log the images of the epoch that has just ended."""
        trainer.show()

    def begin(self) -> None:
        """Start the training on the other processes."""

    def saver(self, saver: Saver, trainer: Trainer) -> Saver:
        """Return a saver for the state of all processes."""
        return saver

    def end(self, outcome: Outcome) -> Outcome:
        """End the other processes, and return the outcome."""
        return outcome


class Leader(Alone):
    """Rank 0 of several processes.

    Args:
        world: all of them.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self.size = world.size
        self._sharded: tuple[Destination, Manifest, Assembly] | None = None  # the checkpoint that was read last

    def read(self, store: CheckpointStore, manifest: Manifest) -> Configured:
        """Return the verified parts and configuration of a checkpoint.

        All processes verify a sharded one; its tensors have no data until :meth:`restore`.

        Raises:
            DamagedCheckpoint: the checkpoint is not what was committed.
        """
        from mltrain.distributed.loading import verified, without_pieces
        from mltrain.distributed.node import Destination

        self._sharded, place = None, Destination.of(store) if manifest.shards else None
        if place is None:
            return configured(store, manifest)
        self._world.share(("verify", place, manifest))
        verified(self._world, lambda: store, manifest)
        found = without_pieces(store, manifest)
        self._sharded = (place, manifest, store.assembly(manifest))
        return found

    def together(self, project: Project, task: Task, config: Config, stop: Stop) -> tuple[Task, Stop]:
        """Return the task and stop request shared by all processes.

        Raises:
            UsageError: the loader, the step or the configuration does not work with several processes.
            PeerLost: another process cannot build the task.
        """
        refuse_for_several(config)
        from mltrain.distributed.task import check_loader, distribute

        check_loader(task)
        self._world.share(("build", project.name, config.model_dump()))
        return distribute(self._world, task, config, stop)

    def restore(self, trainer: Trainer, parts: Mapping[str, Any], **how: Any) -> None:
        """Restore a checkpoint on all processes; see :meth:`mltrain.Trainer.restore`.

        Raises:
            PeerLost: a process cannot restore it.
        """
        if trainer.config.strategy != "fsdp" and self._sharded is None:
            super().restore(trainer, parts, **how)
            return
        from mltrain.distributed.task import restore

        place, manifest, assembly = self._sharded if self._sharded is not None else (None, None, None)
        self._world.share(("restore", how, place, manifest))
        if assembly is None:
            self._world.share_state(parts)
        restore(self._world, trainer, lambda: parts, how, assembly)

    def prepare(self, trainer: Trainer, parts: Mapping[str, Any] | None) -> None:
        """Send rank 0's state, and wait until all have it.

        Raises:
            PeerLost: a process cannot load it.
        """
        if parts is not None and (trainer.config.strategy == "fsdp" or self._sharded is not None):
            return  # all processes have restored it
        progress = parts.get("progress", {}) if parts is not None else {}
        world, ranks = progress.get("world", 1), progress.get("ranks", [])
        if parts is None:
            world, ranks = self.size, [{RNG: fresh_rng(trainer.config.seed, 0, rank)} for rank in range(1, self.size)]
        state = trainer.training.state_dict()
        if trainer.config.strategy == "fsdp":
            from mltrain.distributed.pieces import has_sharded

            state = {name: part for name, part in state.items() if not has_sharded(part)}
        self._world.share(("state",))
        self._world.share_state({"state": state, "world": world, "ranks": ranks})
        self._world.agree(None)

    def show(self, trainer: Trainer) -> None:
        """Log the epoch's images, with all ranks if sharded."""
        if trainer.config.strategy == "fsdp":
            self._world.share(("show",))
        trainer.show()

    def begin(self) -> None:
        """Start the training on the other processes."""
        self._world.share(("begin",))

    def saver(self, saver: Saver, trainer: Trainer) -> Saver:
        """Return a saver for the state of all processes."""
        from mltrain.distributed.saving import DistributedSaver

        return DistributedSaver(self._world, trainer.task.parts(), saver)

    def end(self, outcome: Outcome) -> Outcome:
        """End the other processes, and return the outcome."""
        self._world.share(("end", outcome))
        return outcome
