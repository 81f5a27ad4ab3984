"""Page-locked host memory, which the system gets back when nobody holds it any more.

torch keeps what ``pin_memory=True`` has given until the process ends, and rounds it up to a power of two. So memory for large
tensors is taken from the system and registered with the driver.
"""

import mmap
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

LARGE = 1 << 20
"""Bytes of a tensor from which on its memory is registered; for less, torch's own memory is good enough."""


def page_locked(tensor: Tensor, cuda: Any = torch.cuda) -> Tensor:
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
