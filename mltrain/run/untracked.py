"""A folder of checkpoints instead of a run, without MLflow."""

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from mltrain.checkpoint.folder import OWN_FOLDER, FolderArtifacts
from mltrain.checkpoint.manifest import UNTRACKED, CheckpointId, Manifest, Point
from mltrain.checkpoint.ports import Status
from mltrain.checkpoint.pruner import Removals
from mltrain.errors import MltrainError, RunHeld, StorageError, counted
from mltrain.store.artifacts import Artifacts
from mltrain.store.durable import make_folder, replace_file

log = logging.getLogger(__name__)


class UntrackedRun:
    """A folder with the interface of a run.

    One process at a time saves to it; any number may read.

    Args:
        folder: of the checkpoints.
        epoch_files: how many ``checkpoint_epoch_N.pth`` the policy keeps. If ``None``, the best one keeps that name too.

    Raises:
        UsageError: the folder holds checkpoints that mltrain did not write.
        StorageError: the folder cannot be created.
    """

    id = UNTRACKED
    overtaken = False
    announced = None

    def __init__(self, folder: Path, epoch_files: int | None = None) -> None:
        self.folder = self.staging = folder
        self._files = FolderArtifacts(folder)
        self.artifacts: Artifacts = self._files
        self.code: Mapping[str, str] = {}
        self._epoch_files = epoch_files
        self._removals = Removals(self.artifacts)
        self._lock = filelock.FileLock(folder / OWN_FOLDER / "lock", thread_local=False)
        self._ordinal: int | None = None

    @property
    def ordinal(self) -> int:
        """The writing attempt's ordinal: one more than any checkpoint's.

        The first call acquires the lock of the folder.

        Raises:
            RunHeld: another process saves checkpoints to the folder.
            StorageError: the folder cannot be written.
        """
        if self._ordinal is None:
            self._hold()
            identities = [CheckpointId.parse(name) for name in self._files.files()]
            self._ordinal = 1 + max((one.attempt for one in identities if one is not None), default=0)
            unfinished = self._files.remove_unfinished()
            if unfinished:
                log.info("Removed %s that an interrupted process left in %s", counted(unfinished, "file"), self.folder)
        return self._ordinal

    def _hold(self) -> None:
        make_folder(self.folder / OWN_FOLDER)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise RunHeld(
                f"Another process saves checkpoints to {self.folder}. Expected one at a time. Try: stop that process, or "
                "another save_dir"
            ) from None
        except OSError as error:
            raise StorageError(
                f"{self._lock.lock_file} cannot be created: {error.strerror}. Expected a writable folder. "
                "Try: another save_dir"
            ) from error

    def record_origin(self, checkpoint: CheckpointId | None) -> None:
        """Record nothing: a manifest has its parent."""

    def begin_attempt(self, resumed_from: CheckpointId | None) -> None:
        """Begin the next attempt after a rollback."""
        self._ordinal = self.ordinal + 1

    def holds(self, *, certainly: bool = False) -> bool:
        """Whether this process has the lock of the folder."""
        return self._lock.is_locked

    def when_known(self, listener: Callable[[], None]) -> None:
        """Call the listener at once: a folder needs no creation."""
        listener()

    def announce_latest(self, checkpoint: str) -> None:
        """Record nothing: the files show which one is newest."""

    def announce_best(self, best: Manifest) -> None:
        """Update ``best_model.pth``."""
        try:
            self._files.mark_best(best.name, self._epoch_files)
        except MltrainError as error:
            log.warning("best_model.pth could not be updated: %s", error)

    def report_damaged(self, checkpoint: str, what: str) -> None:
        """Record nothing: it is logged."""

    def report_dropped(self, checkpoint: str, rule: str) -> None:
        """Record nothing: there are no uploads."""

    def pending(self, step: int) -> Sequence[Point]:
        """Return no points: there is no server."""
        return ()

    def deliver_pending(self, points: Sequence[Point]) -> None:
        """Deliver nothing: there is no server."""

    def pins(self) -> Mapping[str, str]:
        """Return no pins."""
        return {}

    def in_use(self) -> Collection[str]:
        """Return no names: nothing refers to a file."""
        return ()

    def remove_models(self, checkpoint: str) -> None:
        """Remove nothing: there are no LoggedModels."""

    def set_tag(self, key: str, value: str) -> None:
        """Record nothing: there is no run to tag."""

    def write_json(self, name: str, content: Any) -> None:
        """Write a small file into the folder ``.mltrain``."""
        replace_file(self.folder / OWN_FOLDER / name, json.dumps(content, indent=1).encode())

    def record_removals(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add lines to ``.mltrain/retention.jsonl``."""
        self._removals.append(records)

    def mark_only_local(self, checkpoint: str, status: Status) -> None:
        """Record nothing: checkpoints are always on this host only."""

    def detach(self, status: Status, grace: float | None = None) -> None:
        """Release the lock, so that another process can save."""
        self._lock.release()
