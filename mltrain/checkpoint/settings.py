"""How the checkpoints of a run are kept, as the caller asks for it, checked."""

import math
from dataclasses import dataclass
from typing import Any

from mltrain.checkpoint.retention import Mode, Policy
from mltrain.errors import UsageError

DEFAULT_METRIC = "val/loss"


@dataclass(frozen=True)
class Settings:
    """How the checkpoints of a run are kept.

    Attributes:
        policy: decides which ones stay.
        metric: decides which one is best, where the caller does not declare it.
        mode: whether less (``min``) or more (``max``) of it is better.
        staging_gigabytes: how much may wait on this disk for another artifact store, in units of 10**9 bytes.

    Raises:
        UsageError: one of them is invalid.
    """

    policy: Policy
    metric: str = DEFAULT_METRIC
    mode: Mode = "min"
    staging_gigabytes: float = 20.0

    def __post_init__(self) -> None:
        is_policy = not isinstance(self.policy, type) and callable(getattr(self.policy, "keep", None))
        refuse_unless(is_policy, "policy", self.policy, "Latest(3) | Best(1)")
        refuse_unless(isinstance(self.metric, str) and self.metric != "", "metric", self.metric, "the name of a metric")
        refuse_unless(self.mode in ("min", "max"), "mode", self.mode, "'min' or 'max'")
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
