"""The policies that come with the library. A new one is a class here, its name in ``__all__``, and its test.

>>> keep = Latest(3) | Best(2, "val/iou", "max") | EveryNth(epochs=10)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.retention import Context, Mode, Policy, best_of, by_metric, ranked
from mltrain.errors import ConfigError

__all__ = ["Best", "Budget", "EveryNth", "Latest", "Named", "Pinned", "Younger"]


@dataclass(frozen=True)
class Latest(Policy):
    """Keeps the newest ``count``, not counting interrupted ones: these stay until a later commit supersedes them."""

    example: ClassVar[str] = "Latest(5)"

    count: int = 1

    def __post_init__(self) -> None:
        _at_least(self, 1, count=self.count)

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset([manifest.id for manifest in manifests if manifest.kind != "interrupted"][-self.count :])

    def __str__(self) -> str:
        return f"Latest({self.count})"


@dataclass(frozen=True)
class Best(Policy):
    """Keeps the ``count`` best by a metric measured at their step. If ``None``, the run's own best metric and mode.

    Of equal ones the older is better. Without a metric, what the caller declared best precedes what has only been measured.
    """

    example: ClassVar[str] = "Best(1, 'val/loss', 'min')"

    count: int = 1
    metric: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        _at_least(self, 1, count=self.count)
        if not isinstance(self.metric, str | None):
            raise ConfigError(f"Best(metric={self.metric!r}): the name of a metric was expected.")
        if self.mode not in ("min", "max", None):
            raise ConfigError(f"Best(mode={self.mode!r}): 'min' or 'max' was expected.")

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        best = (
            ranked(manifests, context)
            if self.metric is None
            else by_metric(manifests, self.metric, self.mode or context.mode)
        )
        return frozenset(manifest.id for manifest in best[: self.count])

    def named_metrics(self) -> frozenset[str]:
        """Return its metric, if it names one."""
        return frozenset([self.metric]) if self.metric is not None else frozenset()

    def __str__(self) -> str:
        named = [
            f"{name}={word!r}" for name, word in (("metric", self.metric), ("mode", self.mode)) if word is not None
        ]
        return f"Best({', '.join([str(self.count), *named])})"


@dataclass(frozen=True, kw_only=True)
class EveryNth(Policy):
    """Keeps those whose epoch, or whose step, is a multiple of a number."""

    example: ClassVar[str] = "EveryNth(epochs=10)"

    epochs: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 0, epochs=self.epochs, steps=self.steps)
        if bool(self.epochs) == bool(self.steps):
            raise ConfigError(f"{self}: either epochs or steps was expected, at least 1.")

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        if self.steps:
            return frozenset(manifest.id for manifest in manifests if manifest.step % self.steps == 0)
        return frozenset(m.id for m in manifests if m.kind == "epoch" and m.epoch % self.epochs == 0)

    def __str__(self) -> str:
        return f"EveryNth(epochs={self.epochs})" if self.epochs else f"EveryNth(steps={self.steps})"


@dataclass(frozen=True, kw_only=True)
class Younger(Policy):
    """Keeps those written less than so long ago."""

    example: ClassVar[str] = "Younger(hours=6)"

    hours: float = 0.0
    days: float = 0.0

    def __post_init__(self) -> None:
        if not (_is_amount(self.hours) and _is_amount(self.days) and self.hours + self.days > 0):
            raise ConfigError(
                f"Younger(hours={self.hours!r}, days={self.days!r}): a positive number of hours or days was expected."
            )

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        seconds = 3600 * (self.hours + 24 * self.days)
        return frozenset(m.id for m in manifests if (context.now - m.created).total_seconds() < seconds)

    def __str__(self) -> str:
        given = [f"{name}={_number(n)}" for name, n in (("hours", self.hours), ("days", self.days)) if n]
        return f"Younger({', '.join(given)})"


@dataclass(frozen=True)
class Pinned(Policy):
    """Keeps the pinned ones; they are protected anyway, so this is for ``Pinned() & …``."""

    example: ClassVar[str] = "Pinned()"

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset(manifest.id for manifest in manifests if manifest.id in context.pins)

    def __str__(self) -> str:
        return "Pinned()"


@dataclass(frozen=True)
class Named(Policy):
    """Keeps checkpoints by the names of their directories."""

    example: ClassVar[str] = "Named('step-…')"

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (isinstance(self.names, tuple) and all(isinstance(name, str) for name in self.names)):
            raise ConfigError(f"Named({self.names!r}): a tuple of names such as 'step-000000420-a01' was expected.")

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset(manifest.id for manifest in manifests if manifest.name in self.names)

    @classmethod
    def from_arguments(cls, *names: Any) -> Self:
        """Return the policy that a text spells with these names."""
        return cls(names)

    def __str__(self) -> str:
        return f"Named({', '.join(repr(name) for name in self.names)})"


@dataclass(frozen=True, kw_only=True)
class Budget(Policy):
    """Keeps what ``of`` keeps as long as it fits into so many gigabytes (10**9 bytes); the least valuable goes first.

    The value, from high to low: the newest, the best, then the others by age, the younger first. What is protected may
    exceed the budget.
    """

    example: ClassVar[str] = "Budget(gigabytes=50, of=…)"

    gigabytes: float
    of: Policy

    def __post_init__(self) -> None:
        if not (_is_amount(self.gigabytes) and self.gigabytes > 0):
            raise ConfigError(f"Budget(gigabytes={self.gigabytes!r}): a positive number was expected.")
        if not hasattr(self.of, "keep"):
            raise ConfigError(f"Budget(of={self.of!r}): a policy was expected.")

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        wanted = self.of.keep(manifests, context)
        candidates = [manifest for manifest in manifests if manifest.id in wanted]
        best = best_of(candidates, context)
        first = [candidates[-1], *([best] if best is not None else [])] if candidates else []
        by_value = dict.fromkeys(manifest.id for manifest in (*first, *reversed(candidates)))
        sizes = {manifest.id: manifest.size for manifest in candidates}
        kept, room = set(), self.gigabytes * 1e9
        for identity in by_value:
            room -= sizes[identity]
            if room < 0:
                break
            kept.add(identity)
        return frozenset(kept)

    def __str__(self) -> str:
        return f"Budget(gigabytes={_number(self.gigabytes)}, of={self.of})"


def _is_amount(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _number(value: float) -> str:
    """Return a number as short as it can be written without becoming another one."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _at_least(policy: object, least: int, **numbers: Any) -> None:
    for name, number in numbers.items():
        if type(number) is not int or number < least:
            raise ConfigError(
                f"{type(policy).__name__}({name}={number!r}): a whole number of at least {least} was expected."
            )
