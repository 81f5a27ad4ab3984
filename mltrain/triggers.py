"""When something is due: values that answer one question and join with ``|``."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Moment:
    """A step boundary, as a trigger sees it.

    Attributes:
        step: optimizer steps done since the run began.
        epoch: epochs done since the run began.
        epoch_ended: whether this step was the last of its epoch.
        seconds_since_save: on the monotonic clock of this process.
    """

    step: int
    epoch: int
    epoch_ended: bool
    seconds_since_save: float


class Trigger(Protocol):
    """Answers whether something is due at a step boundary."""

    def due(self, moment: Moment) -> bool:
        """Return whether it is due now."""
        ...

    def __or__(self, other: "Trigger") -> "Trigger":
        """Return a trigger that is due when either is."""
        ...


class _Joinable:
    def __or__(self: Trigger, other: Trigger) -> Trigger:
        return Any_((self, other))


@dataclass(frozen=True)
class Any_(_Joinable):  # noqa: N801 - the built-in any is what it does
    """Due when any of its triggers is."""

    triggers: tuple[Trigger, ...]

    def due(self, moment: Moment) -> bool:
        """Return whether one of them is due now."""
        return any(trigger.due(moment) for trigger in self.triggers)


@dataclass(frozen=True, kw_only=True)
class Every(_Joinable):
    """Due every so many epochs, steps or minutes; what is 0 never is.

    ``Every(epochs=2) | Every(minutes=10)`` and ``Every(epochs=2, minutes=10)`` mean the same.
    """

    epochs: int = 0
    steps: int = 0
    minutes: float = 0.0

    def __post_init__(self) -> None:
        if min(self.epochs, self.steps, self.minutes) < 0:
            raise ValueError(f"An interval cannot be negative: {self}.")

    def due(self, moment: Moment) -> bool:
        """Return whether the boundary is a multiple of the interval, or the minutes have passed."""
        return (
            (self.epochs > 0 and moment.epoch_ended and moment.epoch % self.epochs == 0)
            or (self.steps > 0 and moment.step % self.steps == 0)
            or (self.minutes > 0 and moment.seconds_since_save >= 60 * self.minutes)
        )
