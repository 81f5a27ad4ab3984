"""Pieces of sharded tensors, on ranks and in checkpoints."""

import collections
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from mltrain.checkpoint.flat_tensors import is_sharded
from mltrain.errors import UsageError
from mltrain.restoring.modules import names_of_parameters, spelled
from mltrain.restoring.optimizers import is_optimizer


def box(tensor: DTensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return offsets and shape of this process's piece.

    Raises:
        UsageError: the piece is not one contiguous box of the whole.
    """
    shape, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if tuple(shape) != tuple(tensor.to_local().shape) or any(one.is_partial() for one in tensor.placements):
        raise UsageError(
            f"A tensor of shape {tuple(tensor.shape)} is not sharded into contiguous pieces. Expected Shard and Replicate "
            f"placements, got {tensor.placements}. Try: fully_shard or parallelize_module"
        )
    return tuple(offsets), tuple(shape)


def cut(whole: Tensor, like: DTensor) -> DTensor:
    """Return a whole tensor sharded like another."""
    offsets, shape = box(like)
    piece = whole[tuple(slice(begin, begin + size) for begin, size in zip(offsets, shape, strict=True))]
    return sharded_like(piece.to(like.device, copy=True).contiguous(), like)


def sharded_like(piece: Tensor, like: DTensor) -> DTensor:
    """Return this process's piece as a tensor sharded like another."""
    return DTensor.from_local(
        piece, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def placed(parts: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's parts with tensors cut as sharded now.

    Args:
        parts: name to state, with whole tensors.
        trained: name to part of the current training.
    """
    new = {id(whole): cut(whole, like) for whole, like in targets(parts, trained)}
    return {name: filled(part, new) for name, part in parts.items()}


def targets(parts: Mapping[str, Any], trained: Mapping[str, Any]) -> Iterator[tuple[Tensor, DTensor]]:
    """Yield the checkpoint tensors that are sharded now.

    Each comes with a tensor of the current sharding.
    """
    names = names_of_parameters(trained)
    live = {name: one for part in trained.values() for one, name in _parameters(part, names)}
    for name, part in trained.items():
        if name not in parts:
            continue
        if is_optimizer(part):
            yield from _of_optimizer(parts[name], part, live)
        elif isinstance(part, nn.Module):
            own = part.state_dict()
            given = spelled(parts[name], part, own) if isinstance(parts[name], Mapping) else {}
            yield from _alike(given, own)
        else:
            yield from _alike(parts[name], part.state_dict())


def _parameters(part: Any, names: Mapping[int, str]) -> Iterator[tuple[Tensor, str]]:
    held = list(part.parameters()) if isinstance(part, nn.Module) else []
    held += [one for group in part.param_groups for one in group["params"]] if is_optimizer(part) else []
    yield from ((one, names[id(one)]) for one in held if id(one) in names)


def _of_optimizer(state: Any, optimizer: Any, live: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, DTensor]]:
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= state.keys():
        return
    own = [one for group in optimizer.param_groups for one in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    recorded = [name for group in state.get("parameters", ()) for name, _ in group] or [None] * len(numbers)
    for place, (number, name) in enumerate(zip(numbers, recorded, strict=False)):
        parameter = live.get(name) if name is not None else None
        parameter = own[place] if parameter is None and place < len(own) else parameter
        if is_sharded(parameter):
            found = state["state"].get(number, {})
            yield from ((one, parameter) for one in found.values() if _fits(one, parameter))  # type: ignore[misc]


def _alike(given: Any, own: Any) -> Iterator[tuple[Tensor, DTensor]]:
    """Yield the tensors of ``given`` that ``own`` has sharded."""
    if is_sharded(own):
        if _fits(given, own):
            yield given, own
    elif isinstance(own, Mapping) and isinstance(given, Mapping):
        for key, one in own.items():
            yield from _alike(given.get(key), one)
    elif isinstance(own, (list, tuple)) and isinstance(given, (list, tuple)):
        for one, two in zip(given, own, strict=False):
            yield from _alike(one, two)


def _fits(tensor: Any, like: Any) -> bool:
    return isinstance(tensor, Tensor) and not is_sharded(tensor) and tensor.dim() > 0 and tensor.shape == like.shape


def filled(tree: Any, tensors: Mapping[int, Tensor]) -> Any:
    """Return a tree with tensors replaced, found by ``id``."""
    if isinstance(tree, Tensor):
        return tensors.get(id(tree), tree)
    return _mapped(tree, lambda one: filled(one, tensors))


def gathered(tree: Any) -> Any:
    """Return a tree with sharded tensors gathered on the CPU; on all processes at once."""
    if is_sharded(tree):
        return tree.full_tensor().cpu()
    return _mapped(tree, gathered)


def has_sharded(tree: Any) -> bool:
    """Whether a tree holds a sharded tensor."""
    if isinstance(tree, Mapping):
        return any(has_sharded(one) for one in tree.values())
    return any(map(has_sharded, tree)) if isinstance(tree, (list, tuple)) else is_sharded(tree)


def _mapped(tree: Any, function: Any) -> Any:
    if type(tree) in (dict, collections.OrderedDict):
        return type(tree)((key, function(one)) for key, one in tree.items())
    return type(tree)(function(one) for one in tree) if type(tree) in (list, tuple) else tree
