"""Compares digests of the ranks' states, to find rank-local parts."""

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mltrain.checkpoint.flat_tensors import as_bytes, is_sharded
from mltrain.checkpoint.pytree import flatten, unflatten
from mltrain.distributed.world import World
from mltrain.errors import StateMismatch, shortened
from mltrain.trainer.ranks import RNG

log = logging.getLogger(__name__)


def digest(tensor: Tensor) -> str:
    """Return a digest of a tensor's bytes.

    On the CPU this is SHA-256. On another device, so that only 16 bytes are copied, it is the sum of all 32-bit words and
    their sum weighted by position (Fletcher 1982), modulo 2**64. For a sharded tensor, whose pieces differ between ranks, it
    is the placements and the shape of the mesh.
    """
    if is_sharded(tensor):
        return f"sharded {tensor.placements} {tensor.device_mesh.shape}"  # type: ignore[attr-defined]
    content = as_bytes(tensor.detach())
    if content.device.type == "cpu":
        return hashlib.sha256(content.numpy().data).hexdigest()
    return sums(content)


def sums(content: Tensor, at_once: int = 2**22) -> str:
    """Return the two sums of :func:`digest`, and remaining bytes.

    Args:
        content: bytes.
        at_once: words that are widened to 64 bits at a time.
    """
    tail = bytes(content[content.numel() & ~3 :].cpu().tolist())
    words = content[: content.numel() & ~3].view(torch.int32)
    first = second = 0
    for begin in range(0, words.numel(), at_once):
        chunk = words[begin : begin + at_once].to(torch.int64)
        places = torch.arange(begin + 1, begin + 1 + chunk.numel(), device=chunk.device)
        both = torch.stack([chunk.sum(), (chunk * places).sum()]).tolist()
        first, second = (first + both[0]) % 2**64, (second + both[1]) % 2**64
    return f"{first:016x}{second:016x}{tail.hex()}"


def digests(state: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each tensor by name.

    The key "" has the digest of all plain values.
    """
    flat = flatten(state, sharded=True)
    found = {name: f"{one.dtype} {tuple(one.shape)} {digest(one)}" for name, one in flat.tensors.items()}
    return {**found, "": hashlib.sha256(json.dumps(flat.tree, sort_keys=True).encode()).hexdigest()}


def own_parts(world: World, state: Mapping[str, Any], trained: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rank-local parts of the state, by rank.

    These are the random number generators, parts whose attribute ``rank_local`` is true, and parts that differ between ranks
    and are no model, optimizer or schedule.

    Args:
        world: the ranks.
        state: name to state of every part on this rank.
        trained: name to part of the task.

    Raises:
        StateMismatch: a model, an optimizer or a schedule differs between ranks, so they do not train the same model.
    """
    declared = {RNG, *(name for name, part in trained.items() if getattr(part, "rank_local", False))}
    answers = world.gather((declared, {name: digests({name: part}) for name, part in state.items() if name != RNG}))
    declared, found = set().union(*(names for names, _ in answers)), [found for _, found in answers]
    own = [name for name in state if name in declared]
    for name, first in found[0].items():
        if name in declared:
            continue
        others = [rank for rank in range(1, world.size) if found[rank].get(name) != first]
        if not others:
            continue
        if _is_common(trained.get(name)):
            differing = {
                key or "settings"
                for rank in others
                for key, value in first.items()
                if found[rank].get(name, {}).get(key) != value
            }
            raise StateMismatch(
                f"all ranks: {name!r} is not the same on rank {', '.join(map(str, others))} as on rank 0 "
                f"({shortened(sorted(differing))})",
                advice="Expected a step that changes its model only through .grad and optimizers. Try: resume from the last "
                "checkpoint with such a step, or with one process.",
            )
        own.append(name)
    flat = flatten({name: state[name] for name in own if name in state})
    on_cpu = {name: tensor.detach().cpu() for name, tensor in flat.tensors.items()}
    return [unflatten(tree, tensors) for tree, tensors in world.gather((flat.tree, on_cpu))]


def _is_common(part: Any) -> bool:
    return isinstance(part, (nn.Module, torch.optim.Optimizer)) or hasattr(part, "optimizer")
