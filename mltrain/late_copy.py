"""Copying parameters and optimizer state under the next forward and backward, where the step allows it.

Between the boundary of a step and the next ``optimizer.step()`` nothing needs to change them, so they may be copied by the
thread that writes the checkpoint, while the training goes on; ``optimizer.step()`` waits for what is left. This is the snapshot
of CheckFreq (Mohan, Phanishayee and Chidambaram, FAST 2021). Everything else is copied at the boundary: a forward in training
mode already changes the buffers of batch norm and the generators of random numbers.
"""

import threading
from collections.abc import Collection, Iterable, Iterator

from torch import Tensor
from torch.optim import Optimizer

SMALLEST = 1 << 16
"""Bytes of a tensor from which on it is copied late; less costs more to hand over than to copy."""


class Rest:
    """What of a snapshot is still to be copied. Whoever comes first copies it, and everybody else waits until it is.

    Args:
        tensors: that may be copied late.

    Attributes:
        changed: whether one of them was changed in place before it was copied; then the snapshot is of no step.
    """

    def __init__(self, tensors: Collection[Tensor] = ()) -> None:
        self._places = {_place(tensor) for tensor in tensors}
        self._versions = [(tensor, tensor._version) for tensor in tensors]
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._lock = threading.Lock()
        self.changed = False

    def takes(self, buffer: Tensor, tensor: Tensor) -> bool:
        """Take a tensor over that is to be copied into a buffer, if it may be copied late; return whether."""
        if _place(tensor) not in self._places:
            return False
        self._pairs.append((buffer, tensor))
        return True

    def finish(self) -> None:
        """Copy what is left, or wait until another thread has done so."""
        with self._lock:
            for buffer, tensor in self._pairs:
                buffer.copy_(tensor)
            self.changed |= any(tensor._version != version for tensor, version in self._versions)
            self._pairs, self._versions = [], []


class LateCopy:
    """Makes optimizers wait for the copy of what they are about to change.

    A tensor that is changed in place by anything else is noticed by its version; then the checkpoint is given up and all later
    ones are copied at the boundary. What is changed through ``.data`` is not noticed.

    Args:
        optimizers: all that change what they hold; only their parameters and their state on the CPU are copied late.
    """

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self._optimizers = list(optimizers)
        self._rest = Rest()
        for optimizer in self._optimizers:
            optimizer.register_step_pre_hook(lambda *_: self.finish())

    def begin(self) -> Rest:
        """Return the rest of a snapshot that is taken now, for the thread that writes it to finish."""
        if self._rest.changed:
            self._optimizers = []
        self._rest = Rest([tensor for tensor in self._held() if tensor.is_cpu and tensor.nbytes >= SMALLEST])
        return self._rest

    def finish(self) -> None:
        """Return when the last snapshot is complete."""
        self._rest.finish()

    def _held(self) -> Iterator[Tensor]:
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]
            for state in optimizer.state.values():
                yield from (value for value in state.values() if isinstance(value, Tensor))


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor is in memory; one that shares only a part of it is another."""
    return tensor.data_ptr(), tensor.nbytes
