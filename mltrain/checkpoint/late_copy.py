"""Copying large parameters and optimizer state under the next forward and backward.

Between a step boundary and the next ``optimizer.step()`` nothing needs to change them, so they may be copied while the training
goes on, and ``optimizer.step()`` waits for what is left. This is the snapshot of CheckFreq (Mohan, Phanishayee and
Chidambaram, FAST 2021). The thread that writes the checkpoint copies what is in the memory of the CPU. A CUDA device copies
what it holds itself, on a stream of its own; there ``optimizer.step()`` is queued behind the copies, and no thread waits.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from mltrain.checkpoint.pytree import is_dense, is_sharded
from mltrain.errors import StorageError

SMALLEST = 1 << 16
"""Bytes of a tensor from which on it is copied late; less costs more to hand over than to copy."""

_LOOK_SECONDS = 0.5


class Queued:
    """Copies that a device does on its own time.

    Args:
        cuda: the module of torch for CUDA devices.
        ends: each device with the event that its last copy records.
        tensors: what is read; their memory is not reused before all is copied.
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
        """Let nothing that is queued on the current streams from now on begin before the copies end. The host does not wait."""
        for device, end in self._ends:
            self._cuda.current_stream(device).wait_event(end)

    def wait(self) -> None:
        """Wait on the host until all is copied.

        Raises:
            RuntimeError: a device reports an error.
        """
        for _, end in self._ends:
            end.synchronize()
        self._tensors = []


class SideStreams:
    """A stream for each CUDA device, on which it copies while it computes on others.

    Args:
        cuda: the module of torch for CUDA devices.
    """

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._streams: dict[torch.device, Any] = {}

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> Queued:
        """Queue copies behind all that is queued on the current streams, and return without waiting.

        Args:
            pairs: page-locked buffer and tensor of a CUDA device, of one dtype and shape.
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
            end = self._cuda.Event(
                blocking=True
            )  # a thread that waits for it sleeps, and leaves the processor to others
            end.record(stream)
            ends.append((device, end))
        return Queued(self._cuda, ends, [tensor for its in alike.values() for _, tensor in its])


class Rest:
    """What of a snapshot is still to be copied: by any thread, and by the training's before it changes any of it.

    Args:
        tensors: that may be copied late.
        streams: copy what CUDA devices hold.

    Attributes:
        confirmed: set when the training's thread has looked whether a tensor was changed in place before it was copied. No
            other can: torch counts a change only when it is done.
        changed: whether one was; then the snapshot is of no step.
        error: why it could not be copied, if so.
    """

    def __init__(self, tensors: Iterable[Tensor] = (), streams: SideStreams | None = None) -> None:
        self._streams = streams if streams is not None else SideStreams()
        self._queued = Queued(None)
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
        if not self._held:
            return False
        held = self._held.get(_place(tensor)) if is_dense(tensor) else None
        if held is None:
            return False
        self._versions.append((held, held._version))
        self._pairs.append((buffer, tensor.detach()))  # which keeps its memory if ``.data`` is replaced
        return True

    def begin(self) -> None:
        """Let CUDA devices begin to copy what was taken over from them; for the thread that trains, at the boundary."""
        on_device = [pair for pair in self._pairs if pair[1].device.type == "cuda"]
        self._pairs = [pair for pair in self._pairs if pair[1].device.type != "cuda"]
        self._queued = self._streams.copy(on_device)

    @property
    def left(self) -> bool:
        """Whether there is anything that was not copied at the boundary, and not confirmed since."""
        return bool(self._pairs) or bool(self._queued)

    def copy(self) -> None:
        """Copy what is left, or wait until another thread or a device has done so."""
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
        self.copy()
        self._look()

    def before_step(self) -> None:
        """Let an optimizer's step come after the copies, and look whether anything was changed meanwhile.

        A thread that does not train this, but something else, does not look.
        """
        self._queued.hold_back()
        self._copy_here()
        if threading.get_ident() == self._thread:
            self._look()

    def _look(self) -> None:
        if not self.confirmed.is_set():
            self.changed = any(tensor._version != version for tensor, version in self._versions)
            self._versions, self._held = [], {}
            self.confirmed.set()


class LateCopy:
    """Lets parameters and state of optimizers be copied late, and makes every optimizer of this process wait for it.

    A tensor that anything else changes in place before the next step of an optimizer is noticed, unless it is changed through
    ``.data`` or NumPy: the checkpoint is given up, and all later ones are copied at once.

    Args:
        optimizers: whose parameters and state may be copied late; dense ones on the CPU and on CUDA devices are.
        cuda: the module of torch for CUDA devices.
    """

    def __init__(self, optimizers: Iterable[Optimizer], cuda: Any = torch.cuda) -> None:
        self._streams = SideStreams(cuda)
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
        self._rest = Rest(self._large() if self._allowed else (), self._streams)
        return self._rest

    def finish(self) -> None:
        """Return when the last snapshot is complete; to be called before anything but an optimizer changes what is trained."""
        self._rest.confirm()

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
    """A state of which parameters and optimizer state may be copied late; for a saver that cannot, a plain dictionary.

    Args:
        state: names to tensors and plain values.
        late: copies them.
    """

    def __init__(self, state: Mapping[str, Any], late: LateCopy) -> None:
        super().__init__(state)
        self.late = late


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where a dense tensor is in memory."""
    return tensor.data_ptr(), tensor.nbytes
