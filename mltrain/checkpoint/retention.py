"""Which checkpoints stay: policies are values that choose, and what :func:`protected` names stays whatever they choose."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from mltrain.checkpoint.manifest import CheckpointId, Manifest, current_line

Mode = Literal["min", "max"]
_BUILT_IN = "mltrain.checkpoint.policies"


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


class Policy(ABC):
    """Answers which checkpoints to keep; a class of your own is used as those of :mod:`mltrain.checkpoint.policies` are.

    Policies join with ``|`` and ``&``. The text of a policy, ``str(policy)``, is recorded with the run and read by
    :func:`mltrain.checkpoint.policies.parse`, so a policy is a value: make its class a frozen dataclass, whose fields are
    numbers, texts or policies. A class is known by its name from when it is defined; ``mltrain prune``, which does not import
    your code, finds it where your package has an entry point of that name in the group ``mltrain.policies``.
    """

    known: ClassVar[dict[str, type["Policy"]]] = {}
    """All policies that a text may name."""
    example: ClassVar[str] = ""
    """How a person writes the policy; for messages."""

    def __init_subclass__(cls, *, named: bool = True) -> None:
        super().__init_subclass__()
        before = Policy.known.get(cls.__name__)
        if named and (before is None or before.__module__ != _BUILT_IN):  # what is recorded must keep its meaning
            Policy.known[cls.__name__] = cls

    @abstractmethod
    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep; ``manifests`` are those of the current line, oldest first."""

    @classmethod
    def from_arguments(cls, *positional: Any, **named: Any) -> Self:
        """Return the policy that a text spells with these arguments."""
        return cls(*positional, **named)

    def named_metrics(self) -> frozenset[str]:
        """Return the metrics that the policy needs, by default those of the policies it is made of."""
        inner = [one for value in vars(self).values() for one in (value if isinstance(value, tuple) else (value,))]
        return frozenset().union(*(metrics_of(one) for one in inner))

    def __or__(self, other: "Policy") -> "Policy":
        """Keep what either keeps."""
        return Union((*_members(self, Union), *_members(other, Union)))

    def __ror__(self, other: "Policy") -> "Policy":
        return Union((*_members(other, Union), *_members(self, Union)))

    def __and__(self, other: "Policy") -> "Policy":
        """Keep what both keep."""
        return Intersection((*_members(self, Intersection), *_members(other, Intersection)))

    def __rand__(self, other: "Policy") -> "Policy":
        return Intersection((*_members(other, Intersection), *_members(self, Intersection)))

    def __str__(self) -> str:
        given = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if value != parameter.default:
                given.append(f"{name}={value if isinstance(value, Policy) else repr(value)}")
        return f"{type(self).__name__}({', '.join(given)})"


def metrics_of(policy: Any) -> frozenset[str]:
    """Return the metrics that a policy names."""
    return policy.named_metrics() if isinstance(policy, Policy) else frozenset()


def _members(policy: Policy, join: "type[Union | Intersection]") -> tuple[Policy, ...]:
    """Return the members of a join of this kind, so that however a join came about, equal ones are equal."""
    return policy.policies if isinstance(policy, join) else (policy,)


@dataclass(frozen=True)
class Union(Policy, named=False):
    """Keeps what any of its policies keeps."""

    policies: tuple[Policy, ...]

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset().union(*(policy.keep(manifests, context) for policy in self.policies))

    def __str__(self) -> str:
        return " | ".join(str(policy) for policy in self.policies)


@dataclass(frozen=True)
class Intersection(Policy, named=False):
    """Keeps what all of its policies keep."""

    policies: tuple[Policy, ...]

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        kept = [policy.keep(manifests, context) for policy in self.policies]
        return kept[0].intersection(*kept[1:])

    def __str__(self) -> str:
        return " & ".join(f"({p})" if isinstance(p, Union) else str(p) for p in self.policies)


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
    """Return the best checkpoint, or ``None`` if none was declared or measured."""
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
