"""Which checkpoints stay: policies as values, pure functions from manifests to identities.

>>> keep = Latest(3) | Best(2, "val/iou", "max") | EveryNth(epochs=10)

The same as text, in a configuration or on the command line: ``parse('Latest(3) | Best(2, "val/iou", "max")')``.
Whatever a policy says, what :func:`protected` names survives.
"""

import ast
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from mltrain.checkpoint.lineage import current_line
from mltrain.checkpoint.manifest import CheckpointId, Manifest
from mltrain.errors import ConfigError

Mode = Literal["min", "max"]


@dataclass(frozen=True)
class Context:
    """What a policy may ask besides the manifests: the time, pins (identity to reason), and what best means.

    ``declared`` is the checkpoint that the caller called the best after it had been written, if there is one.
    """

    now: datetime
    pins: Mapping[CheckpointId, str] = field(default_factory=dict)
    metric: str = "val/loss"
    mode: Mode = "min"
    declared: CheckpointId | None = None


class Policy(Protocol):
    """Answers which checkpoints to keep."""

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep; ``manifests`` are those of the current line, oldest first."""
        ...

    def __or__(self, other: "Policy") -> "Policy":
        """Keep what either keeps."""
        ...

    def __and__(self, other: "Policy") -> "Policy":
        """Keep what both keep."""
        ...


class _Joinable:
    def __or__(self: Policy, other: Policy) -> Policy:
        return Union((*_members(self, Union), *_members(other, Union)))

    def __and__(self: Policy, other: Policy) -> Policy:
        return Intersection((*_members(self, Intersection), *_members(other, Intersection)))


def _members(policy: Policy, join: "type[Union | Intersection]") -> tuple[Policy, ...]:
    """Return the members of a join of this kind, so that however a join came about, equal ones are equal."""
    return policy.policies if isinstance(policy, join) else (policy,)


@dataclass(frozen=True)
class Union(_Joinable):
    """Keeps what any of its policies keeps."""

    policies: tuple[Policy, ...]

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset().union(*(policy.keep(manifests, context) for policy in self.policies))

    def __str__(self) -> str:
        return " | ".join(str(policy) for policy in self.policies)


@dataclass(frozen=True)
class Intersection(_Joinable):
    """Keeps what all of its policies keep."""

    policies: tuple[Policy, ...]

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        kept = [policy.keep(manifests, context) for policy in self.policies]
        return kept[0].intersection(*kept[1:])

    def __str__(self) -> str:
        return " & ".join(f"({p})" if isinstance(p, Union) else str(p) for p in self.policies)


@dataclass(frozen=True)
class Latest(_Joinable):
    """Keeps the newest ``count``, not counting interrupted ones: these stay until a later commit supersedes them."""

    count: int = 1

    def __post_init__(self) -> None:
        _at_least(self, 1, count=self.count)

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset([manifest.id for manifest in manifests if manifest.kind != "interrupted"][-self.count :])

    def __str__(self) -> str:
        return f"Latest({self.count})"


@dataclass(frozen=True)
class Best(_Joinable):
    """Keeps the ``count`` best by a metric measured at their step; none: the run's own best metric and mode.

    Of equal ones the older is better. Without a metric, what the caller declared best precedes what has only been measured.
    """

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

    def __str__(self) -> str:
        named = [
            f"{name}={word!r}" for name, word in (("metric", self.metric), ("mode", self.mode)) if word is not None
        ]
        return f"Best({', '.join([str(self.count), *named])})"


@dataclass(frozen=True, kw_only=True)
class EveryNth(_Joinable):
    """Keeps those whose epoch, or whose step, is a multiple of a number."""

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
class Younger(_Joinable):
    """Keeps those written less than so long ago."""

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
class Pinned(_Joinable):
    """Keeps the pinned ones; they are protected anyway, so this is for ``Pinned() & …``."""

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset(manifest.id for manifest in manifests if manifest.id in context.pins)

    def __str__(self) -> str:
        return "Pinned()"


@dataclass(frozen=True)
class Named(_Joinable):
    """Keeps checkpoints by the names of their directories."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not (isinstance(self.names, tuple) and all(isinstance(name, str) for name in self.names)):
            raise ConfigError(f"Named({self.names!r}): a tuple of names such as 'step-000000420-a01' was expected.")

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset(manifest.id for manifest in manifests if manifest.name in self.names)

    def __str__(self) -> str:
        return f"Named({', '.join(repr(name) for name in self.names)})"


@dataclass(frozen=True, kw_only=True)
class Budget(_Joinable):
    """Keeps what ``of`` keeps as long as it fits into so many gigabytes (10**9 bytes); the least valuable goes first.

    The value, from high to low: the newest, the best, then the others by age, the younger first. What is protected may
    exceed the budget.
    """

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


def metrics_of(policy: Any) -> frozenset[str]:
    """Return the metrics that a policy names."""
    own = frozenset([policy.metric]) if isinstance(policy, Best) and policy.metric is not None else frozenset()
    inner = [one for value in vars(policy).values() for one in (value if isinstance(value, tuple) else (value,))]
    return own.union(*(metrics_of(one) for one in inner if isinstance(one, _Joinable)))


def by_metric(manifests: Iterable[Manifest], metric: str, mode: Mode) -> list[Manifest]:
    """Return the checkpoints at whose step a metric was finite, the best first; of equal ones the older first."""
    measured = [m for m in manifests if math.isfinite(m.metrics.get(metric, math.nan))]
    sign = 1.0 if mode == "min" else -1.0
    return sorted(measured, key=lambda m: (sign * m.metrics[metric], m.id.order))


def ranked(manifests: Iterable[Manifest], context: Context) -> list[Manifest]:
    """Return those that can be best, the best first: declared ones, the latest first, then by the run's best metric."""
    manifests = list(manifests)
    declared = [m for m in manifests if m.best or m.id == context.declared]
    others = [m for m in manifests if m not in declared]
    return sorted(declared, key=lambda m: m.id.order, reverse=True) + by_metric(others, context.metric, context.mode)


def best_of(manifests: Iterable[Manifest], context: Context) -> Manifest | None:
    """Return the best checkpoint, or none when none was declared or measured."""
    return next(iter(ranked(manifests, context)), None)


def protected(
    manifests: Sequence[Manifest],
    context: Context,
    *,
    resumed_from: CheckpointId | None,
    in_use: Collection[CheckpointId],
) -> dict[CheckpointId, str]:
    """Return what no policy may remove, with the reason.

    Args:
        manifests: all committed checkpoints of the run.
        context: pins, and what best means.
        resumed_from: where an attempt began that has no verified commit of its own yet.
        in_use: branch points of other runs, sources of registered model versions.
    """
    reasons: dict[CheckpointId, str] = {}
    line = current_line(manifests)
    if line:
        best = best_of(line, context)
        if best is not None:
            reasons[best.id] = "the best"
        reasons[line[-1].id] = "the newest"
    if resumed_from is not None:
        reasons.setdefault(resumed_from, "resumed from")
    reasons |= dict.fromkeys(in_use, "in use by a branch or a registered model")
    reasons |= {identity: f"pinned: {reason}" if reason else "pinned" for identity, reason in context.pins.items()}
    return reasons


@dataclass(frozen=True)
class Removal:
    """A checkpoint that may go, and the rule by which."""

    manifest: Manifest
    rule: str


def plan(
    manifests: Sequence[Manifest], policy: Policy, context: Context, keep_anyway: Collection[CheckpointId]
) -> list[Removal]:
    """Return what to remove, in this order: abandoned lines, superseded interruptions, what the policy does not keep."""
    line = current_line(manifests)
    on_line = {manifest.id for manifest in line}
    abandoned = [m for m in manifests if m.id not in on_line and m.id not in keep_anyway]
    # An interrupted checkpoint is used once: a later commit on its line supersedes it.
    superseded = [m for m in line[:-1] if m.kind == "interrupted" and m.id not in keep_anyway]
    gone = {manifest.id for manifest in superseded}
    rest = [manifest for manifest in line if manifest.id not in gone]
    kept = policy.keep(rest, context)
    return [
        *(Removal(m, "abandoned: the run was rolled back before it") for m in abandoned),
        *(Removal(m, "interrupted, and superseded by a later commit") for m in superseded),
        *(Removal(m, f"not kept by {policy}") for m in rest if m.id not in kept and m.id not in keep_anyway),
    ]


_POLICIES: dict[str, Any] = {
    policy.__name__: policy for policy in (Latest, Best, EveryNth, Younger, Pinned, Named, Budget)
}


def parse(text: str) -> Policy:
    """Return the policy that an expression spells: the names of this module, ``|``, ``&``, parentheses.

    Raises:
        ConfigError: the expression is not one; the message points at the word.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        column = (getattr(error, "offset", None) or 1) - 1
        raise _wrong(text, column, "this is not an expression") from None
    try:
        policy = _evaluated(tree, text)
    except RecursionError:
        raise _wrong(text[:200], 0, "it is too long") from None
    if not hasattr(policy, "keep"):
        raise _wrong(text, 0, "a policy was expected")
    return policy  # type: ignore[no-any-return]


def _evaluated(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.BitOr, ast.BitAnd)):
        sides = [_evaluated(side, text) for side in (node.left, node.right)]
        for side, place in zip(sides, (node.left, node.right), strict=True):
            if not hasattr(side, "keep"):
                raise _wrong(text, place.col_offset, "a policy was expected on both sides of | and &")
        return sides[0] | sides[1] if isinstance(node.op, ast.BitOr) else sides[0] & sides[1]
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)):
        return node.value
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        make = _POLICIES.get(node.func.id)
        if make is None:
            raise _wrong(text, node.col_offset, f"there is no policy {node.func.id}")
        positional = [_evaluated(argument, text) for argument in node.args]
        named = {str(keyword.arg): _evaluated(keyword.value, text) for keyword in node.keywords}
        if make is Named:
            positional = [tuple(positional)]
        try:
            return make(*positional, **named)
        except (TypeError, ConfigError) as error:
            raise _wrong(text, node.col_offset, str(error)) from None
    raise _wrong(text, node.col_offset, "a policy was expected")


def _wrong(text: str, column: int, what: str) -> ConfigError:
    known = "Latest(5), Best(1, 'val/loss', 'min'), EveryNth(epochs=10), Younger(hours=6), Pinned(), Named('step-…'), "
    return ConfigError(
        f"The retention policy cannot be read: {what}.\n  {text.strip()}\n  {' ' * column}^\n"
        f"Known: {known}Budget(gigabytes=50, of=…), joined by | and &."
    )


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
