"""A training's state at a step boundary: parts by name.

The protocol follows ``torch.distributed.checkpoint.stateful``: any object with ``state_dict`` and
``load_state_dict`` can be a part.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.nn.parameter import is_lazy

from mltrain.errors import MltrainError, StateMismatch, UsageError
from mltrain.restoring.modules import LAZY, fitted, names_of_parameters, refused
from mltrain.restoring.optimizers import by_name, described, in_order_of_groups, is_optimizer
from mltrain.restoring.undo import Undo, undo_all, undo_of

log = logging.getLogger(__name__)


@runtime_checkable
class Stateful(Protocol):
    """An object that can save and restore its state."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state: tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Restore a state that :meth:`state_dict` returned."""
        ...


@dataclass
class Progress:
    """The position of a training.

    Attributes:
        step: optimizer steps done.
        epoch: epochs done.
        batch: batches done in the current epoch.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the three counters."""
        return {"step": self.step, "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore the three counters."""
        self.step, self.epoch, self.batch = state_dict["step"], state_dict["epoch"], state_dict["batch"]


@dataclass
class TrainState:
    """The whole state of a training: its parts by name.

    Attributes:
        parts: name to stateful part; the names become part of every checkpoint.
    """

    parts: dict[str, Stateful] = field(default_factory=dict)

    def add(self, name: str, part: Stateful) -> None:
        """Add a part.

        Raises:
            UsageError: the name is taken, or the object has no ``state_dict`` and ``load_state_dict``.
        """
        if name in self.parts:
            raise UsageError(f"Two parts of the state are called {name!r}. Expected a different name for each part.")
        if not isinstance(part, Stateful):
            raise UsageError(
                f"The part {name!r} is a {type(part).__name__}. Expected an object with state_dict() and load_state_dict(), "
                "because only such an object can be resumed."
            )
        self.parts[name] = part

    def state_dict(self) -> dict[str, Any]:
        """Return each part's state by name, with live tensors.

        Parameters of a lazy module that no forward has used are recorded by name, without a value.
        The state of an optimizer also lists the names and shapes of the parameters of each group, under
        ``parameters``; torch ignores that entry.
        """
        names = names_of_parameters(self.parts)
        state = {name: dict(part.state_dict()) for name, part in self.parts.items()}
        for name, part in self.parts.items():
            if isinstance(part, nn.Module):
                state[name] = {key: LAZY if is_lazy(value) else value for key, value in state[name].items()}
        for name, part in self.parts.items():
            if is_optimizer(part) and "param_groups" in state[name]:
                state[name]["parameters"] = [
                    [[key, shape] for key, _, shape in group] for group in described(part, names)
                ]
        return state

    def restore(
        self, parts: Mapping[str, Any], *, optional: Collection[str] = (), ignore_unknown: bool = False
    ) -> dict[str, list[int]]:
        """Restore every part's state, or leave all parts unchanged.

        Modules come first, because optimizers need the parameters that lazy modules create from their weights. Modules whose
        weights do not fit are refused before any part changes. If a part refuses its state, or anything else is
        raised while it loads (``KeyboardInterrupt`` too), this method restores it and all earlier parts from
        a copy on the host, then raises the error. It restores a part that is neither a module nor
        an optimizer with the part's own ``load_state_dict``. The copy of the modules costs memory.

        Args:
            parts: name to state.
            optional: parts that may be missing; they stay unchanged, with a warning.
            ignore_unknown: whether to ignore states that belong to no part, with a warning.

        Returns:
            for each optimizer by name: the group of the checkpoint that each of its groups continues.

        Raises:
            StateMismatch: a part is missing or unknown, a module's tensors have other names or shapes, an optimizer holds
                other parameters, or a part cannot load its state.
        """
        missing, unexpected = self.parts.keys() - parts.keys(), parts.keys() - self.parts.keys()
        if missing & set(optional):
            log.warning("The checkpoint lacks %s; these begin anew.", ", ".join(sorted(missing & set(optional))))
        if unexpected and ignore_unknown:
            log.warning("Of the checkpoint, %s is ignored: no part has this name.", ", ".join(sorted(unexpected)))
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
        undos: list[tuple[str, Undo]] = []
        try:
            for name in [*modules, *(name for name in present if name not in modules)]:
                part = present[name]
                if is_optimizer(part):
                    adapted[name], sources[name] = by_name(adapted[name], part, name, names_of_parameters(self.parts))
                elif hasattr(part, "optimizer"):
                    adapted[name] = self._regrouped(adapted[name], part, parts, sources)
                undos.append((name, undo_of(part)))
                part.load_state_dict(adapted[name])
        except BaseException as error:
            undo_all(undos)
            if not isinstance(error, Exception) or isinstance(error, (MltrainError, OSError, MemoryError)):
                raise
            raise refused(name, present[name], error) from error
        return sources

    def _regrouped(self, state: Any, schedule: Any, parts: Mapping[str, Any], sources: Mapping[str, list[int]]) -> Any:
        """Return a schedule's state in the current order of groups."""
        for name, order in sources.items():
            if self.parts[name] is schedule.optimizer and order != list(range(len(parts[name]["param_groups"]))):
                return in_order_of_groups(state, order, len(parts[name]["param_groups"]))
        return state
