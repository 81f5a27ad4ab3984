"""Learning rate schedules: plans, positions, and settings of the driven optimizers."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mltrain.restoring.optimizers import is_optimizer

RATES = frozenset({"lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"})
"""Settings of a group that a schedule drives; so it drives others that a replay changes."""

MOMENTA = frozenset({"momentum", "betas"})
"""Settings that a schedule may cycle beside the rate; ``max_momentum`` in the group shows that it does."""


_PLAN = frozenset(
    {"total_steps", "_schedule_phases", "T_max", "T_0", "T_mult", "eta_min", "total_iters", "milestones", "_milestones"}
    | {"gamma", "step_size", "base_lrs", "max_lrs", "power", "factor", "start_factor", "end_factor", "total_size"}
    | {"step_ratio", "patience", "threshold", "threshold_mode", "cooldown", "min_lrs", "mode", "base_momentums"}
    | {"max_momentums"}
)
"""Constant entries in the state of torch's schedules, to compare checkpoints of releases that recorded no plan."""


_SAMPLES = (*range(8), 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000)


def is_schedule(part: Any) -> bool:
    """Return whether a part is a learning rate schedule."""
    return isinstance(part, LRScheduler) or (
        not is_optimizer(part) and is_optimizer(getattr(part, "optimizer", None)) and hasattr(part, "get_last_lr")
    )


def settings_of(optimizer: Any) -> list[dict[str, Any]]:
    """Return copies of each group's settings, without its parameters."""
    ignored = ("params", "param_names")
    return [
        {
            key: value.clone() if isinstance(value, Tensor) else value
            for key, value in group.items()
            if key not in ignored
        }
        for group in optimizer.param_groups
    ]


def put_settings(settings: list[tuple[Any, list[dict[str, Any]]]]) -> None:
    """Set optimizer groups to the settings that :meth:`Built.settings` returned."""
    for optimizer, groups in settings:
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            for key, value in values.items():
                set_setting(group, key, value)


def set_setting(group: dict[str, Any], key: str, value: Any) -> None:
    """Set a group's setting to a copy of a value."""
    group[key] = value.clone() if isinstance(value, Tensor) else value


def same_optimizer(one: Any, other: Any) -> bool:
    """Return whether two objects are one optimizer, perhaps wrapped."""
    return one is other or getattr(one, "param_groups", one) is getattr(other, "param_groups", other)


def _all(schedule: Any) -> Iterator[Any]:
    yield schedule
    for inner in getattr(schedule, "_schedulers", ()):
        yield from _all(inner)


def position(schedule: Any) -> int:
    """Return the steps of a schedule; of a chain, those of its furthest member."""
    own = getattr(schedule, "last_epoch", None)
    found = [own] if own is not None else [one.last_epoch for one in _all(schedule) if hasattr(one, "last_epoch")]
    return max(0, *(int(number) for number in found), 0)


def kind_of(schedule: Any) -> str:
    """Return the classes of a schedule and its members."""
    members = ", ".join(map(kind_of, getattr(schedule, "_schedulers", ())))
    return type(schedule).__name__ + (f"({members})" if members else "")


def steps_in(state: Any) -> int | None:
    """Return the steps that a schedule's plain state counts."""
    own = state.get("last_epoch")
    if isinstance(own, (int, float)):
        return int(own)
    found = [steps_in(inner) for inner in state.get("_schedulers", ()) if isinstance(inner, Mapping)]
    return max((steps for steps in found if steps is not None), default=None)


def counts_steps(schedule: Any) -> bool:
    """Return whether a schedule's rate depends on steps alone."""
    if any(isinstance(one, ReduceLROnPlateau) for one in _all(schedule)):
        return False
    needed = (one for one in inspect.signature(schedule.step).parameters.values() if one.default is one.empty)
    positional = [one for one in needed if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return not positional and any(hasattr(one, "last_epoch") for one in _all(schedule))


def functions_of(schedule: Any) -> Iterator[list[float | None]]:
    """Yield samples of a schedule's functions, which no state holds."""
    for one in _all(schedule):
        for function in getattr(one, "lr_lambdas", ()):
            values: list[float | None] = []
            for step in _SAMPLES if inspect.isfunction(function) else ():
                try:
                    values.append(float(function(step)))
                except Exception:  # noqa: BLE001 - it may be defined for the steps of the plan only
                    values.append(None)
            yield values


def plan_of(state: Any) -> Any:
    """Return the constant entries of a schedule's state."""
    plan = {key: value for key, value in state.items() if key in _PLAN}
    return {**plan, "_schedulers": [plan_of(one) for one in state["_schedulers"]]} if "_schedulers" in state else plan
