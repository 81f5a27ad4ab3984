"""A copy of a training's state in host memory, taken at a step boundary.

Where the step allows it, large parameters and optimizer state are copied under the next forward and backward: between the
boundary and the next ``optimizer.step()`` nothing needs to change them, so the thread that writes the checkpoint may copy
them while the training goes on, and ``optimizer.step()`` waits for what is left. This is the snapshot of CheckFreq (Mohan,
Phanishayee and Chidambaram, FAST 2021). Everything else is copied at the boundary: a forward in training mode already changes
the buffers of batch norm and the generators of random numbers.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from mltrain.checkpoint.host_memory import HostBuffers
from mltrain.checkpoint.ports import Pieces
from mltrain.checkpoint.pytree import flatten, is_dense, is_sharded
from mltrain.errors import StorageError

WEIGHTS_NAMES = ("model", "model_state_dict", "state_dict", "net", "weights")
"""A part of one of these names that maps names to tensors is a model's weights."""

SMALLEST = 1 << 16
"""Bytes of a tensor from which on it is copied late; less costs more to hand over than to copy."""

_LOOK_SECONDS = 0.5


class Rest:
    """What of a snapshot is still to be copied: by any thread, and by the training's before it changes any of it.

    Args:
        tensors: that may be copied late.

    Attributes:
        confirmed: set when the training's thread has looked whether a tensor was changed in place before it was copied. No
            other can: torch counts a change only when it is done.
        changed: whether one was; then the snapshot is of no step.
        error: why it could not be copied, if so.
    """

    def __init__(self, tensors: Iterable[Tensor] = ()) -> None:
        self._held = {_place(tensor): tensor for tensor in tensors}
        self._versions: list[tuple[Tensor, int]] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._lock = threading.RLock()
        self._thread = threading.get_ident()
        self.confirmed = threading.Event()
        self.changed = False
        self.error: Exception | None = None

    def takes(self, buffer: Tensor, tensor: Tensor) -> bool:
        """Take a tensor over that is to be copied into a buffer, if it may be copied late; return whether."""
        held = self._held.get(_place(tensor)) if self._held and is_dense(tensor) else None
        if held is None:
            return False
        self._versions.append((held, held._version))
        self._pairs.append((buffer, tensor))
        return True

    @property
    def left(self) -> bool:
        """Whether there is anything still to be copied."""
        return bool(self._pairs)

    def copy(self) -> None:
        """Copy what is left, or wait until another thread has done so."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
            try:
                for buffer, tensor in pairs:
                    buffer.copy_(tensor)
            except Exception as error:  # noqa: BLE001 - it is not the training's affair, which may be the one that copies
                self.error = error

    def complete(self, stopped: Callable[[], bool]) -> None:
        """Copy what is left and wait until the training's thread has confirmed it; for the thread that writes.

        Args:
            stopped: answers whether no thread trains any more because the interpreter is ending.

        Raises:
            StorageError: the snapshot is of no step, or could not be copied.
        """
        self.copy()
        while not self.confirmed.wait(_LOOK_SECONDS):
            if stopped():
                self.confirm()
        if self.changed:
            raise StorageError(
                "A checkpoint could not be written: something changed parameters or optimizer state in place after it was due "
                "and before the next optimizer.step(), so it would have been of no step. From now on all is copied at once, as "
                "without late_copy."
            )
        if self.error is not None:
            raise StorageError(f"A checkpoint could not be written: {type(self.error).__name__}: {self.error}")

    def confirm(self) -> None:
        """Copy what is left, and look whether anything was changed meanwhile; for the thread that trains."""
        if not self.confirmed.is_set():
            self.copy()
            self.changed = any(tensor._version != version for tensor, version in self._versions)
            self._versions, self._held = [], {}
            self.confirmed.set()

    def before_step(self) -> None:
        """Do so where this is the thread that trains; another one, which trains something else, only copies."""
        if threading.get_ident() == self._thread:
            self.confirm()
        else:
            self.copy()


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


class LateCopy:
    """Lets parameters and state of optimizers be copied late, and makes every optimizer of this process wait for it.

    A tensor that anything else changes in place before the next step of an optimizer is noticed, unless it is changed through
    ``.data`` or NumPy: the checkpoint is given up, and all later ones are copied at once.

    Args:
        optimizers: whose parameters and state may be copied late; dense ones on the CPU are.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._allowed = bool(self._optimizers)
        self._rest = Rest()
        if self._allowed:
            this = weakref.ref(self)

            def before_step(*_: object) -> None:
                late = this()
                if late is not None:
                    late._rest.before_step()

            # Of all optimizers, because one that shares parameters with these need not be among them.
            weakref.finalize(self, register_optimizer_step_pre_hook(before_step).remove)

    def allow(self, state: Mapping[str, Any]) -> "LateState":
        """Return a state to save, of which what the optimizers hold may be copied under the next forward and backward."""
        return LateState(state, self)

    def begin(self) -> Rest:
        """Return the rest of a snapshot that is taken now, for the thread that writes it to copy."""
        self.finish()
        self._allowed = self._allowed and not self._rest.changed
        self._rest = Rest(self._large() if self._allowed else ())
        return self._rest

    def finish(self) -> None:
        """Return when the last snapshot is complete; to be called before anything but an optimizer changes what is trained."""
        self._rest.confirm()

    def _large(self) -> Iterator[Tensor]:
        for tensor in self._tensors():
            plain = tensor.layout is torch.strided and tensor.is_cpu and not tensor.is_inference()
            if plain and tensor.nbytes >= SMALLEST and is_dense(tensor):
                yield tensor

    def _tensors(self) -> Iterator[Tensor]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]
            for state in optimizer.state.values():
                if isinstance(state, Mapping):
                    yield from (value for value in state.values() if isinstance(value, Tensor))


class LateState(dict[str, Any]):
    """A state of which parameters and optimizer state may be copied late; for a saver that cannot, a plain dictionary.

    Args:
        state: names to tensors and plain values.
        late: copies them.
    """

    def __init__(self, state: Mapping[str, Any], late: LateCopy) -> None:
        super().__init__(state)
        self.late = late


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
    whole = {name: tensor for name, tensor in flat.tensors.items() if not is_sharded(tensor)}
    rest = state.late.begin() if isinstance(state, LateState) else Rest()
    copies = buffers.copy(whole, rest.takes)
    sharded = {name: tensor for name, tensor in flat.tensors.items() if name not in whole}
    pieces = state.take(sharded, weights) if isinstance(state, ShardedState) else None
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


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where a dense tensor is in memory."""
    return tensor.data_ptr(), tensor.nbytes
