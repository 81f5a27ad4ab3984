"""Applies changed hyper-parameters at a resume.

A checkpoint restores not only learned state but also hyper-parameters: learning rates and weight decay of an optimizer's
groups, the plan of a schedule, the decay of an average. It records their values as built. If a resumed training builds
another value, that value takes effect; if it builds the same, the checkpoint's state continues.
"""

import copy
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mltrain.errors import StateMismatch
from mltrain.restoring.built import Built, differences, equal, plain, replaced
from mltrain.restoring.optimizers import in_order_of_groups, is_optimizer
from mltrain.schedules import (
    MOMENTA,
    RATES,
    counts_steps,
    is_schedule,
    plan_of,
    position,
    same_optimizer,
    set_setting,
    settings_of,
    steps_in,
)

log = logging.getLogger(__name__)

_TEXT_OF_A_RATE = re.compile(r"(^|[._])(lr|rate|decay|momentum|betas?|gamma|warmup|warm_up)($|[._])")


class Changes:
    """The differences in built values since a checkpoint.

    Args:
        built: the values of this training as built, before a restore.
        saved: the states of a checkpoint.
        config: changed keys of the configuration, each with (before, now).

    Attributes:
        parts: the checkpoint's states; in parts that are no modules, optimizers or schedules, with the changed values.
        config: the changed keys of the configuration, each with (before, now).
    """

    def __init__(self, built: Built, saved: Mapping[str, Any], config: Mapping[str, tuple[str, str]]) -> None:
        progress = saved.get("progress")
        text = progress.get("built") if isinstance(progress, Mapping) else None
        record = json.loads(text) if isinstance(text, str) else {}
        then: Mapping[str, Any] | None = record.get("parts")
        self._built = built
        self._then = then
        self._saved = saved
        self.config = config
        self._found: list[tuple[str, Any]] = []
        self.parts = dict(saved)
        self._former: dict[str, str] = {}  # the class of a schedule that one of another kind replaces
        self._steps: dict[str, int] = {}  # those of the former schedule
        for name, kind in record.get("kinds", {}).items():
            if name in saved and kind != built.kinds.get(name, kind):
                self._replace(name, kind, record.get("counting", built.counting).get(name))
        if then is None or not config:
            return
        for name, part in built.parts.items():
            if name in saved and not (is_optimizer(part) or is_schedule(part)):
                for path, before, now in differences(then.get(name, {}), built.now[name]):
                    self._change_other(name, path, before, now)

    def _replace(self, name: str, before: str, counted: bool | None) -> None:
        """Begin a schedule of another kind at the checkpoint's step; refuse another optimizer."""
        part: Any = self._built.parts[name]
        if is_optimizer(part):
            kind, known = type(part), getattr(torch.optim, before, type(part))
            if kind.__module__.startswith("torch.optim.") and not (issubclass(kind, known) or issubclass(known, kind)):
                raise StateMismatch(f"the optimizer {name!r}: it was a {before} and is a {kind.__name__}")
            return
        now, verb = self._built.kinds[name], "counts steps" if counted else "counts no steps"
        if counted != self._built.counting[name]:
            raise StateMismatch(
                f"the schedule {name!r}. Expected one that {verb}, like {before} of the checkpoint, got {now}",
                advice=f"Resume with {before} or another schedule that {verb}, or start a new run with {now}.",
            )
        if not counted:
            log.warning("The schedule %r was a %s and is a %s. It keeps the checkpoint's state.", name, before, now)
            return
        self._former[name], self._steps[name] = before, steps_in(plain(self._saved[name])) or 0
        self.parts[name] = copy.deepcopy(self._built.fresh[name])

    def _change_other(self, name: str, path: tuple[Any, ...], before: Any, now: Any) -> None:
        spelled = ".".join([name, *map(str, path)])
        if isinstance(self._built.parts[name], nn.Module):
            log.warning(
                "%s is built as %s instead of %s, but keeps the checkpoint's value, because it belongs to the weights.",
                spelled,
                now,
                before,
            )
            self._found.append((spelled, now))
            return
        try:
            self.parts[name] = replaced(self.parts[name], path, now)
        except (KeyError, IndexError, TypeError):
            log.warning("%s is built as %s instead of %s, but keeps the checkpoint's value.", spelled, now, before)
        self._note(spelled, before, now)

    def _note(self, what: str, before: Any, now: Any) -> None:
        self._found.append((what, now))
        log.warning("The configuration changed %s from %s to %s. The new value takes effect now.", what, before, now)

    def apply(self, sources: Mapping[str, list[int]]) -> None:
        """Apply the changes to the restored optimizers and schedules.

        Args:
            sources: for each optimizer, the checkpoint's group that each of its groups continues.

        Raises:
            StateMismatch: the new plan of a schedule ends before the current step.
        """
        plans = {name: self._plan_changes(name, sources) for name in self._built.schedules if name in self._saved}
        optimizers: dict[str, Any] = {
            name: part for name, part in self._built.parts.items() if is_optimizer(part) and name in self._saved
        }
        for name in plans:
            driven_by: Any = self._built.schedules[name]
            if not any(same_optimizer(driven_by.optimizer, one) for one in optimizers.values()):
                optimizers[name] = driven_by.optimizer  # which is no part of the state
        replayed: set[str] = set()
        for name, optimizer in optimizers.items():
            found = [] if name in plans else list(self._setting_changes(name, sources))
            mine = [key for key in plans if same_optimizer(self._built.schedules[key].optimizer, optimizer)]  # type: ignore[attr-defined]
            again = [key for key in mine if counts_steps(self._built.schedules[key])]
            if again and (
                any(plans[key] or key in self._steps for key in again) or any(key in RATES for _, key, _, _ in found)
            ):
                restored = settings_of(optimizer)
                self._replay(again, optimizer)
                replayed |= set(again)
                fresh = self._built.groups[id(optimizer)]
                driven: set[tuple[int, str]] = set()
                for number, (group, was, first) in enumerate(zip(optimizer.param_groups, restored, fresh, strict=True)):
                    cycled = MOMENTA if "max_momentum" in was else frozenset()
                    for key in was.keys() - RATES:
                        if not equal(plain(group.get(key)), plain(first.get(key))):
                            driven.add((number, key))
                        elif key not in cycled:
                            group[key] = was[key]
                found = [change for change in found if change[1] not in RATES and change[:2] not in driven]
            for number, key, before, now in found:
                set_setting(optimizer.param_groups[number], key, self._built.groups[id(optimizer)][number][key])
                self._note(f"{key} of group {number} of {name}", before, now)
        for name, changes in plans.items():
            self._apply_plan(name, changes, name in replayed)
        self._warn()

    def _setting_changes(self, name: str, sources: Mapping[str, list[int]]) -> Iterator[tuple[int, str, Any, Any]]:
        """Yield (group, setting, then, now) for each differing setting."""
        now = self._built.now[name]
        if self._then is not None:
            recorded = self._then.get(name) or []
        else:
            state = self._saved[name]
            recorded = plain([{k: v for k, v in g.items() if k != "params"} for g in state.get("param_groups", [])])
        driven = (
            RATES if any(same_optimizer(one.optimizer, self._built.parts[name]) for one in self._counting()) else ()
        )
        for number, group in enumerate(now):
            source = sources.get(name, range(len(now)))[number]
            before = recorded[source] if source < len(recorded) else {}
            for key, value in group.items():
                if key not in before or equal(before[key], value):
                    continue
                if self._then is None and (key in driven or not _concerned(self.config, key, value)):
                    continue
                yield number, key, before[key], value

    def _counting(self) -> Iterator[Any]:
        return (part for part in self._built.schedules.values() if counts_steps(part))

    def _plan_changes(self, name: str, sources: Mapping[str, list[int]]) -> list[tuple[tuple[Any, ...], Any, Any]]:
        if name in self._steps:
            return []
        now = self._built.now[name]
        then = self._then.get(name, {}) if self._then is not None else plan_of(plain(self._saved[name]))
        schedule: Any = self._built.schedules[name]
        for optimizer, order in sources.items():
            if same_optimizer(self._built.parts[optimizer], schedule.optimizer):
                then = in_order_of_groups(then, order, len(self._saved[optimizer].get("param_groups", order)))
        return list(differences(then, now))

    def _replay(self, names: Sequence[str], optimizer: Any) -> None:
        """Step schedules from the start, to get the new rate."""
        for group, fresh in zip(optimizer.param_groups, self._built.groups[id(optimizer)], strict=True):
            for key, value in fresh.items():
                set_setting(group, key, value)
            for key in RATES - fresh.keys():
                group.pop(key, None)  # of a schedule of another kind
        for name in names:
            schedule: Any = self._built.schedules[name]
            steps = max(position(schedule), self._steps.get(name, 0))  # a roll back leaves it at its position
            schedule.load_state_dict(copy.deepcopy(self._built.fresh[name]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of a schedule's step before the optimizer's
                try:
                    for _ in range(steps):
                        schedule.step()
                except ValueError as error:
                    raise StateMismatch(
                        f"the schedule {name!r}: {steps} steps are done, but its new plan ends earlier: {error}",
                        advice="Plan for more steps, or go back with --resume-from.",
                    ) from error

    def _apply_plan(self, name: str, changes: list[tuple[tuple[Any, ...], Any, Any]], replayed: bool) -> None:
        schedule: Any = self._built.schedules[name]
        if name in self._former:
            log.warning(
                "The learning rate schedule %r was a %s and is a %s. It continues at step %d of the new plan, "
                "counted in calls of the schedule's step(), per batch or per epoch.",
                name,
                self._former[name],
                self._built.kinds[name],
                position(schedule),
            )
        if not changes:
            return
        if replayed:
            self._found += [(".".join(map(str, path)), now) for path, _, now in changes]
            log.warning(
                "The learning rate schedule %r was planned with %s and is re-planned with %s. It continues at step %d of "
                "the new plan.",
                name,
                _shown((path, before) for path, before, _ in changes),
                _shown((path, now) for path, _, now in changes),
                position(schedule),
            )
            return
        state: Any = dict(schedule.state_dict())
        for path, before, now in changes:
            try:
                state = replaced(state, path, now)
                self._note(".".join([name, *map(str, path)]), before, now)
            except (KeyError, IndexError, TypeError):
                log.warning("%s of the schedule %r keeps the checkpoint's value.", ".".join(map(str, path)), name)
        schedule.load_state_dict(state)

    def _warn(self) -> None:
        """Warn about changed hyper-parameters that changed no built value."""
        for key, (before, now) in self.config.items():
            leaf = key.rpartition(".")[2]
            if key == "seed":
                log.warning(
                    "seed was changed from %s to %s: evaluation uses the new one, but the order of the data and the random "
                    "numbers of the training continue from the checkpoint. To use the new seed throughout, start a new run.",
                    before,
                    now,
                )
            elif _TEXT_OF_A_RATE.search(key) and not any(
                _number(now) == value or leaf in what or any(word in leaf for word in _words(what))
                for what, value in self._found
            ):
                log.warning(
                    "%s was changed from %s to %s, but changed no optimizer, schedule or other part of the state. It takes "
                    "effect only where the project's code reads it while training.",
                    key,
                    before,
                    now,
                )


def _concerned(changed: Mapping[str, tuple[str, str]], key: str, value: Any) -> bool:
    """Whether a changed key probably determines a setting."""
    return any(
        key in name.rpartition(".")[2] or (key == "lr" and "learning_rate" in name) or _number(now) == value
        for name, (_, now) in changed.items()
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _words(what: str) -> list[str]:
    return [
        word for word in re.findall(r"[A-Za-z_]{2,}", what) if word not in ("of", "group", "optimizer", "scheduler")
    ]


def _shown(values: Iterator[tuple[tuple[Any, ...], Any]]) -> str:
    shown = [f"{'.'.join(map(str, path))}={value}" for path, value in values if "$functions" not in path]
    return ", ".join(shown[:6]) or "another function"
