"""Copies the training state to host memory.

Copies are taken at a step boundary. Large parameters and optimizer state may be copied later: see
:mod:`mltrain.checkpoint.late_copy`. Everything else is copied at the boundary, because a forward in training mode already
changes batch norm buffers and random generators.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mltrain.checkpoint.flat_tensors import is_sharded
from mltrain.checkpoint.host_memory import HostBuffers
from mltrain.checkpoint.late_copy import LateState, PendingCopies
from mltrain.checkpoint.ports import Pieces
from mltrain.checkpoint.pytree import flatten
from mltrain.errors import UsageError

WEIGHTS_NAMES = ("model", "model_state_dict", "state_dict", "net", "weights")
"""Names under which a state's mapping of tensors counts as a model's weights."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state on the host.

    It is taken at a step boundary, and training does not change it any more.

    Attributes:
        tree: the state as JSON values, in which tensors are references (see :mod:`mltrain.checkpoint.pytree`).
        tensors: name to tensor; all on the CPU and separate from the live ones. Complete once ``pending_copies`` is.
        weights: the name of the part that is a model's weights, or ``None``.
        parts: the names of all parts.
        pending_copies: the copies still to be made.
        pieces: this process's pieces of sharded tensors. If ``None``, all tensors are whole.
    """

    tree: Any
    tensors: Mapping[str, Tensor]
    weights: str | None
    parts: tuple[str, ...]
    pending_copies: PendingCopies = field(default_factory=PendingCopies)
    pieces: Pieces | None = None

    @property
    def held(self) -> Mapping[str, Tensor]:
        """All tensors or pieces of tensors in this process."""
        return self.tensors if self.pieces is None else {**self.tensors, **self.pieces.own}

    def end(self) -> None:
        """Tell the peers that this snapshot is finished."""
        if self.pieces is not None:
            self.pieces.end()


class ShardedState(dict[str, Any]):
    """A state with sharded tensors.

    All processes take a snapshot of it at the same time.

    Args:
        state: names to tensors and plain values.
        take: copies this process's pieces; called with the sharded tensors and the name of the part that is a model's
            weights.
    """

    def __init__(self, state: Mapping[str, Any], take: Callable[[Mapping[str, Tensor], str | None], Pieces]) -> None:
        super().__init__(state)
        self.take = take


def refuse_unless_state(state: Any) -> None:
    """Raise an error unless a state is a dictionary.

    Raises:
        UsageError: it is something else, such as a module.
    """
    if not isinstance(state, Mapping):
        raise UsageError(
            f"state={state!r:.80} is invalid. Expected a dictionary of tensors and plain values, such as "
            "{'model': net.state_dict()}."
        )


def snapshot(state: Mapping[str, Any], buffers: HostBuffers) -> Snapshot:
    """Copy nested tensors and plain values into host buffers.

    Args:
        state: names to tensors and plain values; a :class:`LateState` is partly copied later.
        buffers: receive the copies.

    Raises:
        UnsupportedValue: a value is of another kind; the message names the path to it. Nothing has been copied then.
    """
    weights = weights_of(state)
    flat = flatten(state, weights, sharded=isinstance(state, ShardedState))
    whole: Mapping[str, Tensor] = flat.tensors
    if isinstance(state, ShardedState):
        whole = {name: tensor for name, tensor in flat.tensors.items() if not is_sharded(tensor)}
    pending = state.late.begin() if isinstance(state, LateState) else PendingCopies()
    copies = buffers.copy(whole, pending.takes)
    pending.begin()
    pieces = None
    if isinstance(state, ShardedState):
        pieces = state.take({name: one for name, one in flat.tensors.items() if name not in whole}, weights)
    return Snapshot(flat.tree, copies, weights, tuple(str(name) for name in state), pending, pieces)


def prepare(state: Mapping[str, Any], buffers: HostBuffers) -> None:
    """Allocate memory for later snapshots in the background.

    Raises:
        UnsupportedValue: as for :func:`snapshot`.
    """
    buffers.prepare(flatten(state, weights_of(state)).tensors)


def weights_of(state: Mapping[str, Any]) -> str | None:
    """Return the name of the model's weights in a state.

    Returns ``None`` if no part is one.
    """
    return next((name for name in WEIGHTS_NAMES if _is_weights(state.get(name))), None)


def _is_weights(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and all(isinstance(name, str) and name != "$" for name in part)
        and any(isinstance(value, Tensor) for value in part.values())
    )
