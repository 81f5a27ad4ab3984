"""Schedules that are planned for a number of steps, when a resume asks for another number.

OneCycle, cosine, linear and polynomial schedules know where they end. A checkpoint brings their old plan back; if the
code now plans for more (or fewer) steps, the rule is: the position stays, the plan is the new one, and that is said.
"""

import logging
from collections.abc import Iterator
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

log = logging.getLogger(__name__)

_PLAN = ("total_steps", "_schedule_phases", "T_max", "T_0", "total_iters", "milestones", "_milestones")


def plans(schedule: Any) -> list[dict[str, Any]]:
    """Return the plan of a schedule, and those of the schedules that it is made of."""
    return [{name: vars(one)[name] for name in _PLAN if name in vars(one)} for one in _all(schedule)]


def replan(schedule: Any, wanted: list[dict[str, Any]]) -> bool:
    """Give a schedule that was put back the plan that the code made; return whether that was another one.

    The learning rate goes to where the new plan has it at the present position.
    """
    if plans(schedule) == wanted:
        return False
    before = plans(schedule)
    for one, plan in zip(_all(schedule), wanted, strict=True):
        vars(one).update(plan)
    if not hasattr(schedule, "_schedulers"):
        # The chainable forms multiply the last rate, which is zero at the end of a plan; the closed forms do not.
        closed = getattr(schedule, "_get_closed_form_lr", None) or schedule.get_lr
        for group, rate in zip(schedule.optimizer.param_groups, closed(), strict=True):
            group["lr"] = rate
    log.warning(
        "The learning rate schedule was planned for %s and is re-planned for %s; it goes on from step %d of the new plan.",
        _shown(before),
        _shown(wanted),
        schedule.last_epoch,
    )
    return True


def is_schedule(part: Any) -> bool:
    """Whether a part of a state is a learning rate schedule of torch."""
    return isinstance(part, LRScheduler)


def _all(schedule: Any) -> Iterator[Any]:
    yield schedule
    for inner in getattr(schedule, "_schedulers", ()):
        yield from _all(inner)


def _shown(all_plans: list[dict[str, Any]]) -> str:
    numbers = [f"{plan[name]} steps" for plan in all_plans for name in _PLAN if isinstance(plan.get(name), int)]
    return ", ".join(numbers) or "other milestones"
