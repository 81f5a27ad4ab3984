"""What checkpoints need of the run that they are artifacts of, and of the other processes of a training."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mltrain.checkpoint.manifest import CheckpointId, FileEntry, Manifest, Point
from mltrain.store.artifacts import Artifacts

if TYPE_CHECKING:
    from torch import Tensor

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Peers(Protocol):
    """The other processes of a training, each of which uploads its own files of a sharded checkpoint."""

    def expects(self, manifest: Manifest) -> bool:
        """Whether they upload their files of this checkpoint, which this process then does not."""
        ...

    def wait(self, manifest: Manifest) -> None:
        """Return when all of them have uploaded their files.

        Raises:
            StorageError: one cannot, or does not in time.
        """
        ...

    def stop(self) -> None:
        """End all waits, now and later."""
        ...


class Pieces(Protocol):
    """Pieces of the tensors of a snapshot, of which each of several processes holds its own."""

    own: Mapping[str, "Tensor"]
    """For each sharded tensor the piece of this process, which may be empty; on the CPU."""

    peers: Peers
    """The other processes, which upload their pieces."""

    def write(self, folder: Path) -> Mapping[str, tuple[FileEntry, int]]:
        """Let every process write its part into a folder.

        Returns:
            For each part file its entry, and the bytes of the files that it lists.

        Raises:
            MltrainError: a process could not write, or the files are not where this one looks.
        """
        ...

    def complete(self, manifest: Manifest, commit: Callable[[], object]) -> None:
        """Let other machines complete their staged copies, then call ``commit``; raises what fails of it."""
        ...

    def end(self) -> None:
        """Let the other processes know that this snapshot is not written again."""
        ...


class Run(Protocol):
    """A run whose artifacts the checkpoints are; :class:`mltrain.run.tracked.TrackedRun` is one."""

    artifacts: Artifacts

    @property
    def id(self) -> str:
        """The run's id; until the run is created, its provisional id."""
        ...

    @property
    def staging(self) -> Path:
        """Where checkpoints are staged."""
        ...

    @property
    def ordinal(self) -> int:
        """The ordinal of the attempt that writes."""
        ...

    @property
    def overtaken(self) -> bool:
        """Whether another process has taken the run over."""
        ...

    @property
    def announced(self) -> str | None:
        """The name of the newest checkpoint that :meth:`announce_latest` recorded."""
        ...

    def announce_latest(self, checkpoint: str) -> None:
        """Record the name of the newest commit, without waiting."""
        ...

    def announce_best(self, best: Manifest) -> None:
        """Record which checkpoint is the best and what it measured, without waiting."""
        ...

    def report_damaged(self, checkpoint: str, what: str) -> None:
        """Record that a checkpoint is damaged, and how, without waiting."""
        ...

    def report_dropped(self, checkpoint: str, rule: str) -> None:
        """Record that a checkpoint left this disk before it was uploaded, and by which rule, without waiting."""
        ...

    def begin_attempt(self, resumed_from: CheckpointId | None) -> None:
        """Go on as the next attempt: this process has rolled the run back to a checkpoint."""
        ...

    @property
    def code(self) -> Mapping[str, str]:
        """The fingerprint of the code that runs."""
        ...

    def holds(self, *, certainly: bool = False) -> bool:
        """Whether this process still holds the run; ``certainly``: where that cannot be known, it does not."""
        ...

    def when_known(self, listener: Callable[[], None]) -> None:
        """Call a function as soon as the run exists in the tracking store and has its final id."""
        ...

    def pending(self, step: int) -> Sequence[Point]:
        """Return the metric points up to a step that the server has not acknowledged."""
        ...

    def deliver_pending(self, points: Sequence[Point]) -> None:
        """Send the points that a checkpoint carried, with their original timestamps."""
        ...

    def pins(self) -> Mapping[str, str]:
        """Return the names of pinned checkpoints with the reasons."""
        ...

    def in_use(self) -> Collection[str]:
        """Return the names of checkpoints that others refer to."""
        ...

    def remove_models(self, checkpoint: str) -> None:
        """Remove the LoggedModels that were made from a checkpoint."""
        ...

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag, without waiting."""
        ...

    def write_json(self, name: str, content: Any) -> None:
        """Put a small file among the artifacts, now."""
        ...

    def record_removals(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Add lines to the record of what retention removed."""
        ...

    def mark_only_local(self, checkpoint: str, status: Status) -> None:
        """Record that the newest checkpoint is on this host only, and which status the run gets when it is sent."""
        ...

    def detach(self, status: Status) -> None:
        """Deliver what is left and let go of the run, with this status where it was opened for the manager."""
        ...
