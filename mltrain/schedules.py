"""What the configuration built, and how a resume makes changes of it take effect.

A checkpoint brings back hyper-parameters beside what was learned: rates and weight decay of an optimizer's groups, the plan
of a schedule, the decay of an average. So it records what these were when they were built. Where a resumed training builds
another value, that one is meant; where it builds the same, what the checkpoint brings goes on.
"""

import copy
import inspect
import json
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mltrain.errors import StateMismatch
from mltrain.restoring.optimizers import in_order_of_groups, is_optimizer
from mltrain.restoring.undo import is_lazy
from mltrain.state import Stateful

log = logging.getLogger(__name__)

_RATES = frozenset({"lr", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum"})
"""Settings of a group that a schedule drives. Others that a replay changes are driven, too."""

_PLAN = frozenset(
    {"total_steps", "_schedule_phases", "T_max", "T_0", "T_mult", "eta_min", "total_iters", "milestones", "_milestones"}
    | {"gamma", "step_size", "base_lrs", "max_lrs", "power", "factor", "start_factor", "end_factor", "total_size"}
    | {"step_ratio", "patience", "threshold", "threshold_mode", "cooldown", "min_lrs", "mode", "base_momentums"}
    | {"max_momentums"}
)
"""What never changes in a schedule of torch. Checkpoints of releases that recorded nothing are compared by it."""

_SAMPLES = (*range(8), 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 100_000)
_MOST_ITEMS = 1000
_TEXT_OF_A_RATE = re.compile(r"(^|[._])(lr|rate|decay|momentum|betas?|gamma|warmup|warm_up)($|[._])")


def is_schedule(part: Any) -> bool:
    """Whether a part of a state is a learning rate schedule: of torch, or one that is used as those are."""
    return isinstance(part, LRScheduler) or (
        not is_optimizer(part) and is_optimizer(getattr(part, "optimizer", None)) and hasattr(part, "get_last_lr")
    )


class Built:
    """What the parts of a training were when they were built, before anything was restored.

    Args:
        parts: of the step and the task, by name.
    """

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self._parts = dict(parts)
        self._schedules = {name: part for name, part in parts.items() if is_schedule(part)}
        self._fresh = {name: copy.deepcopy(dict(part.state_dict())) for name, part in self._schedules.items()}
        self._groups = {
            id(one): _settings(one)
            for one in [
                *(part for part in parts.values() if is_optimizer(part)),
                *(part.optimizer for part in self._schedules.values()),  # type: ignore[attr-defined]
            ]
        }
        self._now = json.loads(json.dumps({name: self._described(name) for name in parts}))
        self.record = json.dumps({"parts": self._now})
        """What a checkpoint says of it, as JSON. It depends on nothing else, so equal trainings have equal checkpoints."""

    def _described(self, name: str) -> Any:
        """Return the plain values of a part as it was built."""
        part: Any = self._parts[name]
        if is_optimizer(part):
            return _plain(_settings(part))
        if name in self._schedules:
            return {**_plain(self._fresh[name]), "$functions": list(_functions(part))}
        if isinstance(part, nn.Module):
            small = ((key, one) for key, one in part.named_buffers() if not is_lazy(one) and one.numel() <= 4)
            return {key: one.tolist() for key, one in small if not (one.is_quantized or one.is_sparse or one.is_meta)}
        try:
            return _plain(part.state_dict())
        except Exception as error:  # noqa: BLE001 - a part may have no state before it was used
            log.debug("The part %r has no state yet: %r", name, error)
            return {}

    def settings(self) -> list[tuple[Any, list[dict[str, Any]]]]:
        """Return optimizers with the present settings of their groups, but those whose schedule follows a metric."""
        follow = [one for one in self._schedules.values() if not counts_steps(one)]
        return [
            (part, _settings(part))
            for part in self._parts.values()
            if is_optimizer(part) and not any(_same(part, one.optimizer) for one in follow)  # type: ignore[attr-defined]
        ]

    def before(self, parts: Mapping[str, Any], changed: Mapping[str, tuple[str, str]]) -> "Changes":
        """Compare what a checkpoint recorded with what is built now, before anything is restored.

        Args:
            parts: the states of a checkpoint.
            changed: keys of the configuration whose values changed, each with (before, now).
        """
        text = parts["progress"].get("built") if isinstance(parts.get("progress"), Mapping) else None
        then = json.loads(text)["parts"] if isinstance(text, str) else None
        return Changes(self, then, parts, changed)


class Changes:
    """The differences between what a checkpoint's training was built of and what this one is built of.

    Attributes:
        parts: the checkpoint's states, with the values that the changed configuration gives to parts of any other kind than
            modules, optimizers and schedules.
        config: the changed keys of the configuration, each with (before, now).
    """

    def __init__(
        self,
        built: Built,
        then: Mapping[str, Any] | None,
        parts: Mapping[str, Any],
        config: Mapping[str, tuple[str, str]],
    ) -> None:
        self._built = built
        self._then = then
        self._saved = parts
        self.config = config
        self._found: list[tuple[str, Any]] = []
        self.parts = dict(parts)
        for name, part in built._parts.items() if then is not None and config else ():
            if name not in parts or is_optimizer(part) or is_schedule(part):
                continue
            for path, before, now in _differences(then.get(name, {}), built._now[name]) if then is not None else ():
                self._change_other(name, path, before, now)

    def _change_other(self, name: str, path: tuple[Any, ...], before: Any, now: Any) -> None:
        spelled = ".".join([name, *map(str, path)])
        if isinstance(self._built._parts[name], nn.Module):
            log.warning(
                "%s is built as %s instead of %s, and keeps the checkpoint's value: it is one of the weights.",
                spelled,
                now,
                before,
            )
            self._found.append((spelled, now))
            return
        try:
            self.parts[name] = _replaced(self.parts[name], path, now)
        except (KeyError, IndexError, TypeError):
            log.warning("%s is built as %s instead of %s, and the checkpoint's value stays.", spelled, now, before)
        self._note(spelled, before, now)

    def _note(self, what: str, before: Any, now: Any) -> None:
        self._found.append((what, now))
        log.warning("The configuration changed %s from %s to %s; that takes effect now.", what, before, now)

    def apply(self, sources: Mapping[str, list[int]]) -> None:
        """Make the changes take effect in optimizers and schedules that were restored.

        Args:
            sources: which group of the checkpoint each group of an optimizer continues.

        Raises:
            StateMismatch: the new plan of a schedule has ended before the present step.
        """
        plans = {name: self._plan_changes(name, sources) for name in self._built._schedules if name in self._saved}
        optimizers: dict[str, Any] = {
            name: part for name, part in self._built._parts.items() if is_optimizer(part) and name in self._saved
        }
        replayed: set[str] = set()
        for name, optimizer in optimizers.items():
            found = list(self._setting_changes(name, sources))
            mine = [key for key in plans if _same(self._built._schedules[key].optimizer, optimizer)]  # type: ignore[attr-defined]
            again = [key for key in mine if counts_steps(self._built._schedules[key])]
            if again and (any(plans[key] for key in again) or any(key in _RATES for _, key, _, _ in found)):
                restored = _settings(optimizer)
                self._replay(again, optimizer)
                replayed |= set(again)
                fresh = self._built._groups[id(optimizer)]
                for group, was, first in zip(optimizer.param_groups, restored, fresh, strict=True):
                    for key in was.keys() - _RATES:
                        if _equal(_plain(group.get(key)), _plain(first.get(key))):
                            group[key] = was[key]  # no schedule drives it
                found = [change for change in found if change[1] not in _RATES]
            for number, key, before, now in found:
                _set(optimizer.param_groups[number], key, self._built._groups[id(optimizer)][number][key])
                self._note(f"{key} of group {number} of {name}", before, now)
        for name, changes in plans.items():
            self._apply_plan(name, changes, name in replayed)
        self._warn()

    def _setting_changes(self, name: str, sources: Mapping[str, list[int]]) -> Iterator[tuple[int, str, Any, Any]]:
        """Yield (group, setting, then, now) for what is built differently."""
        now = self._built._now[name]
        if self._then is not None:
            recorded = self._then.get(name) or []
        else:
            state = self._saved[name]
            recorded = _plain([{k: v for k, v in g.items() if k != "params"} for g in state.get("param_groups", [])])
        driven = _RATES if any(_same(one.optimizer, self._built._parts[name]) for one in self._counting()) else ()
        for number, group in enumerate(now):
            source = sources.get(name, range(len(now)))[number]
            before = recorded[source] if source < len(recorded) else {}
            for key, value in group.items():
                if key not in before or _equal(before[key], value):
                    continue
                if self._then is None and (key in driven or not _concerned(self.config, key, value)):
                    continue
                yield number, key, before[key], value

    def _counting(self) -> Iterator[Any]:
        return (part for part in self._built._schedules.values() if counts_steps(part))

    def _plan_changes(self, name: str, sources: Mapping[str, list[int]]) -> list[tuple[tuple[Any, ...], Any, Any]]:
        now = self._built._now[name]
        then = self._then.get(name, {}) if self._then is not None else _plan_of(_plain(self._saved[name]))
        schedule: Any = self._built._schedules[name]
        for optimizer, order in sources.items():
            if _same(self._built._parts[optimizer], schedule.optimizer):
                then = in_order_of_groups(then, order, len(self._saved[optimizer].get("param_groups", order)))
        return list(_differences(then, now))

    def _replay(self, names: Sequence[str], optimizer: Any) -> None:
        """Step schedules as they were built up to the present position, so that the rate is that of the new plan."""
        for group, fresh in zip(optimizer.param_groups, self._built._groups[id(optimizer)], strict=True):
            for key, value in fresh.items():
                _set(group, key, value)
        for name in names:
            schedule: Any = self._built._schedules[name]
            steps = _position(schedule)
            schedule.load_state_dict(copy.deepcopy(self._built._fresh[name]))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a schedule's step before any of the optimizer's
                try:
                    for _ in range(steps):
                        schedule.step()
                except ValueError as error:
                    raise StateMismatch(
                        f"the schedule {name!r}: {steps} steps are done, and its new plan ends before: {error}",
                        advice="Plan for more steps, or go back with --resume-from.",
                    ) from error

    def _apply_plan(self, name: str, changes: list[tuple[tuple[Any, ...], Any, Any]], replayed: bool) -> None:
        schedule: Any = self._built._schedules[name]
        if not changes:
            return
        if replayed:
            self._found += [(".".join(map(str, path)), now) for path, _, now in changes]
            log.warning(
                "The learning rate schedule %r was planned with %s and is re-planned with %s; it goes on from step %d of "
                "the new plan.",
                name,
                _shown((path, before) for path, before, _ in changes),
                _shown((path, now) for path, _, now in changes),
                _position(schedule),
            )
            return
        state: Any = dict(schedule.state_dict())
        for path, before, now in changes:
            try:
                state = _replaced(state, path, now)
                self._note(".".join([name, *map(str, path)]), before, now)
            except (KeyError, IndexError, TypeError):
                log.warning("%s of the schedule %r stays as the checkpoint has it.", ".".join(map(str, path)), name)
        schedule.load_state_dict(state)

    def _warn(self) -> None:
        """Name changed keys that look like settings of an optimizer or schedule, and with which nothing was built."""
        for key, (before, now) in self.config.items():
            leaf = key.rpartition(".")[2]
            if key == "seed":
                log.warning(
                    "seed was changed from %s to %s: evaluation draws by the new one, but the order of the data and the random "
                    "numbers of the training go on from the checkpoint. A new run takes it whole.",
                    before,
                    now,
                )
            elif _TEXT_OF_A_RATE.search(key) and not any(
                _number(now) == value or leaf in what or any(word in leaf for word in _words(what))
                for what, value in self._found
            ):
                log.warning(
                    "%s was changed from %s to %s, but no optimizer, schedule or other part of the state was built with another "
                    "value: it takes effect only where the project's code reads it while training.",
                    key,
                    before,
                    now,
                )


def _settings(optimizer: Any) -> list[dict[str, Any]]:
    """Return copies of the settings of each group: all but the parameters and their names."""
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
    """Give groups of optimizers the settings that :meth:`Built.settings` returned."""
    for optimizer, groups in settings:
        for group, values in zip(optimizer.param_groups, groups, strict=True):
            for key, value in values.items():
                _set(group, key, value)


def _set(group: dict[str, Any], key: str, value: Any) -> None:
    group[key] = value.clone() if isinstance(value, Tensor) else value


def _same(one: Any, other: Any) -> bool:
    return one is other or getattr(one, "param_groups", one) is getattr(other, "param_groups", other)


def _all(schedule: Any) -> Iterator[Any]:
    yield schedule
    for inner in getattr(schedule, "_schedulers", ()):
        yield from _all(inner)


def _position(schedule: Any) -> int:
    """Return how often a schedule was stepped; one that chains others is where the furthest of these is."""
    own = getattr(schedule, "last_epoch", None)
    found = [own] if own is not None else [one.last_epoch for one in _all(schedule) if hasattr(one, "last_epoch")]
    return max(0, *(int(number) for number in found), 0)


def counts_steps(schedule: Any) -> bool:
    """Whether a schedule's rate follows from the number of its steps alone, and not from a metric."""
    if any(isinstance(one, ReduceLROnPlateau) for one in _all(schedule)):
        return False
    needed = (one for one in inspect.signature(schedule.step).parameters.values() if one.default is one.empty)
    positional = [one for one in needed if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return not positional and any(hasattr(one, "last_epoch") for one in _all(schedule))


def _functions(schedule: Any) -> Iterator[list[float | None]]:
    """Yield what the functions of a schedule return at some steps: a state does not hold functions."""
    for one in _all(schedule):
        for function in getattr(one, "lr_lambdas", ()):
            values: list[float | None] = []
            for step in _SAMPLES if inspect.isfunction(function) else ():
                try:
                    values.append(float(function(step)))
                except Exception:  # noqa: BLE001 - it may be defined for the steps of the plan only
                    values.append(None)
            yield values


def _plain(value: Any) -> Any:
    """Return the plain values of a nesting; what is none is left out of mappings, and None in sequences."""
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        single = not isinstance(value, Tensor) or (value.layout is torch.strided and not value.is_meta)
        return value.item() if value.ndim == 0 and single and not np.iscomplexobj(value) else None
    if isinstance(value, Mapping):
        held = {str(key): _plain(inner) for key, inner in value.items()}
        return {key: inner for key, inner in held.items() if inner is not None}
    if isinstance(value, (list, tuple)) and len(value) <= _MOST_ITEMS:
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (bool, int, float, str)) else None


def _plan_of(state: Any) -> Any:
    plan = {key: value for key, value in state.items() if key in _PLAN}
    return {**plan, "_schedulers": [_plan_of(one) for one in state["_schedulers"]]} if "_schedulers" in state else plan


def _differences(then: Any, now: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Yield (path, then, now) for what both have and what differs."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        if path and then.keys() != now.keys() and not any(map(_nested, (*then.values(), *now.values()))):
            yield path, then, now  # counts by step, as milestones are
            return
        for key in now:
            if key in then:
                yield from _differences(then[key], now[key], (*path, key))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, (one, other) in enumerate(zip(then, now, strict=True)):
            yield from _differences(one, other, (*path, index))
    elif not _equal(then, now):
        yield path, then, now


def _nested(value: Any) -> bool:
    return isinstance(value, (Mapping, list))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return type(one) is type(other) and one == other if isinstance(one, bool) else bool(one == other)


def _replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a nesting with one value replaced by one of the same type.

    Raises:
        KeyError, IndexError, TypeError: there is no such place in it.
    """
    if not path:
        if isinstance(tree, Mapping):
            raise TypeError("counts by step")
        if isinstance(tree, Tensor):
            return torch.full_like(tree, value)
        return type(tree)(value) if isinstance(tree, (tuple, list, np.generic)) else value
    if isinstance(tree, Mapping):
        key = next((key for key in tree if str(key) == path[0]), None)
        if key is None:
            raise KeyError(path[0])
        return {**tree, key: _replaced(tree[key], path[1:], value)}
    if not isinstance(tree, (list, tuple)):
        raise TypeError(path[0])
    items = list(tree)
    items[path[0]] = _replaced(items[path[0]], path[1:], value)
    return type(tree)(items)


def _concerned(changed: Mapping[str, tuple[str, str]], key: str, value: Any) -> bool:
    """Whether a changed key of the configuration seems to be what a setting was built with."""
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
    said = [f"{'.'.join(map(str, path))}={value}" for path, value in values if "$functions" not in path]
    return ", ".join(said[:6]) or "another function"
