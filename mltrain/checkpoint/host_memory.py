"""Host memory that snapshots are copied into; for tensors of CUDA devices page-locked.

torch keeps what ``pin_memory=True`` has given until the process ends, and rounds it up to a power of two. So memory for large
tensors is taken from the system and registered with the driver: the system gets it back when nobody holds it any more.
"""

import mmap
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

_PAGE = 4096
"""Bytes that one write maps, or more."""

LARGE = 1 << 20
"""Bytes of a tensor from which on its memory is registered; for less, torch's own memory is good enough."""


def _never(buffer: Tensor, tensor: Tensor) -> bool:
    return False


class HostBuffers:
    """Host memory that a snapshot is copied into, kept from checkpoint to checkpoint.

    One snapshot at a time lives in it: the caller lets go of the last one before it takes the next. The system maps fresh
    memory page by page when it is first written to, which takes longer than the copy; :meth:`prepare` does that beforehand.

    Args:
        cuda: says whether there are CUDA devices, and waits for one.
        pin: whether the memory for tensors of CUDA devices is page-locked. If ``None``, it is where there is such a device.
    """

    def __init__(self, cuda: Any = torch.cuda, *, pin: bool | None = None) -> None:
        self._cuda = cuda
        self._queues = cuda.is_available()  # copies from a GPU are queued, and waited for once
        self._pinned = self._queues if pin is None else pin
        self._kept: dict[str, Tensor] = {}
        self._preparing: threading.Thread | None = None
        self._enough = threading.Event()

    def prepare(self, tensors: Mapping[str, Tensor]) -> None:
        """Take memory for tensors like these on a thread of its own; a copy that comes earlier takes the rest itself."""
        if self._kept or self._preparing is not None:
            return
        alike = {n: (torch.empty_like(one, device="meta"), one.device.type == "cuda") for n, one in tensors.items()}
        self._preparing = threading.Thread(target=self._prepare, args=(alike,), name="mltrain-memory", daemon=True)
        self._preparing.start()

    def _prepare(self, alike: Mapping[str, tuple[Tensor, bool]]) -> None:
        with suppress(RuntimeError):  # no memory: the copy itself reports it, if it is still so then
            for name, (tensor, on_cuda) in alike.items():
                if self._enough.is_set():
                    return
                buffer = self._taken_like(tensor, on_cuda)
                whole = torch.empty(0, dtype=torch.uint8).set_(buffer.untyped_storage())
                whole[::_PAGE].zero_()
                self._kept[name] = buffer

    def _taken_like(self, tensor: Tensor, on_cuda: bool) -> Tensor:
        with torch.inference_mode(False):  # else it could not be written to anywhere else
            return (
                page_locked(tensor, self._cuda) if self._pinned and on_cuda else torch.empty_like(tensor, device="cpu")
            )

    def copy(self, tensors: Mapping[str, Tensor], late: Callable[[Tensor, Tensor], bool] = _never) -> dict[str, Tensor]:
        """Copy tensors of any device into the buffers and return these, each as dense as its original.

        Args:
            tensors: by name.
            late: asked with each buffer and tensor whether it takes this copy over.
        """
        if self._preparing is not None:
            self._enough.set()
            self._preparing.join()
        copies = {}
        queued = set()
        for name, tensor in tensors.items():
            buffer = self._kept.pop(name, None)
            if buffer is None or buffer.dtype != tensor.dtype or buffer.shape != tensor.shape:
                buffer = None  # before another one is taken: never both at once
                buffer = self._taken_like(tensor, tensor.device.type == "cuda")
            copies[name] = buffer
            if late(buffer, tensor):
                continue
            if self._queues and tensor.device.type == "cuda":
                buffer.copy_(tensor, non_blocking=True)
                queued.add(tensor.device)
            else:
                buffer.copy_(tensor)
        for device in queued:  # each has queues of its own: waiting for the current device waits for no other
            self._cuda.synchronize(device)
        self._kept = copies
        return dict(copies)


def page_locked(tensor: Tensor, cuda: Any) -> Tensor:
    """Return memory of the CPU for a tensor of this dtype, shape and order of dimensions, page-locked.

    Args:
        tensor: of any device; only what it is like counts.
        cuda: the module of torch for CUDA devices.

    Raises:
        RuntimeError: there is not as much memory.
    """
    alike = torch.empty_like(tensor, device="meta")
    if alike.nbytes < LARGE:
        return torch.empty_like(alike, device="cpu", pin_memory=True)
    try:
        pages = _Pages(alike.nbytes, cuda)
    except OSError as error:
        raise RuntimeError(f"No {alike.nbytes / 1e6:.0f} MB of memory: {error.strerror}") from error
    row = torch.frombuffer(pages, dtype=torch.uint8, count=alike.nbytes)
    return torch.empty(0, dtype=alike.dtype).set_(row.untyped_storage(), 0, alike.shape, alike.stride())


class _Pages(mmap.mmap):
    """Anonymous memory that is registered with the driver for as long as it exists. A driver may refuse; it is slower then."""

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
