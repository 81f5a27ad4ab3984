"""How the checkpoints of a run are kept, as the caller asks for it, checked."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mltrain.checkpoint.manifest import Manifest
from mltrain.checkpoint.retention import Mode, Policy
from mltrain.checkpoint.store import CheckpointStore
from mltrain.errors import UsageError

DEFAULT_METRIC = "val/loss"

Committed = Callable[[Manifest, Manifest | None, CheckpointStore], None]
"""Called in the background after each commit with the new checkpoint, the best one, and the store that holds them."""


@dataclass(frozen=True)
class Settings:
    """How the checkpoints of a run are kept.

    Attributes:
        policy: decides which ones stay.
        metric: decides which one is best, where the caller does not declare it.
        mode: whether less (``min``) or more (``max``) of it is better.
        staging_gigabytes: how much may wait on this disk for another artifact store, in units of 10**9 bytes.
        committed: see :data:`Committed`. If ``None``, nobody is called.

    Raises:
        UsageError: one of them is invalid.
    """

    policy: Policy
    metric: str = DEFAULT_METRIC
    mode: Mode = "min"
    staging_gigabytes: float = 20.0
    committed: Committed | None = None

    def __post_init__(self) -> None:
        is_policy = not isinstance(self.policy, type) and callable(getattr(self.policy, "keep", None))
        refuse_unless(is_policy, "policy", self.policy, "Latest(3) | Best(1)")
        refuse_unless(isinstance(self.metric, str) and self.metric != "", "metric", self.metric, "the name of a metric")
        refuse_unless(self.mode in ("min", "max"), "mode", self.mode, "'min' or 'max'")
        refuse_unless(
            self.committed is None or callable(self.committed), "committed", self.committed, "a function or None"
        )
        size = self.staging_gigabytes
        is_size = isinstance(size, int | float) and not isinstance(size, bool) and not math.isnan(size) and size > 0
        refuse_unless(is_size, "staging_gigabytes", size, "a size above 0")


def refuse_unless(valid: bool, name: str, value: Any, expected: str) -> None:
    """Refuse an argument that is invalid.

    Raises:
        UsageError: it is.
    """
    if not valid:
        raise UsageError(f"{name}={value!r:.80} is invalid. Expected {expected}.")
