"""What a trainer needs around it: a tracker, a saver, a request to stop; and null objects for each."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from mltrain.checkpoint.manifest import Kind
from mltrain.errors import MltrainError
from mltrain.history import History


class Tracker(Protocol):
    """Where a trainer records what it measures."""

    @property
    def overtaken(self) -> bool:
        """Whether another process has taken the run over."""
        ...

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        """Record points of one step, without waiting."""
        ...

    def log_pictures(self, pictures: Mapping[str, Any], step: int, epoch: int) -> None:
        """Record pictures of one step, without waiting."""
        ...

    def log_epoch(self, history: History) -> None:
        """Record the table of epochs, without waiting."""
        ...


class Saver(Protocol):
    """Where a trainer saves its state; :class:`mltrain.CheckpointManager` is one."""

    def save(
        self,
        state: Mapping[str, Any],
        *,
        step: int,
        epoch: int,
        metrics: Mapping[str, float],
        kind: Kind,
        extra: Mapping[str, bytes],
        data: Mapping[str, str],
    ) -> Any:
        """Save a state, without waiting for a network."""
        ...


@runtime_checkable
class HasPeek(Protocol):
    """A saver that reads back what it saved; ``on_nonfinite=rollback`` needs it."""

    def peek(self) -> Mapping[str, Any] | None:
        """Return the parts of the newest checkpoint, verified, or ``None`` before the first; change nothing."""
        ...


@runtime_checkable
class HasPrepare(Protocol):
    """A saver that needs memory, and takes it before the first save."""

    def prepare(self, state: Mapping[str, Any]) -> None:
        """Take what saving a state like this one needs, in the background."""
        ...


Source = Callable[[], Mapping[str, Any]]
"""Reads, verified, the parts of the checkpoint of another run that a training began from."""


@runtime_checkable
class HasFailure(Protocol):
    """A saver that reports why it could not keep the newest state, for example because it is not finite."""

    @property
    def failure(self) -> MltrainError | None:
        """Why the newest state was not kept, or None."""
        ...


class Stop(Protocol):
    """A request to stop; :class:`mltrain.StopRequest` is one that signals set.

    Attributes:
        checkpoint_wanted: whether a checkpoint is wanted at the next step boundary; the trainer resets it.
    """

    checkpoint_wanted: bool

    @property
    def requested(self) -> bool:
        """Whether the training is to stop at the next step boundary."""
        ...


class NullTracker:
    """A tracker that records nothing."""

    overtaken = False

    def log_metrics(self, values: Mapping[str, float], step: int, *, compared: bool = True) -> None:
        """Record nothing."""

    def log_pictures(self, pictures: Mapping[str, Any], step: int, epoch: int) -> None:
        """Record nothing."""

    def log_epoch(self, history: History) -> None:
        """Record nothing."""


class NullSaver:
    """A saver that keeps nothing."""

    def save(self, state: Mapping[str, Any], **facts: Any) -> None:
        """Keep nothing."""


class NeverStop:
    """A request to stop that never comes."""

    requested = False

    def __init__(self) -> None:
        self.checkpoint_wanted = False
