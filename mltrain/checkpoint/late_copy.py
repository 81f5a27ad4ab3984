"""Copies large parameters and optimizer state while training continues.

Nothing needs to change them between a step boundary and the next ``optimizer.step()``, so they are copied during forward
and backward, and ``optimizer.step()`` waits for the remaining copies. This is the snapshot of CheckFreq (Mohan, Phanishayee and
Chidambaram, FAST 2021). The writing thread copies tensors in CPU memory. A CUDA device copies its own tensors on a separate
stream; ``optimizer.step()`` is queued behind these copies, and no thread waits.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from mltrain.checkpoint.flat_tensors import is_dense, is_sharded
from mltrain.errors import StorageError

SMALLEST = 1 << 16
"""Tensors of at least this many bytes are copied late; handing over smaller ones costs more than their copy."""

_POLL_SECONDS = 0.5


class Queued:
    """Copies that CUDA devices make asynchronously.

    Args:
        cuda: the ``torch.cuda`` module or a double of it.
        ends: each device with the event that its last copy records.
        tensors: the sources, kept alive until all copies are done.
    """

    def __init__(
        self, cuda: Any, ends: Iterable[tuple[torch.device, Any]] = (), tensors: Iterable[Tensor] = ()
    ) -> None:
        self._cuda = cuda
        self._ends = list(ends)
        self._tensors = list(tensors)

    def __bool__(self) -> bool:
        return bool(self._ends)

    def hold_back(self) -> None:
        """Make current streams' later work wait for the copies.

        The host does not wait.
        """
        for device, end in self._ends:
            self._cuda.current_stream(device).wait_event(end)

    def wait(self) -> None:
        """Block the host until all copies are done.

        Raises:
            RuntimeError: a device reports an error.
        """
        for _, end in self._ends:
            end.synchronize()
        self._tensors = []


class SideStreams:
    """One separate copy stream for each CUDA device.

    Args:
        cuda: the ``torch.cuda`` module or a double of it.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._streams: dict[torch.device, Any] = {}

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Queued:
        """Queue copies behind the current streams, without waiting.

        Args:
            pairs: page-locked buffer and CUDA tensor, of the same dtype and shape.
        """
        alike: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}
        for buffer, tensor in pairs:
            alike.setdefault(tensor.device, []).append((buffer, tensor))
        ends = []
        for device, its in alike.items():
            stream = self._streams.get(device)
            if stream is None:
                stream = self._streams[device] = self._cuda.Stream(device)
            stream.wait_stream(self._cuda.current_stream(device))
            with self._cuda.stream(stream):
                for buffer, tensor in its:
                    buffer.copy_(tensor, non_blocking=True)
            end = self._cuda.Event(blocking=True)  # waiting threads sleep instead of spinning
            end.record(stream)
            ends.append((device, end))
        return Queued(self._cuda, ends, [tensor for its in alike.values() for _, tensor in its])


class PendingCopies:
    """The copies that a snapshot still needs; true while some are left.

    Any thread may make them; the training's thread makes them before it changes a source.

    Args:
        tensors: may be copied late.
        streams: copy the tensors of CUDA devices.

    Attributes:
        confirmed: set once the training's thread has checked that no tensor was changed in place before its copy. Only
            that thread can check: torch counts a change after it is made.
        changed: whether a tensor was changed; the snapshot then mixes two steps and is invalid.
        error: the error of a copy, if one failed.
    """

    def __init__(self, tensors: Iterable[Tensor] = (), streams: SideStreams | None = None) -> None:
        self._streams = streams if streams is not None else SideStreams()
        self._queued = Queued(None)
        self._held = {_memory_of(tensor): tensor for tensor in tensors}
        self._versions: list[tuple[Tensor, int]] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._lock = threading.RLock()
        self._thread = threading.get_ident()
        self.confirmed = threading.Event()
        self.changed = False
        self.error: Exception | None = None

    def takes(self, buffer: Tensor, tensor: Tensor) -> bool:
        """Register a late copy of a tensor into a buffer.

        Returns whether the tensor may be copied late.
        """
        if not self._held:
            return False
        held = self._held.get(_memory_of(tensor)) if is_dense(tensor) else None
        if held is None:
            return False
        self._versions.append((held, held._version))
        self._pairs.append((buffer, tensor.detach()))  # keeps the memory even if ``.data`` is replaced
        return True

    def begin(self) -> None:
        """Start the copies of CUDA tensors.

        Call it on the training's thread, at the step boundary.
        """
        on_device = [pair for pair in self._pairs if pair[1].device.type == "cuda"]
        self._pairs = [pair for pair in self._pairs if pair[1].device.type != "cuda"]
        self._queued = self._streams.copy(on_device)

    def __bool__(self) -> bool:
        return bool(self._pairs) or bool(self._queued)

    def copy(self) -> None:
        """Make the remaining copies, or wait for those under way."""
        self._copy_here()
        try:
            self._queued.wait()
        except Exception as error:  # noqa: BLE001 - as below
            self.error = error

    def _copy_here(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
            try:
                for buffer, tensor in pairs:
                    buffer.copy_(tensor)
            except Exception as error:  # noqa: BLE001 - the training's thread, which may run this, must not fail
                self.error = error

    def complete(self, stopped: Callable[[], bool]) -> None:
        """Finish the copies and wait for the training's confirmation.

        Call it on the writing thread.

        Args:
            stopped: returns whether training has ended because the interpreter is exiting.

        Raises:
            StorageError: a tensor was changed before its copy, or a copy failed.
        """
        self.copy()
        while not self.confirmed.wait(_POLL_SECONDS):
            if stopped():
                self.confirm()
        if self.changed:
            raise StorageError(
                "A checkpoint could not be written: parameters or optimizer state were changed in place between the save and "
                "the next optimizer.step(), so the copy would mix two steps. From now on everything is copied at the save, "
                "as without late_copy."
            )
        if self.error is not None:
            raise StorageError(f"A checkpoint could not be written: {type(self.error).__name__}: {self.error}")

    def confirm(self) -> None:
        """Finish the copies and check for changes made meanwhile.

        Call it on the training's thread.
        """
        self.copy()
        self._check_unchanged()

    def before_step(self) -> None:
        """Order an optimizer step behind the copies; check for changes.

        A thread that steps another optimizer's training skips the check.
        """
        self._queued.hold_back()
        self._copy_here()
        if threading.get_ident() == self._thread:
            self._check_unchanged()

    def _check_unchanged(self) -> None:
        if not self.confirmed.is_set():
            self.changed = any(tensor._version != version for tensor, version in self._versions)
            self._versions, self._held = [], {}
            self.confirmed.set()


class LateCopy:
    """Copies parameters and optimizer state late.

    Every optimizer of this process waits for the copies. A tensor that other code changes in place before the next optimizer
    step is detected, unless the change goes through ``.data`` or NumPy: that checkpoint is given up, and all later ones are
    copied at the save.

    Args:
        optimizers: their dense parameters and state on the CPU and on CUDA devices are copied late.
        cuda: the ``torch.cuda`` module or a double of it.
    """

    def __init__(self, optimizers: Iterable[Optimizer], cuda: Any = torch.cuda) -> None:
        self._streams = SideStreams(cuda)
        self._optimizers = list(optimizers)
        self._allowed = bool(self._optimizers)
        self._pending_copies = PendingCopies()
        if self._allowed:
            this = weakref.ref(self)

            def before_step(*_: object) -> None:
                late = this()
                if late is not None:
                    late._pending_copies.before_step()

            # A hook on all optimizers, because another one may share parameters with these.
            weakref.finalize(self, register_optimizer_step_pre_hook(before_step).remove)

    def allow(self, state: Mapping[str, Any]) -> "LateState":
        """Return a state whose optimizer tensors may be copied late."""
        return LateState(state, self)

    def begin(self) -> PendingCopies:
        """Begin a snapshot and return its late copies."""
        self.finish()
        self._allowed = self._allowed and not self._pending_copies.changed
        self._pending_copies = PendingCopies(self._large() if self._allowed else (), self._streams)
        return self._pending_copies

    def finish(self) -> None:
        """Wait until the last snapshot is complete.

        Call it before any code other than an optimizer changes the trained tensors.
        """
        self._pending_copies.confirm()

    def _large(self) -> Iterator[Tensor]:
        for tensor in self._tensors():
            plain = tensor.layout is torch.strided and not tensor.is_inference() and not is_sharded(tensor)
            if plain and tensor.device.type in ("cpu", "cuda") and tensor.nbytes >= SMALLEST and is_dense(tensor):
                yield tensor

    def _tensors(self) -> Iterator[Tensor]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]
            for state in optimizer.state.values():
                if isinstance(state, Mapping):
                    yield from (value for value in state.values() if isinstance(value, Tensor))


class LateState(dict[str, Any]):
    """A state whose optimizer tensors may be copied late.

    Savers without late copies see a plain dictionary.

    Args:
        state: names to tensors and plain values.
        late: copies them.
    """

    def __init__(self, state: Mapping[str, Any], late: LateCopy) -> None:
        super().__init__(state)
        self.late = late


def _memory_of(tensor: Tensor) -> tuple[int, int]:
    """Return the address and size of a dense tensor."""
    return tensor.data_ptr(), tensor.nbytes
