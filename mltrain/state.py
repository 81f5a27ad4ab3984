"""What a training is at a step boundary: a named bag of stateful parts, copied out and put back as one.

The idea of the protocol is that of ``torch.distributed.checkpoint.stateful``: whatever has ``state_dict`` and
``load_state_dict`` joins by name.
"""

import collections
import copy
import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mltrain.errors import MltrainError, StateMismatch, UsageError

log = logging.getLogger(__name__)


@runtime_checkable
class Stateful(Protocol):
    """Anything that can give its state away and take it back."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state: tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take over a state that :meth:`state_dict` gave."""
        ...


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: optimizer steps done.
        epoch: epochs done.
        batch: batches done in the epoch under way.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the three counters."""
        return {"step": self.step, "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the three counters over."""
        self.step, self.epoch, self.batch = state_dict["step"], state_dict["epoch"], state_dict["batch"]


@dataclass
class TrainState:
    """All that a training has to remember: its parts by name.

    Attributes:
        parts: name to stateful part; the names become part of every checkpoint.
    """

    parts: dict[str, Stateful] = field(default_factory=dict)

    def add(self, name: str, part: Stateful) -> None:
        """Let a part join.

        Raises:
            UsageError: the name is taken, or the object has no ``state_dict`` and ``load_state_dict``.
        """
        if name in self.parts:
            raise UsageError(f"Two parts of the state are called {name!r}; every part needs a name of its own.")
        if not isinstance(part, Stateful):
            raise UsageError(
                f"The part {name!r} is a {type(part).__name__} without state_dict() and load_state_dict(); "
                "only what has both can be resumed."
            )
        self.parts[name] = part

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every part under its name: the live tensors, not copies.

        The state of an optimizer says of each of its groups which parameters it holds, with their shapes, under
        ``parameters``; torch takes no notice of it.
        """
        names = _names(self.parts)
        state = {name: dict(part.state_dict()) for name, part in self.parts.items()}
        for name, part in self.parts.items():
            if is_optimizer(part) and "param_groups" in state[name]:
                state[name]["parameters"] = [
                    [[key, shape] for key, _, shape in group] for group in _described(part, names)
                ]
        return state

    def restore(
        self, parts: Mapping[str, Any], *, optional: Collection[str] = (), ignore_unknown: bool = False
    ) -> dict[str, list[int]]:
        """Put the state of every part back, or leave all of them as they are.

        Modules come first, because optimizers need the parameters that lazy modules make of their weights. Modules whose
        weights do not fit are refused before any part is touched. When a part refuses its state, or anything else is
        raised while one takes it over (``KeyboardInterrupt`` too), it and those before it are put back as they were, by
        a copy on the host that was taken of each before; then the error is raised. A part that is neither a module nor
        an optimizer is put back by its own ``load_state_dict``. A copy of the modules is the memory that this costs.

        Args:
            parts: name to state.
            optional: parts that may be missing: they stay as they are, which is logged.
            ignore_unknown: whether states that belong to no part are left out, which is logged.

        Returns:
            for each optimizer by name: which group of the checkpoint each of its groups continues.

        Raises:
            StateMismatch: a part is missing or unknown, a module's tensors have other names or shapes, an optimizer holds
                other parameters, or a part does not understand its state.
        """
        missing, unexpected = self.parts.keys() - parts.keys(), parts.keys() - self.parts.keys()
        if missing & set(optional):
            log.warning("The checkpoint lacks %s; these begin anew.", ", ".join(sorted(missing & set(optional))))
        if unexpected and ignore_unknown:
            log.warning("Of the checkpoint %s is not used.", ", ".join(sorted(unexpected)))
        missing, unexpected = missing - set(optional), set() if ignore_unknown else unexpected
        if missing or unexpected:
            raise StateMismatch(
                "the parts of this training",
                missing=sorted(missing),
                unexpected=sorted(unexpected),
                advice="Give the training the same parts as the one that wrote the checkpoint.",
            )
        present = {name: part for name, part in self.parts.items() if name in parts}
        modules = {name: part for name, part in present.items() if isinstance(part, nn.Module)}
        adapted = {**parts, **{name: fitted(parts[name], part, name) for name, part in modules.items()}}
        sources: dict[str, list[int]] = {}
        kept: list[tuple[str, _Kept]] = []
        try:
            for name in [*modules, *(name for name in present if name not in modules)]:
                part = present[name]
                if is_optimizer(part):
                    adapted[name], sources[name] = _by_name(adapted[name], part, name, _names(self.parts))
                elif hasattr(part, "optimizer"):
                    adapted[name] = self._regrouped(adapted[name], part, parts, sources)
                kept.append((name, _kept(part)))
                part.load_state_dict(adapted[name])
        except BaseException as error:
            _put_back(kept)
            if not isinstance(error, Exception) or isinstance(error, (MltrainError, OSError, MemoryError)):
                raise
            raise _refused(name, present[name], error) from error
        return sources

    def _regrouped(self, state: Any, schedule: Any, parts: Mapping[str, Any], sources: Mapping[str, list[int]]) -> Any:
        """Return the state of a schedule with its values a group in the order that its optimizer's groups have now."""
        for name, order in sources.items():
            if self.parts[name] is schedule.optimizer and order != list(range(len(parts[name]["param_groups"]))):
                return in_order_of_groups(state, order, len(parts[name]["param_groups"]))
        return state


def in_order_of_groups(state: Any, order: Sequence[int], count: int) -> Any:
    """Return the state of a schedule of ``count`` groups with its values a group in another order."""
    if not isinstance(state, Mapping):
        return state
    return {
        key: [value[index] for index in order]
        if key in _A_GROUP and isinstance(value, (list, tuple)) and len(value) == count
        else [in_order_of_groups(inner, order, count) for inner in value]
        if key == "_schedulers"
        else value
        for key, value in state.items()
    }


_A_GROUP = ("base_lrs", "_last_lr", "min_lrs", "max_lrs", "base_momentums", "max_momentums", "lr_lambdas", "eta_mins")
"""What torch's schedules remember for each group of an optimizer."""


def is_optimizer(part: Any) -> bool:
    """Whether a part is an optimizer of torch, or a wrapper with groups of parameters as one has."""
    groups = None if isinstance(part, nn.Module) else getattr(part, "param_groups", None)
    return isinstance(groups, list) and all(isinstance(group, Mapping) and "params" in group for group in groups)


_WRAPPERS = ("_orig_mod", "module")


def _bare(key: str, wrapped: bool) -> str:
    """Return a name without what ``torch.compile``, and where ``wrapped`` also DistributedDataParallel, put before it."""
    steps = [step for step in key.split(".") if step != _WRAPPERS[0]]
    return ".".join(steps[1:] if wrapped and steps[0] == _WRAPPERS[1] else steps)


def _wrapped(keys: Iterable[str]) -> bool:
    """Whether all names begin as DistributedDataParallel spells them."""
    bare = [_bare(key, False) for key in keys]
    return bool(bare) and all(key.startswith(f"{_WRAPPERS[1]}.") for key in bare)


def _names(parts: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of the parameters of all modules among the parts, by identity: ``part.module.parameter``."""
    names: dict[int, str] = {}
    for part, module in _modules(parts):
        found = list(module.named_parameters())  # a tied parameter has its first name
        wrapped = _wrapped(name for name, _ in found)
        for name, parameter in found:
            names.setdefault(id(parameter), f"{part}.{_bare(name, wrapped)}")
    return names


def _modules(parts: Mapping[str, Any]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules among the parts, then those that other parts hold as attributes."""
    yield from ((name, part) for name, part in parts.items() if isinstance(part, nn.Module))
    for name, part in parts.items():
        if not isinstance(part, nn.Module):
            held = getattr(part, "__dict__", {})
            yield from ((f"{name}.{key}", one) for key, one in list(held.items()) if isinstance(one, nn.Module))


def _described(optimizer: Any, names: Mapping[int, str]) -> list[list[tuple[str | None, Any, list[int] | None]]]:
    """Return (name, parameter, shape) of the parameters of each group.

    A parameter of no known module has the name that its group was given, or none. A lazy one has no shape yet.
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
"""Options that versions of torch added to groups; an optimizer sets the ones that a state lacks itself."""


def _by_name(state: Any, optimizer: Any, name: str, names: Mapping[int, str]) -> tuple[Any, list[int]]:
    """Return the state of an optimizer in the order of its parameters now, and the group that each group continues.

    Raises:
        StateMismatch: it is of other parameters or another kind of optimizer, or groups whose values differ became one.
    """
    what = f"the optimizer {name!r}"
    if not isinstance(state, Mapping) or "param_groups" not in state or "state" not in state:
        if isinstance(optimizer, torch.optim.Optimizer):
            raise StateMismatch(f"{what}: it has no groups of parameters")
        return state, list(range(len(optimizer.param_groups)))  # a wrapper with a state of its own
    saved, own = state["param_groups"], _described(optimizer, names)
    lacking = {
        key
        for key in getattr(optimizer, "defaults", {})
        if key not in _SWITCHES and any(key not in group for group in saved)
    }
    if lacking:
        raise StateMismatch(
            f"{what}, which is a {type(optimizer).__name__}: the state of another kind of optimizer lacks its settings",
            missing=sorted(lacking),
        )
    recorded = state.get("parameters")
    if recorded is None:  # of a release that kept no names
        sizes = [len(group["params"]) for group in saved]
        if sizes != [len(group) for group in own]:
            raise StateMismatch(f"{what}: its groups had {sizes} parameters and have {[len(group) for group in own]}")
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
    log.warning("The parameters of %s are in another order or in other groups; its state follows them by name.", what)
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
    """Return where each parameter is, by its name; one without a name has that of its place."""
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
    """Give parameters their present names where each is at the place, and of the shape, of one whose name is gone.

    The module has taken the weights by then, so it renames them itself when it loads.
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
        log.warning(
            "Parameters of %s have other names: %s.", what, ", ".join(f"{k} is {to}" for k, to in known.items())
        )
    return {str(gone.get(key, key)): place for key, place in before.items()}


def _shape(
    state: Mapping[str, Any], saved: Sequence[Mapping[str, Any]], place: _Entry, otherwise: list[int]
) -> list[int]:
    """Return the shape of a saved parameter: as recorded, or as its state tells."""
    if place[2] is not None:
        return place[2]
    own = state["state"].get(saved[place[0]]["params"][place[1]], {})
    shapes = [
        list(value.shape)
        for key, value in (own.items() if isinstance(own, Mapping) else ())
        if key in _LIKE_THE_PARAMETER and isinstance(value, torch.Tensor) and value.dim()
    ]
    return next((shape for shape in shapes if shape != otherwise), otherwise)


def _sources(
    before: Mapping[str, _Entry],
    now: Mapping[str, _Entry],
    saved: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    what: str,
) -> list[int]:
    """Return which saved group each group takes its settings from: the one of its parameters."""
    order = []
    for number, group in enumerate(groups):
        found = sorted({before[key][0] for key, place in now.items() if place[0] == number})
        named = [index for index in found if "name" in group and saved[index].get("name") == group["name"]]
        found = named or found or [min(number, len(saved) - 1)]
        if any(not _same_settings(saved[index], saved[found[0]]) for index in found[1:]):
            raise StateMismatch(
                f"{what}: its group {number} has the parameters of groups {found} of the checkpoint, whose settings differ",
                advice="Give it the groups of before, or give groups a name that says which settings go on.",
            )
        order.append(found[0])
    return order


def _same_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    ignored = {"params", "param_names", "name"}
    return {key: value for key, value in one.items() if key not in ignored} == {
        key: value for key, value in other.items() if key not in ignored
    }


def is_lazy(tensor: Any) -> bool:
    """Whether a parameter or buffer has no shape before its module's first forward."""
    return nn.parameter.is_lazy(tensor)


class _Kept(Protocol):
    def put_back(self) -> None:
        """Make a part what it was."""
        ...


class _KeptModule:
    """What a module is: its tensors in copies on the host, and all that its modules remember."""

    def __init__(self, module: nn.Module) -> None:
        self._modules = [(one, dict(vars(one))) for one in module.modules()]
        self._members = [
            (members, dict(members))
            for _, attributes in self._modules
            for members in (attributes["_parameters"], attributes["_buffers"], attributes["_modules"])
        ]
        tensors = {id(one): one for members, _ in self._members for one in members.values() if isinstance(one, Tensor)}
        self._lazy = [(one, type(one), one.data) for one in tensors.values() if is_lazy(one)]
        self._tensors = [(one, _on_host(one)) for one in tensors.values() if not is_lazy(one)]
        self._extra = [
            (one, copy.deepcopy(one.get_extra_state()))
            for one, _ in self._modules
            if type(one).set_extra_state is not nn.Module.set_extra_state
            and type(one).get_extra_state is not nn.Module.get_extra_state
        ]

    def put_back(self) -> None:
        for one, attributes in self._modules:
            vars(one).clear()
            vars(one).update(attributes)
        for members, before in self._members:
            members.clear()
            members.update(before)
        with torch.no_grad():
            for tensor, data in self._tensors:
                if tensor.shape != data.shape:
                    tensor.data = data.to(tensor.device)
                else:
                    tensor.copy_(data)
            for tensor, kind, data in self._lazy:
                tensor.data, tensor.__class__ = data, kind
        for one, extra in self._extra:
            one.set_extra_state(extra)


class _KeptOptimizer:
    """What an optimizer is. Loading gives it other tensors and groups, so those that it has are kept as they are."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._state = [(parameter, dict(own)) for parameter, own in optimizer.state.items()]
        self._groups = [dict(group) for group in optimizer.param_groups]

    def put_back(self) -> None:
        state = collections.defaultdict(dict, self._state)
        self._optimizer.__setstate__({"state": state, "param_groups": self._groups})


class _KeptAttributes:
    """What a DataLoader with a state is. To tell that state it would start its workers, and loading only sets attributes."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self._attributes = dict(vars(part))

    def put_back(self) -> None:
        vars(self._part).clear()
        vars(self._part).update(self._attributes)


class _KeptState:
    """What any other part is: a copy of its state, which it takes back itself."""

    def __init__(self, part: Stateful) -> None:
        self._part = part
        self._state = _copied(dict(part.state_dict()))

    def put_back(self) -> None:
        self._part.load_state_dict(self._state)


def _kept(part: Stateful) -> _Kept:
    if isinstance(part, nn.Module):
        return _KeptModule(part)
    if isinstance(part, torch.optim.Optimizer) and type(part).load_state_dict is torch.optim.Optimizer.load_state_dict:
        return _KeptOptimizer(part)
    return _KeptAttributes(part) if isinstance(part, torch.utils.data.DataLoader) else _KeptState(part)


def _put_back(kept: Sequence[tuple[str, _Kept]]) -> None:
    for name, one in reversed(kept):
        try:
            one.put_back()
        except Exception as error:  # noqa: BLE001 - the others are put back nevertheless, and the first error is raised
            log.error("The part %r could not be put back as it was: %r", name, error)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copied(tree: Any) -> Any:
    """Return a copy of a nesting that shares no memory with it; tensors on the host."""
    if isinstance(tree, Tensor):
        return _on_host(tree)
    if type(tree) in (dict, collections.OrderedDict):
        return type(tree)((key, _copied(value)) for key, value in tree.items())
    if type(tree) in (list, tuple):
        return type(tree)(_copied(value) for value in tree)
    return copy.deepcopy(tree)


def fitted(weights: Mapping[str, Any], module: nn.Module, name: str = "model") -> dict[str, Any]:
    """Return ``weights`` under the names that ``module`` uses, or refuse; the module stays as it is.

    ``torch.compile`` and DistributedDataParallel wrap a module and prefix its names; weights go either way. Where names or
    shapes differ, the module's own ``load_state_dict`` decides: lazy modules, observers that grow, and modules that
    rename what they load take them.

    Raises:
        StateMismatch: with the missing, unexpected and reshaped names.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise StateMismatch(f"the module {name!r}: it holds a {type(weights).__name__} and no tensors by name")
    own = module.state_dict()
    given = _spelled(weights, module, own)
    if given.keys() == own.keys() and all(_alike(given[key], own[key]) for key in own):
        return given
    kept = _KeptModule(module)
    try:
        module.load_state_dict(given)
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise _refused(name, module, error) from error
    finally:
        kept.put_back()
    return given


def _alike(given: Any, own: Any) -> bool:
    if not isinstance(own, Tensor):
        return not isinstance(given, Tensor)
    return isinstance(given, Tensor) and not (is_lazy(own) or is_lazy(given)) and given.shape == own.shape


def _spelled(weights: Mapping[str, Any], module: nn.Module, own: Iterable[str]) -> dict[str, Any]:
    """Return weights under the names of a module; those that it has not come below the deepest module that it has."""
    theirs, ours = _wrapped(weights), _wrapped(own)
    names = {_bare(key, ours): key for key in own}
    paths = {_bare(f"{path}.", ours).removesuffix("."): path for path, _ in module.named_modules() if path}
    spelled = {}
    for key, value in weights.items():
        bare = _bare(key, theirs)
        steps = bare.split(".")
        for cut in range(len(steps) - 1, -1, -1) if bare not in names else ():
            path = paths.get(".".join(steps[:cut]))
            if path is not None:
                names[bare] = ".".join([path, *steps[cut:]])
                break
        spelled[names.get(bare, bare)] = value
    return spelled if len(spelled) == len(weights) else dict(weights)


_SHAPES = re.compile(r"size mismatch for (\S+): .*?torch\.Size\(\[([\d, ]*)\]\).*?torch\.Size\(\[([\d, ]*)\]\)")
_LISTS = (
    re.compile(r"^\s*Missing key\(s\) in state_dict: (.*?)\.?\s*$", re.MULTILINE),
    re.compile(r"^\s*Unexpected key\(s\) in state_dict: (.*?)\.?\s*$", re.MULTILINE),
)


def _refused(name: str, part: Any, error: Exception) -> StateMismatch:
    """Translate the error of a part that does not take its state; torch's of a module into lists of names."""
    if not isinstance(part, nn.Module):
        return StateMismatch(f"the part {name!r}: {type(error).__name__}: {error}")
    text = str(error)
    missing, unexpected = (
        sorted(_bare(key, False) for line in pattern.findall(text) for key in re.findall(r'"([^"]*)"', line))
        for pattern in _LISTS
    )
    reshaped = [
        f"{_bare(key, False)} {_dimensions(given)} here {_dimensions(own)}" for key, given, own in _SHAPES.findall(text)
    ]
    if not (reshaped or missing or unexpected):
        return StateMismatch(f"the module {name!r}: {type(error).__name__}: {error}")
    return StateMismatch(f"the module {name!r}", missing=missing, unexpected=unexpected, reshaped=sorted(reshaped))


def _dimensions(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def versions(parts: Iterable[Any]) -> list[tuple[int, int]]:
    """Return where in memory the parameters of modules are, and how often torch has changed each in place."""
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return [
        (tensor.data_ptr(), tensor._version)
        for module in modules
        for tensor in module.parameters()
        if not is_lazy(tensor)
    ]
