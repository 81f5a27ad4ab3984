"""Keeps gradients and buffers equal on all ranks."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from mltrain.checkpoint.flat_tensors import is_sharded
from mltrain.distributed.world import World
from mltrain.errors import UsageError

_PASS, _END = 1, 2


class Replicas:
    """Full replicas of the model: each process trains its own part of each batch.

    Attributes:
        rank, ranks: index and number of the parts of a batch, for this process.
        share: factor on a process's gradient, beside the weight of its part of the batch.
    """

    share = 1.0

    def __init__(self, world: World) -> None:
        self.rank, self.ranks = world.rank, world.size

    def weigh(self, weight: float) -> None:
        """Set the weight of this process's next gradients."""


class Gradients:
    """Averages gradients over ranks after each backward pass.

    Each rank is weighted by its part of the batch, so the result is the gradient of the mean over the whole batch, also for
    parts of different sizes. One collective per dtype sums the gradients of all parameters that any rank has a gradient for,
    so a branch that only one rank took is averaged as well.

    Args:
        world: the ranks.
        parts: modules and optimizers whose parameters are averaged, except sharded ones, which FSDP2 averages.
        layout: how the ranks share models and batches. If ``None``, as replicas.

    Raises:
        UsageError: a module is lazy, or is wrapped in DistributedDataParallel already.
    """

    def __init__(self, world: World, parts: Iterable[Any], layout: Replicas | None = None) -> None:
        self._layout = layout if layout is not None else Replicas(world)
        self._weight = 1.0 / world.size
        self._world = world
        self._modules = [part for part in parts if isinstance(part, nn.Module)]
        held = [parameter for module in self._modules for parameter in module.parameters()]
        for part in parts:
            for group in getattr(part, "param_groups", ()) if isinstance(part, torch.optim.Optimizer) else ():
                held += group["params"]
        self._parameters: list[Tensor] = list({id(one): one for one in held if not is_sharded(one)}.values())
        for module in self._modules:
            if any(isinstance(one, nn.parallel.DistributedDataParallel) for one in module.modules()):
                raise UsageError(
                    "The model is wrapped in DistributedDataParallel. Expected the plain model, because mltrain averages its "
                    "gradients. Try: leave the wrapper out"
                )
        if any(isinstance(one, UninitializedParameter) for one in self._parameters):
            raise UsageError(
                "A module is lazy. Expected parameters with known shapes for several processes. "
                "Try: nn.Linear(in_features, ...) in place of nn.LazyLinear(...)."
            )
        self._hooked: set[int] = set()
        self._got: set[int] = set()

    def weigh(self, weight: float) -> None:
        """Set this rank's weight in the next batch.

        It is between 0 and 1, and the weights of all ranks sum to 1.
        """
        self._weight = weight * self._layout.share
        self._layout.weigh(weight)

    def expect(self) -> None:
        """Register a hook on each trainable parameter without one."""
        for index, parameter in enumerate(self._parameters):
            if parameter.requires_grad and index not in self._hooked:
                self._hooked.add(index)
                parameter.register_post_accumulate_grad_hook(partial(self._accumulated, index))  # type: ignore[no-untyped-call]

    def end_step(self) -> None:
        """Wait for the backward passes of all ranks.

        Raises:
            UsageError: another rank does one more pass.
        """
        self._announced(_END, set())

    def share_buffers(self) -> None:
        """Copy rank 0's buffers to all ranks, like DistributedDataParallel."""
        buffers = [one for module in self._modules for one in module.buffers() if not is_sharded(one)]
        for group in _by_kind(buffers):
            flat = _flattened(group)
            self._world.broadcast(flat)
            _unflatten(flat, group)

    def _accumulated(self, index: int, parameter: Tensor) -> None:
        if not self._got:
            engine: Any = torch.autograd.Variable._execution_engine  # as torch's FSDP2 does
            engine.queue_callback(self._average)
        self._got.add(index)

    def _announced(self, what: int, got: set[int]) -> list[int]:
        """Announce this rank's next action; return for each parameter whether any rank has a gradient."""
        reports = torch.zeros(1 + len(self._parameters), dtype=torch.uint8)
        reports[0] = what
        reports[[1 + index for index in got]] = 1
        gathered = self._world.gather_tensor(reports)
        if gathered[:, 0].min() != gathered[:, 0].max():
            raise UsageError(
                "The ranks did different numbers of backward passes in one step. Expected the same number on each. Try: "
                "drop_last=True, and with accumulate= a batch_size divisible by processes times accumulate"
            )
        reached: list[int] = gathered[:, 1:].amax(0).tolist()
        return reached

    @torch.no_grad()
    def _average(self) -> None:
        got, self._got = self._got, set()
        reached = self._announced(_PASS, got)
        trained = [one for one, by_any in zip(self._parameters, reached, strict=True) if by_any]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif parameter.grad.is_sparse:
                raise UsageError(
                    "A gradient is sparse. Expected dense gradients for several processes. "
                    "Try: nn.Embedding(..., sparse=False)."
                )
        for group in _by_kind([parameter.grad for parameter in trained if parameter.grad is not None]):
            flat = _flattened(group)
            flat *= self._weight
            self._world.sum(flat)
            _unflatten(flat, group)


def _by_kind(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    kinds: dict[Any, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    return list(kinds.values())


def _flattened(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


@torch.no_grad()
def _unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))
