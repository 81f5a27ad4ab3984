"""The ranks other than 0, which follow rank 0."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from mltrain import device as devices
from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.store import CheckpointStore
from mltrain.commands.ranks import Alone, Leader, is_one_of_several
from mltrain.commands.result import Outcome
from mltrain.errors import DamagedCheckpoint, PeerLost
from mltrain.ownership.attempts import is_overtaken
from mltrain.ownership.host_lock import lock_file
from mltrain.ownership.run_folder import grace_seconds, record_address
from mltrain.project import Project, find
from mltrain.rng import Rng, seed_everything
from mltrain.signals import StopRequest
from mltrain.trainer.loop import Trainer
from mltrain.trainer.ports import NullTracker
from mltrain.trainer.ranks import parts_of_rank

if TYPE_CHECKING:
    from mltrain.distributed.node import Destination
    from mltrain.distributed.uploads import Uploads
    from mltrain.distributed.world import World


class Follower(Alone):
    """A rank other than 0.

    Args:
        world: all processes of the training.
    """

    def __init__(self, world: "World") -> None:
        self._world = world
        self.size = world.size
        self._read: tuple[Destination, CheckpointStore] | None = None  # where the last checkpoint was verified
        self._uploads: Uploads | None = None
        self._lock: filelock.BaseFileLock | None = None

    def follow(self, project: Project | str | None, stop: StopRequest) -> Outcome:
        """Train as rank 0 asks, and return its outcome.

        Args:
            project: the project that the command names. If ``None``, the one that the run recorded, sent by rank 0.
            stop: this process's request to stop.

        Raises:
            PeerLost: a rank other than 0 has ended; rank 0 prints its own error.
        """
        logging.getLogger("mltrain").setLevel(logging.ERROR)  # rank 0 logs the same warnings
        trainer: Any = None
        rng = Rng()
        begins: Mapping[str, Any] = {}
        try:
            while True:
                kind, *arguments = self._world.share()
                if kind == "build":
                    trainer = self._built(project, arguments[0], arguments[1], stop)
                elif kind == "state":
                    self._take_over(trainer)
                elif kind == "verify":
                    self._verify(*arguments)
                elif kind == "restore":
                    self._restore(trainer, *arguments)
                elif kind == "show":
                    trainer.show()
                elif kind == "begin":
                    self._train(trainer, begins, stop)
                else:
                    outcome: Outcome = arguments[0]
                    self._end(0.0)  # rank 0 has already waited for the store
                    if self._uploads is not None and outcome.newest is not None and not outcome.only_local:
                        self._uploads.discard_before(outcome.newest.id)
                    return outcome
                begins = rng.state_dict() if kind in ("state", "restore") else begins
        except PeerLost as lost:
            self._end(grace_seconds())
            if lost.rank != 0:
                raise
            return Outcome("", lost.exit_code, str(lost))

    def _built(
        self, named: Project | str | None, recorded: str, settings: Mapping[str, Any], stop: StopRequest
    ) -> Trainer:
        from mltrain.distributed.task import check_loader, distribute

        try:
            project = named if isinstance(named, Project) else find(named or recorded, recorded=named is None)
            config = project.config.model_validate(settings)
            stop.on_usr1 = config.on_usr1
            devices.set_up(config)
            seed_everything(config.seed)
            task = project.build(config)
            check_loader(task)
            task, agreed = distribute(self._world, task, config, stop)
            return Trainer(task, config, stop=agreed)
        except PeerLost:
            raise
        except Exception as error:
            self._world.agree(error)
            raise

    def _verify(self, place: "Destination", manifest: Manifest) -> None:
        from mltrain.distributed.loading import verified

        with suppress(DamagedCheckpoint):  # rank 0 tries the previous checkpoint
            verified(self._world, lambda: self._store(place, manifest), manifest)

    def _store(self, place: "Destination", manifest: Manifest) -> CheckpointStore:
        """Return the store that cached a checkpoint during its verification."""
        if self._read is None or self._read[0] != place:
            self._read = (place, place.opened(manifest.run_id))
        return self._read[1]

    def _restore(
        self, trainer: Trainer, how: Mapping[str, Any], place: "Destination | None", manifest: Manifest | None
    ) -> None:
        from mltrain.distributed.loading import without_pieces
        from mltrain.distributed.task import restore

        if place is None or manifest is None:
            parts = self._world.share_state()
            restore(self._world, trainer, lambda: parts, how, None)
            return
        store = self._store(place, manifest)
        restore(self._world, trainer, lambda: without_pieces(store, manifest)[0], how, store.assembly(manifest))

    def _take_over(self, trainer: Trainer) -> None:
        from mltrain.distributed.task import agreed

        shared = self._world.share_state()
        with agreed(self._world):
            state = {**trainer.training.state_dict(), **shared["state"]}
            progress = {**state["progress"], "world": shared["world"], "ranks": shared["ranks"]}
            trainer.restore(parts_of_rank({**state, "progress": progress}, self._world.rank, self.size))

    def _train(self, trainer: Trainer, begins: Mapping[str, Any], stop: StopRequest) -> None:
        from mltrain.distributed.saving import DistributedSaver
        from mltrain.distributed.uploads import Uploads

        self._uploads = Uploads(self._world, is_overtaken, self._hold)
        saver = DistributedSaver(self._world, trainer.task.parts(), None, self._uploads)
        trainer.attach(NullTracker(), saver)
        Rng().load_state_dict(begins)
        stop.finish_steps()
        for _ in trainer.steps():
            pass
        saver.settle()

    def _hold(self, staging: Path, uri: str) -> None:
        """Lock the run on this node against ``mltrain sync``."""
        record_address(uri, staging.parent)
        lock = lock_file(staging.parent / "lock")
        with suppress(filelock.Timeout):
            lock.acquire(timeout=0)
            self._lock = lock

    def _end(self, seconds: float) -> None:
        """Upload staged files within ``seconds``, and release the lock."""
        if self._uploads is not None:
            self._uploads.close(seconds)
        if self._lock is not None:
            self._lock.release()


@contextmanager
def process_role(environment: Mapping[str, str]) -> Iterator[Alone]:
    """Yield this process's role, once all processes have joined.

    Raises:
        PeerLost: the others did not join in time.
        UsageError: this machine has fewer GPUs than processes.
    """
    if not is_one_of_several(environment):
        yield Alone()
        return
    from mltrain.distributed.world import World

    with World(grace=grace_seconds()) as world:
        yield Leader(world) if world.rank == 0 else Follower(world)
