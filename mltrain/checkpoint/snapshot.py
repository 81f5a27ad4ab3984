"""A copy of a training's state in host memory, taken at a step boundary."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from mltrain.checkpoint.late_copy import LateState, Rest
from mltrain.checkpoint.pytree import flatten


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state on the host, taken at a step boundary. Nothing that the training does changes it any more.

    Attributes:
        tree: the state as JSON values, in which tensors are references (see :mod:`mltrain.checkpoint.pytree`).
        tensors: name to tensor; all on the CPU, none shares memory with a live one. Complete when the rest is.
        weights: the name of the part that is a model's weights, if there is one.
        parts: the names of all parts.
        rest: what is still to be copied.
    """

    tree: Any
    tensors: Mapping[str, torch.Tensor]
    weights: str | None
    parts: tuple[str, ...]
    rest: Rest = field(default_factory=Rest)


class HostBuffers:
    """Host memory that a snapshot is copied into, kept from checkpoint to checkpoint.

    One snapshot at a time lives in it: the caller lets go of the last one before it takes the next.

    Args:
        cuda: says whether there are CUDA devices, and waits for one.
        pin: whether the memory is page-locked. If ``None``, it is where there is a CUDA device.
    """

    def __init__(self, cuda: Any = torch.cuda, *, pin: bool | None = None) -> None:
        self._cuda = cuda
        self._late = cuda.is_available()  # copies from a GPU are queued, and waited for once
        self._pinned = self._late if pin is None else pin
        self._kept: dict[str, torch.Tensor] = {}

    def copy(self, tensors: Mapping[str, torch.Tensor], rest: Rest | None = None) -> dict[str, torch.Tensor]:
        """Copy tensors of any device into the buffers and return these, each as dense as its original.

        Args:
            tensors: by name.
            rest: takes over those that may be copied late.
        """
        copies = {}
        queued = set()
        for name, tensor in tensors.items():
            buffer = self._kept.pop(name, None)
            if buffer is None or buffer.dtype != tensor.dtype or buffer.shape != tensor.shape:
                buffer = None  # before another one is taken: never both at once
                with torch.inference_mode(False):  # else it could not be written to anywhere else
                    buffer = torch.empty_like(tensor, device="cpu", pin_memory=self._pinned)
            copies[name] = buffer
            if rest is None or not rest.takes(buffer, tensor):
                late = self._late and tensor.device.type == "cuda"
                buffer.copy_(tensor, non_blocking=late)
                queued |= {tensor.device} if late else set()
        for device in queued:  # each has queues of its own: waiting for the current device waits for no other
            self._cuda.synchronize(device)
        self._kept = copies
        return dict(copies)


WEIGHTS_NAMES = ("model", "model_state_dict", "state_dict", "net", "weights")
"""A part of one of these names that maps names to tensors is a model's weights."""


def snapshot(state: Mapping[str, Any], buffers: HostBuffers) -> Snapshot:
    """Copy a nesting of tensors and plain values into host buffers.

    Args:
        state: names to tensors and plain values; of a :class:`LateState` a part may be copied later than now.
        buffers: that it is copied into.

    Raises:
        UnsupportedValue: something is neither; the message names the path to it. Nothing has been copied then.
    """
    weights = next((name for name in WEIGHTS_NAMES if _is_weights(state.get(name))), None)
    flat = flatten(state, weights)
    rest = state.late.begin() if isinstance(state, LateState) else Rest()
    return Snapshot(flat.tree, buffers.copy(flat.tensors, rest), weights, tuple(str(name) for name in state), rest)


def _is_weights(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and all(isinstance(name, str) and name != "$" for name in part)
        and any(isinstance(value, torch.Tensor) for value in part.values())
    )
