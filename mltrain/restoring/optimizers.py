"""Restores the state of an optimizer by parameter names."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mltrain.errors import StateMismatch

log = logging.getLogger(__name__)


def in_order_of_groups(state: Any, order: Sequence[int], count: int) -> Any:
    """Return a schedule's state with its groups reordered."""
    if not isinstance(state, Mapping):
        return state
    return {
        key: [value[index] for index in order]
        if key in _PER_GROUP and isinstance(value, (list, tuple)) and len(value) == count
        else [in_order_of_groups(inner, order, count) for inner in value]
        if key == "_schedulers"
        else value
        for key, value in state.items()
    }


_PER_GROUP = ("base_lrs", "_last_lr", "min_lrs", "max_lrs", "base_momentums", "max_momentums", "lr_lambdas", "eta_mins")
"""State of torch's schedules that has one value per group of the optimizer."""


def is_optimizer(part: Any) -> bool:
    """Whether a part has parameter groups like a torch optimizer."""
    groups = None if isinstance(part, nn.Module) else getattr(part, "param_groups", None)
    return isinstance(groups, list) and all(isinstance(group, Mapping) and "params" in group for group in groups)


def described(optimizer: Any, names: Mapping[int, str]) -> list[list[tuple[str | None, Any, list[int] | None]]]:
    """Return (name, parameter, shape) of the parameters of each group.

    A parameter outside the known modules has the name in its group, if any, otherwise ``None``. A lazy one has no shape yet.
    """
    groups = []
    for group in optimizer.param_groups:
        given = group.get("param_names") or [None] * len(group["params"])
        groups.append(
            [
                (names.get(id(one), given[index]), one, None if is_lazy(one) else list(one.shape))
                for index, one in enumerate(group["params"])
            ]
        )
    return groups


_LIKE_THE_PARAMETER = frozenset(
    {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "acc_delta"}
    | {"sum", "ax", "prev", "step_size"}
)
"""State of torch's optimizers that has the shape of its parameter."""


_SWITCHES = frozenset({"foreach", "fused", "capturable", "maximize", "differentiable", "decoupled_weight_decay"})
"""Group options that newer versions of torch added; an optimizer fills them in if a state lacks them."""


def by_name(state: Any, optimizer: Any, name: str, names: Mapping[int, str]) -> tuple[Any, list[int]]:
    """Return a state in the optimizer's current parameter order.

    Also returns the saved group that each group continues.

    Raises:
        StateMismatch: the state is from other parameters or another kind of optimizer, or merges groups with different
            settings.
    """
    what = f"the optimizer {name!r}"
    if not isinstance(state, Mapping) or "param_groups" not in state or "state" not in state:
        if isinstance(optimizer, torch.optim.Optimizer):
            raise StateMismatch(f"{what}: its state has no groups of parameters")
        return state, list(range(len(optimizer.param_groups)))  # a wrapper with its own kind of state
    saved, own = state["param_groups"], described(optimizer, names)
    lacking = {
        key
        for key in getattr(optimizer, "defaults", {})
        if key not in _SWITCHES and any(key not in group for group in saved)
    }
    if lacking:
        raise StateMismatch(
            f"{what}, a {type(optimizer).__name__}: the state is from another kind of optimizer",
            missing=sorted(lacking),
        )
    recorded = state.get("parameters")
    if recorded is None:  # saved by a release that recorded no names
        sizes = [len(group["params"]) for group in saved]
        if sizes != [len(group) for group in own]:
            raise StateMismatch(
                f"{what}: its groups had {sizes} parameters and now have {[len(group) for group in own]}"
            )
        recorded = [[[None, None] for _ in group["params"]] for group in saved]
    before = _entries([[(key, None, shape) for key, shape in group] for group in recorded])
    now = _entries(own)
    if len(before) == len(now):
        before = _renamed(before, now, what)
    if before.keys() != now.keys():
        raise StateMismatch(
            f"{what}", missing=sorted(now.keys() - before.keys()), unexpected=sorted(before.keys() - now.keys())
        )
    reshaped = [
        f"{key} {tuple(was)} here {tuple(shape)}"
        for key, (group, index, shape) in now.items()
        if shape is not None and (was := _shape(state, saved, before[key], shape)) != shape
    ]
    if reshaped:
        raise StateMismatch(what, reshaped=sorted(reshaped))
    order = _sources(before, now, saved, optimizer.param_groups, what)
    if [place[:2] for place in before.values()] == [now[key][:2] for key in before] and len(saved) == len(own):
        return state, order  # nothing moved
    log.warning("The parameters of %s are in another order or in other groups. Its state is assigned by name.", what)
    groups: list[dict[str, Any]] = []
    for number, group in enumerate(optimizer.param_groups):
        groups.append({**saved[order[number]], "params": [None] * len(group["params"])})
        groups[-1].pop("param_names", None)
    for key, (number, index, _) in now.items():
        source, position, _ = before[key]
        groups[number]["params"][index] = saved[source]["params"][position]
    return {**state, "param_groups": groups}, order


_Entry = tuple[int, int, list[int] | None]


def _entries(groups: Sequence[Sequence[tuple[str | None, Any, Any]]]) -> dict[str, _Entry]:
    """Return each parameter's group, index and shape.

    The key is its name, or its position if it has none.
    """
    entries: dict[str, _Entry] = {}
    for number, group in enumerate(groups):
        for index, (name, _, shape) in enumerate(group):
            place = f"parameter {index} of group {number}"
            entries[name if name is not None and name not in entries else place] = (
                number,
                index,
                list(shape) if shape is not None else None,
            )
    return entries


def _renamed(before: dict[str, _Entry], now: dict[str, _Entry], what: str) -> dict[str, _Entry]:
    """Rename saved parameters if each has one successor.

    A successor has the position and shape of a parameter whose name is gone.

    This is safe because the module has already accepted the weights, so it renames parameters when it loads.
    """
    places = {place[:2]: key for key, place in now.items()}
    gone = {key: places.get(place[:2]) for key, place in before.items() if key not in now}
    new = {key for key in now if key not in before}
    alike = all(
        to in new and (before[key][2] is None or now[to][2] is None or before[key][2] == now[to][2])
        for key, to in gone.items()
        if to is not None
    )
    if not gone or not alike or set(gone.values()) != new:
        return before
    known = {key: to for key, to in gone.items() if not key.startswith("parameter ")}
    if known:
        log.warning("Parameters of %s were renamed: %s.", what, ", ".join(f"{k} to {to}" for k, to in known.items()))
    return {str(gone.get(key, key)): place for key, place in before.items()}


def _shape(
    state: Mapping[str, Any], saved: Sequence[Mapping[str, Any]], place: _Entry, default: list[int]
) -> list[int]:
    """Return a saved parameter's shape, inferred if not recorded."""
    if place[2] is not None:
        return place[2]
    own = state["state"].get(saved[place[0]]["params"][place[1]], {})
    shapes = [
        list(value.shape)
        for key, value in (own.items() if isinstance(own, Mapping) else ())
        if key in _LIKE_THE_PARAMETER and isinstance(value, torch.Tensor) and value.dim()
    ]
    return next((shape for shape in shapes if shape != default), default)


def _sources(
    before: Mapping[str, _Entry],
    now: Mapping[str, _Entry],
    saved: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    what: str,
) -> list[int]:
    """Return the saved group whose settings each group continues."""
    order = []
    for number, group in enumerate(groups):
        found = sorted({before[key][0] for key, place in now.items() if place[0] == number})
        named = [index for index in found if "name" in group and saved[index].get("name") == group["name"]]
        found = named or found or [min(number, len(saved) - 1)]
        if any(not _same_settings(saved[index], saved[found[0]]) for index in found[1:]):
            raise StateMismatch(
                f"{what}: its group {number} merges groups {found} of the checkpoint, whose settings differ",
                advice="Use the checkpoint's groups, or name the groups to choose whose settings continue.",
            )
        order.append(found[0])
    return order


def _same_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ignored = {"params", "param_names", "name"}
    return {key: value for key, value in one.items() if key not in ignored} == {
        key: value for key, value in other.items() if key not in ignored
    }
