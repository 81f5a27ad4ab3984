"""Restores the buffers of modules after a skipped step."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_SMALL = 2**16
"""Batch norm updates its running means, which are small, without counting versions."""


class Buffers:
    """Copies of buffers from before a step.

    A forward updates buffers such as batch norm's running means, so a step that changes no parameter can still leave NaN there.

    Args:
        parts: of a training; those that are no modules are ignored.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self._modules = [part for part in parts if isinstance(part, nn.Module)]
        self._kept: dict[int, tuple[Tensor, int, Tensor]] = {}

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers that changed since the last call."""
        before, self._kept = self._kept, {}
        for buffer in (one for module in self._modules for one in module.buffers() if not is_lazy(one)):
            kept = before.get(id(buffer))
            if kept is None or _may_differ(*kept[:2]):
                kept = buffer, buffer._version, buffer.clone()
            self._kept[id(buffer)] = kept

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the buffers that changed since they were copied."""
        for buffer, version, copy in self._kept.values():
            if _may_differ(buffer, version):
                buffer.copy_(copy)


def _may_differ(buffer: Tensor, version: int) -> bool:
    return buffer.numel() <= _SMALL or buffer._version != version
