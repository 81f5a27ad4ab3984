"""Choice of device and determinism, and tensors on several devices."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mltrain.errors import ConfigError, UsageError, shortened
from mltrain.redaction import first_line

if TYPE_CHECKING:
    from mltrain.config import Config

log = logging.getLogger(__name__)


def chosen(name: str) -> torch.device:
    """Return the device of a name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

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
            f"device={name} is not on this machine. Expected one of: {', '.join(there)}. Try: device=auto"
        )
    return torch.device(name)


def usable(device: str | torch.device) -> torch.device:
    """Return a device of this machine, after a trial allocation.

    Raises:
        UsageError: torch knows no such device, or this machine does not have it.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError) as error:
        raise UsageError(
            f"device={device!r:.80} is not usable here: {first_line(error)} Expected a device of this machine. Try: device='cpu'."
        ) from None
    return found


def make_current(device: torch.device, cuda: Any = torch.cuda) -> None:
    """Make a CUDA device the current one.

    ``tensor.cuda()``, streams, libraries and the project's own code use the current device, which is otherwise the first.
    """
    if device.type == "cuda" and device.index is not None:
        cuda.set_device(device)


def set_up(config: "Config") -> None:
    """Set current device, CPU threads and deterministic algorithms as configured.

    torch warns for operations that have no deterministic algorithm.

    Raises:
        ConfigError: this machine does not have the device.
    """
    make_current(chosen(config.device))
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time, and nothing here reads such memory
    torch.use_deterministic_algorithms(config.deterministic, warn_only=True)


def warn_of_unsaved_dropout(parts: Mapping[str, Any], device: torch.device) -> None:
    """Log a warning for recurrent modules that cannot resume exactly.

    cuDNN draws their dropout from a generator that torch can neither save nor restore. Subclasses of torch's modules, which
    may have another ``forward``, cause no warning.

    Args:
        parts: the parts of the training, by name.
        device: the training device.
    """
    if device.type != "cuda" or not torch.backends.cudnn.enabled:
        return
    names = [
        f"{part}.{name}".removesuffix(".")
        for part, model in parts.items()
        for name, module in (model.named_modules() if isinstance(model, nn.Module) else ())
        if type(module) in (nn.LSTM, nn.GRU, nn.RNN) and module.dropout and module.num_layers > 1
    ]
    if names:
        log.warning(
            "A training that is resumed on %s will differ from one that was never interrupted: cuDNN draws the dropout between "
            "the layers of %s from a generator that no checkpoint can hold. Try: torch.backends.cudnn.enabled = False, or "
            "layers of your own with nn.Dropout between them.",
            device,
            shortened(names),
        )


def moved(batch: Any, device: torch.device) -> Any:
    """Return a batch with all tensors on ``device``; page-locked ones are copied asynchronously."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=batch.is_pinned() if device.type == "cuda" else False)
    if isinstance(batch, Mapping):
        return {key: moved(item, device) for key, item in batch.items()}
    if isinstance(batch, (list, tuple)):
        items = [moved(item, device) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def mixing(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context that allows mixing CPU and ``device`` tensors.

    The trainer evaluates in it, so the data of an evaluation may stay on the CPU. If torch refuses to compute with both kinds,
    the context moves the CPU tensors and calls the function again; it does not change any other call. It never moves a tensor
    that a function changes in place, and copies a tensor for NumPy to the CPU.
    """
    return nullcontext() if device.type == "cpu" else _Mixing(device)


class _Mixing(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except (RuntimeError, TypeError):
            name = getattr(func, "__name__", "")
            if name in ("numpy", "__array__") and self._is_here(args[0]):
                return func(args[0].cpu(), *args[1:], **kwargs)
            changed = 1 if name.startswith("__i") or name == "__setitem__" or (name[-1:] == "_" != name[-2:-1]) else 0
            fixed, free = args[:changed], (args[changed:], kwargs)
            given = list(_tensors(free))
            if "out" in kwargs or all(one.device.type != "cpu" for one in given):
                raise
            if not any(map(self._is_here, (*_tensors(fixed), *given))):
                raise
            positional, named = moved(free, self._device)
        return func(*fixed, *positional, **named)

    def _is_here(self, tensor: Tensor) -> bool:
        return tensor.device.type == self._device.type


def _tensors(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (Mapping, list, tuple)):
        for one in tree.values() if isinstance(tree, Mapping) else tree:
            yield from _tensors(one)
