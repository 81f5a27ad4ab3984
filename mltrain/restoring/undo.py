"""Undoing a restore: what parts were before, and how they become that again."""

import collections
import copy
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


def is_lazy(tensor: Any) -> bool:
    """Whether a parameter or buffer has no shape before its module's first forward."""
    return nn.parameter.is_lazy(tensor)


class Undo(Protocol):
    """Makes a part what it was."""

    def undo(self) -> None:
        """Make it what it was."""
        ...


class UndoModule:
    """Undoes a change of a module: keeps copies of its tensors on the host, and all attributes of its modules."""

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

    def undo(self) -> None:
        """Put attributes, members, tensors and extra state back."""
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


class _UndoOptimizer:
    """Undoes the loading of an optimizer, which replaces tensors and groups: keeps those that it has, without a copy."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._state = [(parameter, dict(own)) for parameter, own in optimizer.state.items()]
        self._groups = [dict(group) for group in optimizer.param_groups]

    def undo(self) -> None:
        state = collections.defaultdict(dict, self._state)
        self._optimizer.__setstate__({"state": state, "param_groups": self._groups})


class _UndoAttributes:
    """Undoes the loading of a DataLoader, which sets attributes; its ``state_dict`` would start its workers."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self._attributes = dict(vars(part))

    def undo(self) -> None:
        vars(self._part).clear()
        vars(self._part).update(self._attributes)


class _UndoState:
    """Undoes a change of any other part: keeps a copy of its state, and loads it."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self._state = _copied(dict(part.state_dict()))

    def undo(self) -> None:
        self._part.load_state_dict(self._state)


def undo_of(part: Any) -> Undo:
    """Return what undoes a change of a part from now on; it costs a copy of a module's tensors on the host."""
    if isinstance(part, nn.Module):
        return UndoModule(part)
    if isinstance(part, torch.optim.Optimizer) and type(part).load_state_dict is torch.optim.Optimizer.load_state_dict:
        return _UndoOptimizer(part)
    return _UndoAttributes(part) if isinstance(part, torch.utils.data.DataLoader) else _UndoState(part)


def undo_all(undos: Sequence[tuple[str, Undo]]) -> None:
    """Undo the changes of several parts, the last first; an error is logged, and the others are undone nevertheless."""
    for name, one in reversed(undos):
        try:
            one.undo()
        except Exception as error:  # noqa: BLE001 - the first error is raised
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
