"""Norm and clipping of gradients, including gradients sharded over processes."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def gradients_of(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Return the existing gradients of parameters; of a sparse gradient its values."""
    gradients = (parameter.grad.detach() for parameter in parameters if parameter.grad is not None)
    return [gradient._values() if gradient.is_sparse else gradient for gradient in gradients]


def norm_of(parameters: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients, a scalar tensor.

    For sharded gradients it is the norm of the whole gradients, and every process that holds a piece has to call it.
    """
    norms = [_whole(nn.utils.get_total_norm(alike)) for alike in _by_mesh(gradients_of(parameters))]
    return norms[0] if len(norms) == 1 else nn.utils.get_total_norm(norms)


def clip(parameters: Iterable[Tensor], largest: float) -> Tensor:
    """Clip the gradients to an L2 norm of ``largest``; return the norm before."""
    held = list(parameters)
    norm = norm_of(held)
    for alike in _by_mesh([parameter for parameter in held if parameter.grad is not None], lambda one: one.grad):
        nn.utils.clip_grads_with_norm_(alike, largest, norm)
    return norm


def _by_mesh(tensors: Iterable[Tensor], looked_at: Any = lambda one: one) -> list[list[Tensor]]:
    """Group tensors by device mesh: torch does not combine different meshes."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(getattr(looked_at(tensor), "device_mesh", None), []).append(tensor)
    return list(groups.values()) or [[]]


def _whole(norm: Any) -> Tensor:
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole
