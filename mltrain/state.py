"""The state of a training at a step boundary: stateful parts by name, saved and restored together.

The idea of the protocol is that of ``torch.distributed.checkpoint.stateful``: whatever has ``state_dict`` and
``load_state_dict`` joins by name.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from mltrain.errors import MltrainError, StateMismatch, UsageError
from mltrain.restoring.modules import fitted, names_of_parameters, refused
from mltrain.restoring.optimizers import by_name, described, in_order_of_groups, is_optimizer
from mltrain.restoring.undo import Undo, undo_all, undo_of

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
        """Add a part.

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
        names = names_of_parameters(self.parts)
        state = {name: dict(part.state_dict()) for name, part in self.parts.items()}
        for name, part in self.parts.items():
            if is_optimizer(part) and "param_groups" in state[name]:
                state[name]["parameters"] = [
                    [[key, shape] for key, _, shape in group] for group in described(part, names)
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
        """Return the state of a schedule with its values a group in the order that its optimizer's groups have now."""
        for name, order in sources.items():
            if self.parts[name] is schedule.optimizer and order != list(range(len(parts[name]["param_groups"]))):
                return in_order_of_groups(state, order, len(parts[name]["param_groups"]))
        return state
