"""Undoes the restore of a part."""

import collections
import copy
import logging
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

log = logging.getLogger(__name__)


class Undo(Protocol):
    """Brings back the earlier state of a part."""

    def undo(self) -> None:
        """Bring the state back."""
        ...


class UndoModule:
    """Undoes changes of a module, from copies on the host."""

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
        """Bring back attributes, members, tensors and extra state."""
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
    """Undoes loading an optimizer, which replaces tensors and groups."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._state = [(parameter, dict(own)) for parameter, own in optimizer.state.items()]
        self._groups = [dict(group) for group in optimizer.param_groups]

    def undo(self) -> None:
        state = collections.defaultdict(dict, self._state)
        self._optimizer.__setstate__({"state": state, "param_groups": self._groups})


class _UndoAttributes:
    """Undoes loading a DataLoader.

    Its ``state_dict`` would start workers, so attributes are saved.
    """

    def __init__(self, part: Any) -> None:
        self._part = part
        self._attributes = dict(vars(part))

    def undo(self) -> None:
        vars(self._part).clear()
        vars(self._part).update(self._attributes)


class _UndoState:
    """Undoes changes of any other part."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self._state = _copied(dict(part.state_dict()))

    def undo(self) -> None:
        self._part.load_state_dict(self._state)


def undo_of(part: Any) -> Undo:
    """Return an undo for later changes of a part.

    For a module, its tensors are copied to the host.
    """
    if isinstance(part, nn.Module):
        return UndoModule(part)
    if isinstance(part, torch.optim.Optimizer) and type(part).load_state_dict is torch.optim.Optimizer.load_state_dict:
        return _UndoOptimizer(part)
    return _UndoAttributes(part) if isinstance(part, torch.utils.data.DataLoader) else _UndoState(part)


def undo_all(undos: Sequence[tuple[str, Undo]]) -> None:
    """Undo several changes, last first, despite errors."""
    for name, one in reversed(undos):
        try:
            one.undo()
        except Exception as error:  # noqa: BLE001 - the caller raises the first error
            log.error("The part %r could not be brought back: %r", name, error)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copied(tree: Any) -> Any:
    """Return a deep copy of a state on the host."""
    if isinstance(tree, Tensor):
        return _on_host(tree)
    if type(tree) in (dict, collections.OrderedDict):
        return type(tree)((key, _copied(value)) for key, value in tree.items())
    if type(tree) in (list, tuple):
        return type(tree)(_copied(value) for value in tree)
    return copy.deepcopy(tree)
