"""Copies the training state to host memory.

Copies are taken at a step boundary. Large parameters and optimizer state may be copied later: see
:mod:`mltrain.checkpoint.late_copy`. Everything else is copied at the boundary, because a forward in training mode already
changes batch norm buffers and random generators.

Memory for tensors of CUDA devices is page-locked. torch keeps memory from ``pin_memory=True`` until the process ends and rounds
it up to a power of two. Memory for large tensors is therefore taken from the system and registered with the CUDA driver; the
system gets it back once no tensor uses it.
"""

import mmap
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mltrain.checkpoint.flat_tensors import is_sharded
from mltrain.checkpoint.late_copy import LateState, PendingCopies
from mltrain.checkpoint.ports import Pieces
from mltrain.checkpoint.pytree import flatten
from mltrain.errors import UsageError

WEIGHTS_NAMES = ("model", "model_state_dict", "state_dict", "net", "weights")
"""Names under which a state's mapping of tensors counts as a model's weights."""

_PAGE = 4096
"""Smallest size of a memory page in bytes."""

LARGE = 1 << 20
"""Tensors of at least this many bytes get registered memory; smaller ones use torch's own."""


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


def snapshot(state: Mapping[str, Any], buffers: "HostBuffers") -> Snapshot:
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


def prepare(state: Mapping[str, Any], buffers: "HostBuffers") -> None:
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


class HostBuffers:
    """Host memory for snapshots, reused from checkpoint to checkpoint.

    It holds one snapshot at a time: the caller releases the last one before it takes the next. The system maps new memory page
    by page at the first write, which takes longer than the copy itself; :meth:`prepare` does that in advance.

    Args:
        cuda: the ``torch.cuda`` module or a double of it.
        pin: whether memory for tensors of CUDA devices is page-locked. If ``None``, it is if a CUDA device is available.
    """

    def __init__(self, cuda: Any = torch.cuda, *, pin: bool | None = None) -> None:
        self._cuda = cuda
        self._queues = cuda.is_available()  # GPU copies are queued, then synchronized once
        self._pinned = self._queues if pin is None else pin
        self._kept: dict[str, Tensor] = {}
        self._preparing: threading.Thread | None = None
        self._enough = threading.Event()

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate memory for tensors like these in the background.

        A copy that comes earlier allocates the remaining memory itself.
        """
        if self._kept or self._preparing is not None:
            return
        alike = {n: (torch.empty_like(one, device="meta"), one.device.type == "cuda") for n, one in tensors.items()}
        self._preparing = threading.Thread(target=self._prepare, args=(alike,), name="mltrain-memory", daemon=True)
        self._preparing.start()

    def _prepare(self, alike: Mapping[str, tuple[Tensor, bool]]) -> None:
        with suppress(RuntimeError):  # out of memory: a later copy reports it if it still fails
            for name, (tensor, on_cuda) in alike.items():
                if self._enough.is_set():
                    return
                buffer = self._taken_like(tensor, on_cuda)
                whole = torch.empty(0, dtype=torch.uint8).set_(buffer.untyped_storage())
                whole[::_PAGE].zero_()
                self._kept[name] = buffer

    def _taken_like(self, tensor: Tensor, on_cuda: bool) -> Tensor:
        with torch.inference_mode(False):  # inference tensors could not be written to elsewhere
            return (
                page_locked(tensor, self._cuda) if self._pinned and on_cuda else torch.empty_like(tensor, device="cpu")
            )

    def copy(
        self, tensors: Mapping[str, Tensor], late: Callable[[Tensor, Tensor], bool] = lambda buffer, tensor: False
    ) -> dict[str, Tensor]:
        """Copy tensors of any device into buffers; return the buffers.

        A dense tensor's copy is dense in the same order of dimensions.

        Args:
            tensors: by name.
            late: called with each buffer and tensor; returns whether it makes this copy later.
        """
        if self._preparing is not None:
            self._enough.set()
            self._preparing.join()
        copies = {}
        queued = set()
        for name, tensor in tensors.items():
            buffer = self._kept.pop(name, None)
            if buffer is None or buffer.dtype != tensor.dtype or buffer.shape != tensor.shape:
                buffer = None  # freed before its replacement is allocated
                buffer = self._taken_like(tensor, tensor.device.type == "cuda")
            copies[name] = buffer
            if late(buffer, tensor):
                continue
            if self._queues and tensor.device.type == "cuda":
                buffer.copy_(tensor, non_blocking=True)
                queued.add(tensor.device)
            else:
                buffer.copy_(tensor)
        for device in queued:  # synchronizing one device does not wait for another
            self._cuda.synchronize(device)
        self._kept = copies
        return dict(copies)


def page_locked(tensor: Tensor, cuda: Any) -> Tensor:
    """Return page-locked CPU memory shaped like a tensor.

    It has the same dtype, shape and order of dimensions.

    Args:
        tensor: of any device; its values are not read.
        cuda: the ``torch.cuda`` module or a double of it.

    Raises:
        RuntimeError: the system is out of memory.
    """
    alike = torch.empty_like(tensor, device="meta")
    if alike.nbytes < LARGE:
        return torch.empty_like(alike, device="cpu", pin_memory=True)
    try:
        pages = _Pages(alike.nbytes, cuda)
    except OSError as error:
        raise RuntimeError(
            f"{alike.nbytes / 1e6:.0f} MB of host memory cannot be allocated: {error.strerror}"
        ) from error
    row = torch.frombuffer(pages, dtype=torch.uint8, count=alike.nbytes)
    return torch.empty(0, dtype=alike.dtype).set_(row.untyped_storage(), 0, alike.shape, alike.stride())


class _Pages(mmap.mmap):
    """Anonymous memory, registered with the driver while it exists.

    If the driver refuses, copies are slower.
    """

    _registered: Any = None

    def __new__(cls, size: int, cuda: Any) -> "_Pages":
        pages = super().__new__(cls, -1, size)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without huge pages
                pages.madvise(mmap.MADV_HUGEPAGE)
        address = torch.frombuffer(pages, dtype=torch.uint8).data_ptr()
        driver = cuda.cudart()
        if int(driver.cudaHostRegister(address, len(pages), 0)) == 0:
            pages._registered = (driver, address)
        return pages

    def __del__(self) -> None:
        if self._registered is not None:
            driver, address = self._registered
            driver.cudaHostUnregister(address)
