"""Which device computes, and how deterministically."""

import os
from typing import Any

import torch

from mltrain.errors import ConfigError


def chosen(name: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps`` means on this machine.

    Raises:
        ConfigError: this machine does not have it.
    """
    there = ["cpu"]
    if torch.cuda.is_available():
        there = ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count())), *there]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if name == "auto":
        return torch.device(there[0])
    if name not in there:
        raise ConfigError(
            f"device={name} is not on this machine; there are: {', '.join(there)}. Use device=auto or cpu."
        )
    return torch.device(name)


def make_current(device: torch.device, cuda: Any = torch.cuda) -> None:
    """Make a CUDA device the current one.

    ``tensor.cuda()``, streams, libraries and the project's own code use the current device, which is otherwise the first.
    """
    if device.type == "cuda" and device.index is not None:
        cuda.set_device(device)


def set_up(num_threads: int | None, deterministic: bool, device: str = "auto") -> None:
    """Set the current device, the number of CPU threads, and deterministic algorithms; what has none warns.

    Raises:
        ConfigError: this machine does not have the device.
    """
    make_current(chosen(device))
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it, before its first use
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, and nothing here reads such memory
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
