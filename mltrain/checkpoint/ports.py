"""Protocols of the run and the peers that checkpoints need."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mltrain.checkpoint.manifest import CheckpointId, FileEntry, Manifest, Point
from mltrain.store.artifacts import Artifacts

if TYPE_CHECKING:
    from torch import Tensor

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Peers(Protocol):
    """The other processes of a training.

    Each uploads its own files of a sharded checkpoint.
    """

    def expects(self, manifest: Manifest) -> bool:
        """Whether the peers upload their own files of this checkpoint.

        This process then leaves those files to them.
        """
        ...

    def wait(self, manifest: Manifest) -> None:
        """Return when all peers have uploaded their files.

        Raises:
            StorageError: a peer fails or runs out of time.
        """
        ...

    def stop(self) -> None:
        """End all present and future waits."""
        ...


class Pieces(Protocol):
    """One process's pieces of a snapshot's sharded tensors."""

    own: Mapping[str, "Tensor"]
    """Name of each sharded tensor to this process's piece of it, on the CPU; a piece may be empty."""

    peers: Peers
    """The other processes, which upload their pieces."""

    def write(self, folder: Path) -> Mapping[str, tuple[FileEntry, int]]:
        """Make every process write its part into a folder.

        Returns:
            The entry of each part file, and the total bytes of the files that it lists.

        Raises:
            MltrainError: a process could not write, or this process does not see the files.
        """
        ...

    def complete(self, manifest: Manifest, commit: Callable[[], object]) -> None:
        """Have other machines complete their staged copies, then call ``commit``.

        Errors of ``commit`` are raised.
        """
        ...

    def end(self) -> None:
        """Tell the other processes that this snapshot is finished."""
        ...


class Run(Protocol):
    """The run that owns the checkpoints as artifacts.

    :class:`mltrain.run.tracked.TrackedRun` is one.
    """

    artifacts: Artifacts

    @property
    def id(self) -> str:
        """The run's id, provisional until the run is created."""
        ...

    @property
    def staging(self) -> Path:
        """The folder in which checkpoints are staged."""
        ...

    @property
    def ordinal(self) -> int:
        """The number of the writing attempt."""
        ...

    @property
    def overtaken(self) -> bool:
        """Whether another process has taken the run over."""
        ...

    @property
    def announced(self) -> str | None:
        """The name of the newest checkpoint passed to :meth:`announce_latest`."""
        ...

    def announce_latest(self, checkpoint: str) -> None:
        """Record the name of the newest commit, without waiting."""
        ...

    def announce_best(self, best: Manifest) -> None:
        """Record the best checkpoint and its metrics, without waiting."""
        ...

    def report_damaged(self, checkpoint: str, what: str) -> None:
        """Record that a checkpoint is damaged and how, without waiting."""
        ...

    def report_dropped(self, checkpoint: str, rule: str) -> None:
        """Record that a staged checkpoint was removed before its upload.

        Records the rule that removed it, without waiting.
        """
        ...

    def record_origin(self, checkpoint: CheckpointId | None) -> None:
        """Record, without waiting, from which checkpoint the attempt trains."""
        ...

    def begin_attempt(self, resumed_from: CheckpointId | None) -> None:
        """Begin the next attempt after a rollback to a checkpoint."""
        ...

    @property
    def code(self) -> Mapping[str, str]:
        """The fingerprint of the running code."""
        ...

    def holds(self, *, certainly: bool = False) -> bool:
        """Whether this process still holds the run's lease.

        With ``certainly``, an answer that cannot be verified counts as no.
        """
        ...

    def when_known(self, listener: Callable[[], None]) -> None:
        """Call a function once the tracking store has the run.

        The run has its final id from then on.
        """
        ...

    def pending(self, step: int) -> Sequence[Point]:
        """Return unacknowledged metric points up to a step."""
        ...

    def deliver_pending(self, points: Sequence[Point]) -> None:
        """Send a checkpoint's pending points with their original timestamps."""
        ...

    def pins(self) -> Mapping[str, str]:
        """Return the names of pinned checkpoints, each with its reason."""
        ...

    def in_use(self) -> Collection[str]:
        """Return the checkpoints referenced by other runs or models."""
        ...

    def remove_models(self, checkpoint: str) -> None:
        """Remove the LoggedModels that were made from a checkpoint."""
        ...

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag, without waiting."""
        ...

    def write_json(self, name: str, content: Any) -> None:
        """Write a small JSON artifact, synchronously."""
        ...

    def record_removals(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Append lines to the run's record of removed checkpoints."""
        ...

    def mark_only_local(self, checkpoint: str, status: Status) -> None:
        """Record that the newest checkpoint is on this host only.

        Also records the status that the run gets once that checkpoint is uploaded.
        """
        ...

    def detach(self, status: Status, grace: float | None = None) -> None:
        """Deliver the backlog and release the run.

        A run that was opened for the manager gets this status. The delivery ends after ``grace`` seconds; if ``None``, after
        ``MLTRAIN_GRACE_SECONDS``.
        """
        ...
