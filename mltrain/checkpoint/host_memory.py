"""Host memory for snapshots, page-locked for tensors of CUDA devices.

torch keeps memory from ``pin_memory=True`` until the process ends and rounds it up to a power of two. Memory for large tensors
is therefore taken from the system and registered with the CUDA driver; the system gets it back once no tensor uses it.
"""

import mmap
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

_PAGE = 4096
"""Smallest size of a memory page in bytes."""

LARGE = 1 << 20
"""Tensors of at least this many bytes get registered memory; smaller ones use torch's own."""


def _never(buffer: Tensor, tensor: Tensor) -> bool:
    return False


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

    def copy(self, tensors: Mapping[str, Tensor], late: Callable[[Tensor, Tensor], bool] = _never) -> dict[str, Tensor]:
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
