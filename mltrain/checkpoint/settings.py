"""Checked settings for the checkpoints of a run."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltrain.checkpoint.policies import Best, Latest
from mltrain.checkpoint.ports import Run
from mltrain.checkpoint.retention import Mode, Policy, is_policy
from mltrain.errors import UsageError
from mltrain.store.folders import expanded

DEFAULT_METRIC = "val/loss"


@dataclass(frozen=True)
class Settings:
    """Settings for the checkpoints of a run.

    Attributes:
        policy: decides which checkpoints stay.
        metric: decides which checkpoint is best unless the caller declares one.
        mode: whether a smaller (``min``) or a larger (``max``) value of the metric is better.
        staging_gigabytes: most that may wait on this disk for upload, in units of 10**9 bytes.

    Raises:
        UsageError: a setting is invalid.
    """

    policy: Policy
    metric: str = DEFAULT_METRIC
    mode: Mode = "min"
    staging_gigabytes: float = 20.0

    def __post_init__(self) -> None:
        refuse_unless(is_policy(self.policy), "policy", self.policy, "Latest(3) | Best(1)")
        refuse_unless(isinstance(self.metric, str) and self.metric != "", "metric", self.metric, "the name of a metric")
        refuse_unless(self.mode in ("min", "max"), "mode", self.mode, "'min' or 'max'")
        size = self.staging_gigabytes
        is_size = isinstance(size, int | float) and not isinstance(size, bool) and not math.isnan(size) and size > 0
        refuse_unless(is_size, "staging_gigabytes", size, "a size above 0")


def newest_and_best(max_to_keep: int) -> Policy:
    """Return a policy for the newest checkpoints and the best.

    Raises:
        UsageError: ``max_to_keep`` is not a positive whole number.
    """
    is_count = type(max_to_keep) is int and max_to_keep >= 1
    refuse_unless(is_count, "max_to_keep", max_to_keep, "a whole number of at least 1")
    return Latest(max_to_keep) | Best(1)


def run_or_folder(
    run: str | Path | Run | None, save_dir: str | os.PathLike[str] | None
) -> tuple[str | Run | None, Path | None]:
    """Return the run that owns the checkpoints, or their folder.

    Both are ``None`` if the caller names neither.

    Args:
        run: the id of a run, an open run, or a folder (a ``Path``, or a string with a slash).
        save_dir: a folder.

    Raises:
        UsageError: an argument is invalid, the home folder of ``~`` is unknown, or both a run and a folder are given.
    """
    if isinstance(run, Path) or (isinstance(run, str) and ("/" in run or os.sep in run)):
        refuse_unless(save_dir is None, "run", str(run), "the id of a run, or save_dir= alone")
        run, save_dir = None, run
    is_folder = save_dir is None or (isinstance(save_dir, str | os.PathLike) and run is None)
    refuse_unless(is_folder, "save_dir", save_dir, "a folder, and no run= beside it")
    is_run = run is None or isinstance(run, str) or callable(getattr(run, "begin_attempt", None))
    refuse_unless(is_run, "run", run, "the id of a run")
    return run, expanded(save_dir).absolute() if save_dir is not None else None


def refuse_unless(valid: bool, name: str, value: Any, expected: str) -> None:
    """Raise an error for an invalid argument.

    Raises:
        UsageError: ``valid`` is false.
    """
    if not valid:
        raise UsageError(f"{name}={value!r:.80} is invalid. Expected {expected}.")
