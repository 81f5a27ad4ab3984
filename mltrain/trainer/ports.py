"""Trainer interfaces, each with a null object."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from mltrain.checkpoint.manifest import Kind
from mltrain.errors import MltrainError
from mltrain.history import History


class Tracker(Protocol):
    """Records the metrics of a trainer."""

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
    """Saves the state of a trainer; :class:`mltrain.CheckpointManager` is one."""

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
    """A saver that reads its checkpoints; ``on_nonfinite=rollback`` needs it."""

    def peek(self) -> Mapping[str, Any] | None:
        """Return the verified parts of the newest checkpoint. ``None`` before the first."""
        ...


@runtime_checkable
class HasPrepare(Protocol):
    """A saver that allocates memory before the first save."""

    def prepare(self, state: Mapping[str, Any]) -> None:
        """Allocate memory for such a state in the background."""
        ...


Source = Callable[[], Mapping[str, Any]]
"""Returns the verified parts of the checkpoint from another run that a training began with."""


@runtime_checkable
class HasFailure(Protocol):
    """A saver that reports why a save failed.

    A state is not saved if it is not finite, for example.
    """

    @property
    def failure(self) -> MltrainError | None:
        """Why the newest state was not saved. ``None`` if it was."""
        ...


class Stop(Protocol):
    """A request to stop; :class:`mltrain.StopRequest` is one for signals.

    Attributes:
        checkpoint_wanted: whether to save at the next step boundary; the trainer resets it.
    """

    checkpoint_wanted: bool

    @property
    def requested(self) -> bool:
        """Whether training stops at the next step boundary."""
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
    """A saver that saves nothing."""

    def save(self, state: Mapping[str, Any], **facts: Any) -> None:
        """Save nothing."""


class NeverStop:
    """A request to stop that never comes."""

    requested = False

    def __init__(self) -> None:
        self.checkpoint_wanted = False
