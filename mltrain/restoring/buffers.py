"""Restores the buffers of modules after a skipped step."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Buffers:
    """Copies of buffers from before a step.

    A forward updates buffers such as batch norm's running means, so a step that changes no parameter can still leave NaN there.
    It may change them in place or assign new ones. A buffer without NaN that the step created or resized stays: it is a cache,
    such as a mask of ``-inf``, whose module may record the size elsewhere.

    Args:
        parts: of a training; those that are no modules are ignored.
    """

    def __init__(self, parts: Iterable[Any]) -> None:
        self._modules = [part for part in parts if isinstance(part, nn.Module)]
        self._members: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the buffers; torch counts no changes made through ``.data``."""
        before, self._kept, self._members = self._kept, {}, []
        for members in (module._buffers for part in self._modules for module in part.modules()):
            self._members.append((members, dict(members)))
            for buffer in members.values():
                if buffer is None or id(buffer) in self._kept or is_lazy(buffer):
                    continue
                _, copy = before.get(id(buffer), (None, None))
                self._kept[id(buffer)] = buffer, _copied(buffer, copy)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the buffers that changed since they were copied."""
        for members, before in self._members:
            after = dict(members)
            for name in {**after, **before}:
                now, old = after.get(name), before.get(name)
                if now is old or _is_cache(now, old):
                    continue
                if name in before:
                    members[name] = old
                else:
                    del members[name]
        for buffer, copy in self._kept.values():
            if _differs(buffer, copy) and not _is_cache(buffer, copy):
                with torch.inference_mode() if buffer.is_inference() else nullcontext():
                    if buffer.shape != copy.shape:
                        buffer.resize_(copy.shape)
                    buffer.copy_(copy)


def _is_cache(now: Tensor | None, old: Tensor | None) -> bool:
    """Whether a step created or resized a buffer without NaN."""
    if now is None or is_lazy(now) or (old is not None and not is_lazy(old) and old.shape == now.shape):
        return False
    return not bool(now.isnan().any())


def _copied(buffer: Tensor, copy: Tensor | None) -> Tensor:
    """Copy a buffer, into the memory of an earlier copy."""
    if copy is None or (copy.shape, copy.dtype, copy.device) != (buffer.shape, buffer.dtype, buffer.device):
        return buffer.clone()
    return copy.copy_(buffer)


def _differs(buffer: Tensor, copy: Tensor) -> bool:
    """Whether to write a buffer: one that shares memory among its elements cannot be."""
    return buffer.layout is not torch.strided or buffer.shape != copy.shape or not torch.equal(buffer, copy)
