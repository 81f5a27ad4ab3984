"""Retention: which checkpoints stay.

Policies are values that choose checkpoints; those of :func:`protected` stay regardless.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal, Self

from mltrain.checkpoint.manifest import CheckpointId, Manifest, current_line
from mltrain.errors import UsageError, sentence

Mode = Literal["min", "max"]
_BUILT_IN = "mltrain.checkpoint.policies"


@dataclass(frozen=True)
class Context:
    """The facts a policy may use besides the manifests.

    These are the time, the pins (identity to reason) and the best metric. ``declared`` is the newest checkpoint that was
    declared best after its save, or ``None``.
    """

    now: datetime
    pins: Mapping[CheckpointId, str] = field(default_factory=dict)
    metric: str = "val/loss"
    mode: Mode = "min"
    declared: CheckpointId | None = None


class Policy(ABC):
    """Chooses the checkpoints to keep.

    Subclass it to define your own; see :mod:`mltrain.checkpoint.policies` for examples.

    Policies combine with ``|`` and ``&``. The run records the text of its policy, ``str(policy)``, and
    :func:`mltrain.checkpoint.policies.parse` reads it back, so a policy must be a value: make its class a frozen dataclass with
    numbers, strings or policies as fields. A class is known by its name once it is defined. ``mltrain prune`` does not import
    your code; it finds the class through an entry point of that name in the group ``mltrain.policies``.
    """

    known: ClassVar[dict[str, type["Policy"]]] = {}
    """All policies by name, for parsing."""
    example: ClassVar[str] = ""
    """How to write the policy, for error messages."""

    def __init_subclass__(cls, *, named: bool = True) -> None:
        super().__init_subclass__()
        before = Policy.known.get(cls.__name__)
        if named and (before is None or before.__module__ != _BUILT_IN):  # recorded policies must keep their meaning
            Policy.known[cls.__name__] = cls

    @abstractmethod
    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep.

        Args:
            manifests: of the current line, oldest first.
            context: see :class:`Context`.
        """

    @classmethod
    def from_arguments(cls, *positional: Any, **named: Any) -> Self:
        """Return the policy for arguments parsed from text."""
        return cls(*positional, **named)

    def named_metrics(self) -> frozenset[str]:
        """Return the metrics that the policy needs.

        By default these are the metrics of the policies among its fields.
        """
        inner = [one for value in vars(self).values() for one in (value if isinstance(value, tuple) else (value,))]
        return frozenset().union(*(metrics_of(one) for one in inner))

    def __or__(self, other: "Policy") -> "Policy":
        """Keep the checkpoints that either policy keeps."""
        if not is_policy(other):
            return NotImplemented
        return Union((*_members(self, Union), *_members(other, Union)))

    def __ror__(self, other: "Policy") -> "Policy":
        if not is_policy(other):
            return NotImplemented
        return Union((*_members(other, Union), *_members(self, Union)))

    def __and__(self, other: "Policy") -> "Policy":
        """Keep the checkpoints that both policies keep."""
        if not is_policy(other):
            return NotImplemented
        return Intersection((*_members(self, Intersection), *_members(other, Intersection)))

    def __rand__(self, other: "Policy") -> "Policy":
        if not is_policy(other):
            return NotImplemented
        return Intersection((*_members(other, Intersection), *_members(self, Intersection)))

    def __str__(self) -> str:
        given = []
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if value != parameter.default:
                given.append(f"{name}={value if isinstance(value, Policy) else repr(value)}")
        return f"{type(self).__name__}({', '.join(given)})"


def is_policy(value: Any) -> bool:
    """Whether a value can be used as a policy; a class cannot."""
    return not isinstance(value, type) and callable(getattr(value, "keep", None))


def kept_by(policy: Policy, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
    """Return the identities that a policy keeps, checked.

    Raises:
        UsageError: the policy raised an error, or returned anything but identities.
    """
    try:
        kept = list(policy.keep(manifests, context))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"The retention policy {policy} failed, so no checkpoint is removed: "
            f"{sentence(f'{type(error).__name__}: {error}')} Expected a set of identities from keep()."
        ) from error
    for one in kept:
        if not isinstance(one, CheckpointId):
            raise UsageError(
                f"keep() of the retention policy {policy} returned a {type(one).__name__}, so no checkpoint is removed. "
                "Expected a set of identities. Try: frozenset(manifest.id for manifest in manifests if …)"
            )
    return frozenset(kept)


def metrics_of(policy: Any) -> frozenset[str]:
    """Return the metrics that a policy names."""
    return policy.named_metrics() if isinstance(policy, Policy) else frozenset()


def _members(policy: Policy, join: "type[Union | Intersection]") -> tuple[Policy, ...]:
    """Return a combination's members, so that equal combinations compare equal."""
    return policy.policies if isinstance(policy, join) else (policy,)


@dataclass(frozen=True)
class Union(Policy, named=False):
    """Keeps the checkpoints that any of its policies keeps."""

    policies: tuple[Policy, ...]

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        return frozenset().union(*(kept_by(policy, manifests, context) for policy in self.policies))

    def __str__(self) -> str:
        return " | ".join(str(policy) for policy in self.policies)


@dataclass(frozen=True)
class Intersection(Policy, named=False):
    """Keeps the checkpoints that all of its policies keep."""

    policies: tuple[Policy, ...]

    def keep(self, manifests: Sequence[Manifest], context: Context) -> frozenset[CheckpointId]:
        """Return the identities to keep."""
        kept = [kept_by(policy, manifests, context) for policy in self.policies]
        return kept[0].intersection(*kept[1:])

    def __str__(self) -> str:
        return " & ".join(f"({p})" if isinstance(p, Union) else str(p) for p in self.policies)


def by_metric(manifests: Iterable[Manifest], metric: str, mode: Mode) -> list[Manifest]:
    """Return the checkpoints with a finite metric, best first.

    Of equal ones the older comes first.
    """
    measured = [m for m in manifests if math.isfinite(m.metrics.get(metric, math.nan))]
    sign = 1.0 if mode == "min" else -1.0
    return sorted(measured, key=lambda m: (sign * m.metrics[metric], m.id.order))


def ranked(manifests: Iterable[Manifest], context: Context) -> list[Manifest]:
    """Return the checkpoints that can be best, best first.

    Declared ones come first, the latest of them leading, then the others by the run's best metric.
    """
    manifests = list(manifests)
    declared = [m for m in manifests if m.best or m.id == context.declared]
    others = [m for m in manifests if m not in declared]
    return sorted(declared, key=lambda m: m.id.order, reverse=True) + by_metric(others, context.metric, context.mode)


def best_of(manifests: Iterable[Manifest], context: Context) -> Manifest | None:
    """Return the best checkpoint. ``None`` if no checkpoint is eligible."""
    return next(iter(ranked(manifests, context)), None)


def protected(
    manifests: Sequence[Manifest],
    context: Context,
    *,
    resumed_from: CheckpointId | None,
    in_use: Collection[CheckpointId],
) -> dict[CheckpointId, str]:
    """Return the checkpoints that no policy may remove, with reasons.

    Args:
        manifests: all committed checkpoints of the run.
        context: the pins and the best metric.
        resumed_from: the start of an attempt that has no commit of its own yet.
        in_use: sources of forked runs and registered model versions.
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
    reasons |= dict.fromkeys(in_use, "in use by a fork or a registered model")
    reasons |= {identity: f"pinned: {reason}" if reason else "pinned" for identity, reason in context.pins.items()}
    return reasons


@dataclass(frozen=True)
class Removal:
    """A checkpoint to remove and the rule that removes it."""

    manifest: Manifest
    rule: str


def plan(
    manifests: Sequence[Manifest], policy: Policy, context: Context, keep_anyway: Collection[CheckpointId]
) -> list[Removal]:
    """Return the checkpoints to remove, in order.

    Abandoned lines come first, then superseded interruptions, then checkpoints that the policy does not keep.

    Raises:
        UsageError: the policy failed, or returned anything but identities.
    """
    line = current_line(manifests)
    on_line = {manifest.id for manifest in line}
    abandoned = [m for m in manifests if m.id not in on_line and m.id not in keep_anyway]
    # An interrupted checkpoint serves one resume: a later commit on its line supersedes it.
    superseded = [m for m in line[:-1] if m.kind == "interrupted" and m.id not in keep_anyway]
    gone = {manifest.id for manifest in superseded}
    rest = [manifest for manifest in line if manifest.id not in gone]
    kept = kept_by(policy, rest, context)
    return [
        *(Removal(m, "abandoned: the run was rolled back before it") for m in abandoned),
        *(Removal(m, "interrupted, and superseded by a later commit") for m in superseded),
        *(Removal(m, f"not kept by {policy}") for m in rest if m.id not in kept and m.id not in keep_anyway),
    ]
