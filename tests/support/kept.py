"""Manifests of a line, and those that a policy keeps."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.retention import Context, Policy
from tests.support.runs import manifest_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)


CONTEXT = Context(NOW)


def steps(identities: Any) -> list[int]:
    return sorted(identity.step for identity in identities)


def kept(policy: Policy, manifests: Sequence[Manifest], context: Context = CONTEXT) -> list[int]:
    return steps(policy.keep(manifests, context))


def of_epochs(number: int, **metrics: Sequence[float]) -> list[Manifest]:
    return [
        manifest_of(step, metrics={f"val/{name}": values[step - 1] for name, values in metrics.items()})
        for step in range(1, number + 1)
    ]
