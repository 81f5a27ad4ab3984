"""What a training is at a step boundary: a named bag of stateful parts, copied out and put back as one.

The idea of the protocol is that of ``torch.distributed.checkpoint.stateful``: whatever has ``state_dict`` and
``load_state_dict`` joins by name.
"""

import logging
import random
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from mltrain.errors import StateMismatch, UsageError
from mltrain.late_copy import LateCopy, Rest
from mltrain.tree import flatten

log = logging.getLogger(__name__)


@runtime_checkable
class Stateful(Protocol):
    """Anything that can give its state away and take it back."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state: tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take over a state that :meth:`state_dict` gave."""
        ...


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: optimizer steps done.
        epoch: epochs done.
        batch: batches done in the epoch under way.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the three counters."""
        return {"step": self.step, "epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the three counters over."""
        self.step, self.epoch, self.batch = state_dict["step"], state_dict["epoch"], state_dict["batch"]


class Rng:
    """The random number generators of Python, NumPy, torch and every CUDA device, as one stateful part."""

    def __init__(self, cuda: Any = torch.cuda, mps: Any = torch.backends.mps) -> None:
        self._cuda = cuda
        self._mps = mps

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all generators of this process."""
        version, words, gauss = random.getstate()
        state = {
            "python": [version, np.array(words, dtype=np.uint32), gauss],
            "numpy": np.random.get_state(legacy=False),
            "torch": torch.get_rng_state(),
            "cuda": [],
        }
        if self._cuda.is_available():
            state |= {"cuda": self._cuda.get_rng_state_all(), "cuda_device": self._cuda.current_device()}
        if self._mps.is_available():
            state["mps"] = torch.mps.get_rng_state()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put all generators back.

        CUDA devices that this machine lacks are left out. The device that computes gets the state of the one that did.
        """
        version, words, gauss = state_dict["python"]
        random.setstate((version, tuple(int(word) for word in words), gauss))
        np.random.set_state(state_dict["numpy"])
        torch.set_rng_state(state_dict["torch"].cpu())
        states = dict(enumerate(state_dict["cuda"]))
        if self._cuda.is_available() and states:
            then, now = state_dict.get("cuda_device"), self._cuda.current_device()
            if then in states and then != now:
                states[now] = states[then]
            for device in states.keys() & set(range(self._cuda.device_count())):
                self._cuda.set_rng_state(states[device].cpu(), device)
        if "mps" in state_dict and self._mps.is_available():
            torch.mps.set_rng_state(state_dict["mps"].cpu())


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, NumPy and torch (all devices) with ``seed``, 0 <= seed < 2**32."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def own_rng(seed: int) -> Iterator[None]:
    """Run a block under random numbers of its own, and leave the generators as they were before it."""
    rng = Rng()
    before = rng.state_dict()
    seed_everything(seed)
    try:
        yield
    finally:
        rng.load_state_dict(before)


@dataclass(frozen=True)
class Snapshot:
    """A copy of a state on the host, taken at a step boundary. Nothing that the training does changes it any more.

    Attributes:
        tree: the state as JSON values, in which tensors are references (see :mod:`mltrain.tree`).
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


def snapshot(state: Mapping[str, Any], buffers: HostBuffers, late: LateCopy | None = None) -> Snapshot:
    """Copy a nesting of tensors and plain values into host buffers.

    Args:
        state: names to tensors and plain values.
        buffers: that it is copied into.
        late: says what may be copied later than now.

    Raises:
        UnsupportedValue: something is neither; the message names the path to it. Nothing has been copied then.
    """
    weights = next((name for name in WEIGHTS_NAMES if _is_weights(state.get(name))), None)
    flat = flatten(state, weights)
    rest = late.begin() if late is not None else Rest()
    return Snapshot(flat.tree, buffers.copy(flat.tensors, rest), weights, tuple(str(name) for name in state), rest)


def _is_weights(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and all(isinstance(name, str) and name != "$" for name in part)
        and any(isinstance(value, torch.Tensor) for value in part.values())
    )


@dataclass
class TrainState:
    """All that a training has to remember: its parts by name.

    Attributes:
        parts: name to stateful part; the names become part of every checkpoint.
    """

    parts: dict[str, Stateful] = field(default_factory=dict)

    def add(self, name: str, part: Stateful) -> None:
        """Let a part join.

        Raises:
            UsageError: the name is taken, or the object has no ``state_dict`` and ``load_state_dict``.
        """
        if name in self.parts:
            raise UsageError(f"Two parts of the state are called {name!r}; every part needs a name of its own.")
        if not isinstance(part, Stateful):
            raise UsageError(
                f"The part {name!r} is a {type(part).__name__} without state_dict() and load_state_dict(); "
                "only what has both can be resumed."
            )
        self.parts[name] = part

    def state_dict(self) -> dict[str, Any]:
        """Return the state of every part under its name: the live tensors, not copies."""
        return {name: dict(part.state_dict()) for name, part in self.parts.items()}

    def restore(
        self, parts: Mapping[str, Any], *, optional: Collection[str] = (), ignore_unknown: bool = False
    ) -> None:
        """Put the state of every part back, or refuse before any part is touched.

        Args:
            parts: name to state.
            optional: parts that may be missing: they stay as they are, and that is said.
            ignore_unknown: whether states that belong to no part are left out, and that is said.

        Raises:
            StateMismatch: a part is missing or unknown, or a module's tensors have other names or shapes.
        """
        missing, unexpected = self.parts.keys() - parts.keys(), parts.keys() - self.parts.keys()
        if missing & set(optional):
            log.warning("The checkpoint lacks %s; these begin anew.", ", ".join(sorted(missing & set(optional))))
        if unexpected and ignore_unknown:
            log.warning("Of the checkpoint %s is not used.", ", ".join(sorted(unexpected)))
        missing, unexpected = missing - set(optional), set() if ignore_unknown else unexpected
        if missing or unexpected:
            raise StateMismatch(
                "the parts of this training",
                missing=sorted(missing),
                unexpected=sorted(unexpected),
                advice="Give the training the same parts as the one that wrote the checkpoint.",
            )
        adapted = dict(parts)
        present = {name: part for name, part in self.parts.items() if name in parts}
        for name, part in present.items():
            if isinstance(part, nn.Module):
                adapted[name] = fitted(parts[name], part, name)
        for name, part in present.items():
            try:
                part.load_state_dict(adapted[name])
            except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
                raise StateMismatch(f"the part {name!r}: {type(error).__name__}: {error}") from error


_COMPILED = "_orig_mod."


def fitted(weights: Mapping[str, Any], module: nn.Module, name: str = "model") -> dict[str, Any]:
    """Return ``weights`` under the names that ``module`` uses, or refuse.

    ``torch.compile`` wraps a module and prefixes its names with ``_orig_mod.``; weights go either way.

    Raises:
        StateMismatch: with the missing, unexpected and reshaped names.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(key, str) for key in weights):
        raise StateMismatch(f"the module {name!r}: it holds a {type(weights).__name__} and no tensors by name")
    own = module.state_dict()
    given = {key.replace(_COMPILED, ""): value for key, value in weights.items()}
    spelled = {key.replace(_COMPILED, ""): key for key in own}
    missing, unexpected = spelled.keys() - given.keys(), given.keys() - spelled.keys()
    reshaped = [
        f"{key} {tuple(given[key].shape)} here {tuple(own[spelled[key]].shape)}"
        for key in spelled.keys() & given.keys()
        if isinstance(given[key], torch.Tensor)
        and isinstance(own[spelled[key]], torch.Tensor)
        and given[key].shape != own[spelled[key]].shape
    ]
    if missing or unexpected or reshaped:
        raise StateMismatch(
            f"the module {name!r}", missing=sorted(missing), unexpected=sorted(unexpected), reshaped=sorted(reshaped)
        )
    return {spelled[key]: value for key, value in given.items()}
