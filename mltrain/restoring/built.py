"""Records the built values of a training's parts."""

import copy
import json
import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mltrain.restoring.optimizers import is_optimizer
from mltrain.schedules import (
    counts_steps,
    functions_of,
    is_schedule,
    kind_of,
    same_optimizer,
    settings_of,
    steps_in,
)
from mltrain.state import Stateful

_MOST_ITEMS = 1000


def plain(value: Any) -> Any:
    """Return the plain values of a nested state.

    Other values are dropped from mappings, and are ``None`` in sequences.
    """
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        single = not isinstance(value, Tensor) or (value.layout is torch.strided and not value.is_meta)
        return value.item() if value.ndim == 0 and single and not np.iscomplexobj(value) else None
    if isinstance(value, Mapping):
        held = {str(key): plain(inner) for key, inner in value.items()}
        return {key: inner for key, inner in held.items() if inner is not None}
    if isinstance(value, (list, tuple)) and len(value) <= _MOST_ITEMS:
        return [plain(inner) for inner in value]
    return value if isinstance(value, (bool, int, float, str)) else None


def differences(then: Any, now: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Yield (path, then, now) for each differing value of both."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        if path and then.keys() != now.keys() and not any(map(_nested, (*then.values(), *now.values()))):
            yield path, then, now  # a mapping of steps, such as milestones
            return
        for key in now:
            if key in then:
                yield from differences(then[key], now[key], (*path, key))
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for index, (one, other) in enumerate(zip(then, now, strict=True)):
            yield from differences(one, other, (*path, index))
    elif not equal(then, now):
        yield path, then, now


def _nested(value: Any) -> bool:
    return isinstance(value, (Mapping, list))


def equal(one: Any, other: Any) -> bool:
    """Whether plain values are equal, NaN being equal to NaN."""
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and one == other if isinstance(one, bool) else bool(one == other)


def replaced(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return a nested state with one value replaced.

    Raises:
        KeyError, IndexError, TypeError: the path does not exist.
    """
    if not path:
        if isinstance(tree, Mapping):
            raise TypeError("a mapping of steps")
        if isinstance(tree, Tensor):
            return torch.full_like(tree, value)
        return type(tree)(value) if isinstance(tree, (tuple, list, np.generic)) else value
    if isinstance(tree, Mapping):
        key = next((key for key in tree if str(key) == path[0]), None)
        if key is None:
            raise KeyError(path[0])
        return {**tree, key: replaced(tree[key], path[1:], value)}
    if not isinstance(tree, (list, tuple)):
        raise TypeError(path[0])
    items = list(tree)
    items[path[0]] = replaced(items[path[0]], path[1:], value)
    return type(tree)(items)


log = logging.getLogger(__name__)


class Built:
    """The built values of a training's parts, before a restore.

    Args:
        parts: the parts of the step and the task, by name.

    Attributes:
        parts: the parts.
        schedules: the learning rate schedules among them.
        fresh: the states of the schedules as built.
        groups: the settings of each optimizer's groups, by the optimizer's ``id``.
        now: the plain values of each part.
        kinds: the classes of the optimizers and schedules, by name.
        counting: whether each schedule counts steps and its state holds their number.
        record: the same as JSON, for checkpoints. It depends on nothing else, so equal trainings have equal checkpoints.
    """

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self.parts = dict(parts)
        self.schedules = {name: part for name, part in parts.items() if is_schedule(part)}
        self.fresh = {name: copy.deepcopy(dict(part.state_dict())) for name, part in self.schedules.items()}
        self.groups = {
            id(one): settings_of(one)
            for one in [
                *(part for part in parts.values() if is_optimizer(part)),
                *(part.optimizer for part in self.schedules.values()),  # type: ignore[attr-defined]
            ]
        }
        self.now = json.loads(json.dumps({name: self._described(name) for name in parts}))
        self.kinds = {name: type(part).__name__ for name, part in parts.items() if is_optimizer(part)}
        self.kinds |= {name: kind_of(part) for name, part in self.schedules.items()}
        self.counting = {
            name: counts_steps(part) and steps_in(self.now[name]) is not None for name, part in self.schedules.items()
        }
        self.record = json.dumps({"parts": self.now, "kinds": self.kinds, "counting": self.counting})

    def _described(self, name: str) -> Any:
        """Return the plain values of a part as built."""
        part: Any = self.parts[name]
        if is_optimizer(part):
            return plain(settings_of(part))
        if name in self.schedules:
            return {**plain(self.fresh[name]), "$functions": list(functions_of(part))}
        if isinstance(part, nn.Module):
            small = ((key, one) for key, one in part.named_buffers() if not is_lazy(one) and one.numel() <= 4)
            return {key: one.tolist() for key, one in small if not (one.is_quantized or one.is_sparse or one.is_meta)}
        try:
            return plain(part.state_dict())
        except Exception as error:  # noqa: BLE001 - a part may have no state before its first use
            log.debug("The part %r has no state yet: %r", name, error)
            return {}

    def settings(self) -> list[tuple[Any, list[dict[str, Any]]]]:
        """Return optimizers with their groups' current settings.

        Those whose schedule follows a metric are omitted.
        """
        by_metric = [one for one in self.schedules.values() if not counts_steps(one)]
        return [
            (part, settings_of(part))
            for part in self.parts.values()
            if is_optimizer(part) and not any(same_optimizer(part, one.optimizer) for one in by_metric)  # type: ignore[attr-defined]
        ]
