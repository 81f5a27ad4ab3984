"""A copy of a training's state in host memory, taken at a step boundary.

Where the step allows it, large parameters and optimizer state are copied later: see :mod:`mltrain.checkpoint.late_copy`.
Everything else is copied at the boundary: a forward in training mode already changes the buffers of batch norm and the
generators of random numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mltrain.checkpoint.host_memory import HostBuffers
from mltrain.checkpoint.late_copy import LateState, Rest
from mltrain.checkpoint.ports import Pieces
from mltrain.checkpoint.pytree import flatten, is_sharded

WEIGHTS_NAMES = ("model", "model_state_dict", "state_dict", "net", "weights")
"""A part of one of these names that maps names to tensors is a model's weights."""


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state on the host, taken at a step boundary. Nothing that the training does changes it any more.

    Attributes:
        tree: the state as JSON values, in which tensors are references (see :mod:`mltrain.checkpoint.pytree`).
        tensors: name to tensor; all on the CPU, none shares memory with a live one. Complete when the rest is.
        weights: the name of the part that is a model's weights, if there is one.
        parts: the names of all parts.
        rest: what is still to be copied.
        pieces: the tensors of which each of several processes holds a piece. If ``None``, all tensors are whole.
    """

    tree: Any
    tensors: Mapping[str, Tensor]
    weights: str | None
    parts: tuple[str, ...]
    rest: Rest = field(default_factory=Rest)
    pieces: Pieces | None = None

    @property
    def held(self) -> Mapping[str, Tensor]:
        """What this process holds of every tensor: all of it, or a piece."""
        return self.tensors if self.pieces is None else {**self.tensors, **self.pieces.own}

    def end(self) -> None:
        """Let other processes that hold pieces know that this snapshot is not written again."""
        if self.pieces is not None:
            self.pieces.end()


class ShardedState(dict[str, Any]):
    """A state with sharded tensors, of which all processes take a snapshot at the same time.

    Args:
        state: names to tensors and plain values.
        take: copies the pieces of this process; called with the sharded tensors, and the name of the part that is a model's
            weights.
    """

    def __init__(self, state: Mapping[str, Any], take: Callable[[Mapping[str, Tensor], str | None], Pieces]) -> None:
        super().__init__(state)
        self.take = take


def snapshot(state: Mapping[str, Any], buffers: HostBuffers) -> Snapshot:
    """Copy a nesting of tensors and plain values into host buffers.

    Args:
        state: names to tensors and plain values; of a :class:`LateState` a part may be copied later than now.
        buffers: that it is copied into.

    Raises:
        UnsupportedValue: something is neither; the message names the path to it. Nothing has been copied then.
    """
    weights = weights_of(state)
    flat = flatten(state, weights, sharded=isinstance(state, ShardedState))
    whole: Mapping[str, Tensor] = flat.tensors
    if isinstance(state, ShardedState):
        whole = {name: tensor for name, tensor in flat.tensors.items() if not is_sharded(tensor)}
    rest = state.late.begin() if isinstance(state, LateState) else Rest()
    copies = buffers.copy(whole, rest.takes)
    rest.begin()
    pieces = None
    if isinstance(state, ShardedState):
        pieces = state.take({name: one for name, one in flat.tensors.items() if name not in whole}, weights)
    return Snapshot(flat.tree, copies, weights, tuple(str(name) for name in state), rest, pieces)


def prepare(state: Mapping[str, Any], buffers: HostBuffers) -> None:
    """Take memory in the background for the snapshots of states like this one.

    Raises:
        UnsupportedValue: as for :func:`snapshot`.
    """
    buffers.prepare(flatten(state, weights_of(state)).tensors)


def weights_of(state: Mapping[str, Any]) -> str | None:
    """Return the name of the part of a state that is a model's weights, if there is one."""
    return next((name for name in WEIGHTS_NAMES if _is_weights(state.get(name))), None)


def _is_weights(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and all(isinstance(name, str) and name != "$" for name in part)
        and any(isinstance(value, Tensor) for value in part.values())
    )
