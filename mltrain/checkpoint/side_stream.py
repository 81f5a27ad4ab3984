"""Copies from CUDA devices, on a stream beside the one that computes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


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
