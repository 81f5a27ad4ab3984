"""The built-in policies, and policies as text.

A new built-in policy needs a class here, its name in ``__all__``, and a test.

>>> keep = Latest(3) | Best(2, "val/iou", "max") | EveryNth(epochs=10)
"""

import ast
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar, Self

from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.checkpoint.retention import Context, Mode, Policy, best_of, by_metric, is_policy, kept_by, ranked
from mltrain.errors import ConfigError

GROUP = "mltrain.policies"
"""Entry point group in which packages register their policies: class name to ``module:class``."""

log = logging.getLogger(__name__)

__all__ = ["Best", "Budget", "EveryNth", "Latest", "Named", "Pinned", "Younger"]


@dataclass(frozen=True)
class Latest(Policy):
    """Keeps the newest ``count`` checkpoints, not counting interrupted ones.

    An interrupted checkpoint stays until a later commit supersedes it.
    """

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
    """Keeps the ``count`` best checkpoints by a metric.

    If ``metric`` is ``None``, the run's own best metric and mode apply, and checkpoints that the caller declared best come
    first. Of equal ones the older is better.
    """

    example: ClassVar[str] = "Best(1, 'val/loss', 'min')"

    count: int = 1
    metric: str | None = None
    mode: Mode | None = None

    def __post_init__(self) -> None:
        _at_least(self, 1, count=self.count)
        if not isinstance(self.metric, str | None):
            raise ConfigError(f"Best(metric={self.metric!r}): expected the name of a metric.")
        if self.mode not in ("min", "max", None):
            raise ConfigError(f"Best(mode={self.mode!r}): expected 'min' or 'max'.")

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
    """Keeps checkpoints whose epoch or step is a multiple."""

    example: ClassVar[str] = "EveryNth(epochs=10)"

    epochs: int = 0
    steps: int = 0

    def __post_init__(self) -> None:
        _at_least(self, 0, epochs=self.epochs, steps=self.steps)
        if bool(self.epochs) == bool(self.steps):
            raise ConfigError(f"{self}: expected either epochs or steps, at least 1.")

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        if self.steps:
            return frozenset(manifest.id for manifest in manifests if manifest.step % self.steps == 0)
        return frozenset(m.id for m in manifests if m.kind == "epoch" and m.epoch % self.epochs == 0)

    def __str__(self) -> str:
        return f"EveryNth(epochs={self.epochs})" if self.epochs else f"EveryNth(steps={self.steps})"


@dataclass(frozen=True, kw_only=True)
class Younger(Policy):
    """Keeps checkpoints younger than a given age."""

    example: ClassVar[str] = "Younger(hours=6)"

    hours: float = 0.0
    days: float = 0.0

    def __post_init__(self) -> None:
        if not (_is_amount(self.hours) and _is_amount(self.days) and self.hours + self.days > 0):
            raise ConfigError(
                f"Younger(hours={self.hours!r}, days={self.days!r}): expected a positive number of hours or days."
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
    """Keeps pinned checkpoints, for ``Pinned() & …``: they are protected anyway."""

    example: ClassVar[str] = "Pinned()"

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset(manifest.id for manifest in manifests if manifest.id in context.pins)

    def __str__(self) -> str:
        return "Pinned()"


@dataclass(frozen=True)
class Named(Policy):
    """Keeps checkpoints with the given directory names."""

    example: ClassVar[str] = "Named('step-…')"

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (isinstance(self.names, tuple) and all(isinstance(name, str) for name in self.names)):
            raise ConfigError(f"Named({self.names!r}): expected a tuple of names such as 'step-000000420-a01'.")

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset(manifest.id for manifest in manifests if manifest.name in self.names)

    @classmethod
    def from_arguments(cls, *names: Any) -> Self:
        """Return the policy for names parsed from text."""
        return cls(names)

    def __str__(self) -> str:
        return f"Named({', '.join(repr(name) for name in self.names)})"


@dataclass(frozen=True, kw_only=True)
class Budget(Policy):
    """Keeps the most valuable checkpoints of ``of`` within a size.

    The size is in gigabytes (10**9 bytes). The newest checkpoint is the most valuable, then the best, then the others from
    young to old. Protected checkpoints may exceed the budget.
    """

    example: ClassVar[str] = "Budget(gigabytes=50, of=…)"

    gigabytes: float
    of: Policy

    def __post_init__(self) -> None:
        if not (_is_amount(self.gigabytes) and self.gigabytes > 0):
            raise ConfigError(f"Budget(gigabytes={self.gigabytes!r}): expected a positive number.")
        if not is_policy(self.of):
            raise ConfigError(f"Budget(of={self.of!r}): expected a policy.")

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        wanted = kept_by(self.of, manifests, context)
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
    """Return a number's shortest text that keeps its value."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _at_least(policy: object, least: int, **numbers: Any) -> None:
    for name, number in numbers.items():
        if type(number) is not int or number < least:
            raise ConfigError(
                f"{type(policy).__name__}({name}={number!r}): expected a whole number of at least {least}."
            )


def parse(text: str) -> Policy:
    """Parse a policy from policies, ``|``, ``&`` and parentheses.

    Raises:
        ConfigError: the text is not a policy; the message points at the error.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = (getattr(error, "offset", None) or 1) - 1
        raise _wrong(text, column, "invalid syntax") from None
    try:
        policy = _evaluated(tree, text)
    except RecursionError:
        raise _wrong(text[:200], 0, "it is too long") from None
    if not hasattr(policy, "keep"):
        raise _wrong(text, 0, "expected a policy")
    return policy  # type: ignore[no-any-return]


def _evaluated(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitOr, ast.BitAnd)):
        sides = [_evaluated(side, text) for side in (node.left, node.right)]
        for side, place in zip(sides, (node.left, node.right), strict=True):
            if not hasattr(side, "keep"):
                raise _wrong(text, place.col_offset, "expected a policy on both sides of | and &")
        return sides[0] | sides[1] if isinstance(node.op, ast.BitOr) else sides[0] & sides[1]
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)):
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        make = _policy_called(node.func.id)
        if make is None:
            raise _wrong(text, node.col_offset, f"there is no policy {node.func.id}")
        positional = [_evaluated(argument, text) for argument in node.args]
        named = {str(keyword.arg): _evaluated(keyword.value, text) for keyword in node.keywords}
        try:
            return make.from_arguments(*positional, **named)
        except (TypeError, ConfigError) as error:
            raise _wrong(text, node.col_offset, str(error)) from None
    raise _wrong(text, node.col_offset, "expected a policy")


def _policy_called(name: str) -> type[Policy] | None:
    """Return a defined or registered policy class by its name."""
    if name in Policy.known:
        return Policy.known[name]
    for entry in metadata.entry_points(group=GROUP, name=name):
        try:
            found, problem = entry.load(), "is not a subclass of mltrain.Policy"
        except Exception as error:  # noqa: BLE001 - a package may raise anything at its import
            found, problem = f"{type(error).__name__}: {error}", "cannot be imported"
        if isinstance(found, type) and issubclass(found, Policy):
            return found
        log.warning("The entry point %s in %s %s: %s", entry.value, GROUP, problem, found)
    return None


def _wrong(text: str, column: int, what: str) -> ConfigError:
    examples = {name: known.example or f"{name}(…)" for name, known in Policy.known.items()}
    registered = {name: f"{name}(…)" for name in metadata.entry_points(group=GROUP).names}
    return ConfigError(
        f"The retention policy cannot be read: {what}.\n  {text.strip()}\n  {' ' * column}^\n"
        f"Known: {', '.join((registered | examples).values())}, joined by | and &."
    )
