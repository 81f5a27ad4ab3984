"""Models with sharded parameters, and their optimizers.

torch does the sharding: ``fully_shard`` (FSDP2) by default, or a project's ``Task(shard=...)``. This module does the rest:
equal weights before, optimizers over the new parameters after, and weighted gradients.
"""

import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from mltrain.checkpoint.flat_tensors import is_sharded
from mltrain.distributed.gradients import Replicas
from mltrain.distributed.world import World
from mltrain.errors import UsageError, shortened
from mltrain.restoring.optimizers import is_optimizer
from mltrain.task import Task


class Shards(Replicas):
    """The sharded models of a task.

    Args:
        world: all processes.
        mesh: of the processes that train different parts of a batch.
        modules: name to sharded module.

    Raises:
        UsageError: a parameter is sharded over that mesh without ``fully_shard``.
    """

    def __init__(self, world: World, mesh: DeviceMesh, modules: Mapping[str, nn.Module]) -> None:
        self.rank, self.ranks = mesh.mesh.flatten().tolist().index(world.rank), mesh.size()
        self.share = mesh.size() / world.size
        self._sum = _WeightedSum(mesh.size())
        for name, module in modules.items():
            managed = {
                id(one) for part in module.modules() if isinstance(part, FSDPModule) for one in part.parameters()
            }
            for key, parameter in module.named_parameters():
                if is_sharded(parameter) and id(parameter) not in managed and mesh.size() > 1:
                    raise UsageError(
                        f"{name}.{key} is sharded without fully_shard, so nothing averages its gradients over the "
                        f"{mesh.size()} processes that train different batches. Expected fully_shard over that mesh. Try: "
                        "fully_shard(model, mesh=...) as the last line of Task(shard=...)"
                    )
            for part in module.modules():
                if isinstance(part, FSDPModule):
                    part.set_custom_reduce_scatter(self._sum)  # type: ignore[arg-type] # it has all methods that are called

    def weigh(self, weight: float) -> None:
        """Set the weight of this process's next gradients."""
        self._sum.weight = weight


class _WeightedSum:
    """A ``ReduceScatter`` of FSDP2 with a weight for each process.

    Args:
        ranks: number of processes that FSDP2 would take the mean over.
    """

    def __init__(self, ranks: int) -> None:
        self.weight = 1.0 / ranks
        self._ranks = ranks

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        # Undoes FSDP2's own divisions: by all ranks before and after a sum, and by the replicas of HSDP after a mean.
        divided = self._ranks / group.size() if op == dist.ReduceOp.AVG else self._ranks
        input_tensor.mul_(self.weight * divided)
        renamed = getattr(dist, "reduce_scatter_single", None)  # its name since torch 2.13
        reduce_scatter = renamed if renamed is not None else dist.reduce_scatter_tensor
        return reduce_scatter(output_tensor, input_tensor, group=group, async_op=async_op)


def shard(world: World, task: Task, device: str) -> Shards:
    """Shard a task's models in place, and update its optimizers.

    All processes call this at once. The models start with rank 0's weights.

    Args:
        world: all processes.
        task: with its models, built on all processes.
        device: type of the device that trains.

    Raises:
        UsageError: the task has no model, a model is sharded already, or something still holds unsharded parameters.
    """
    if not hasattr(FSDPModule, "set_custom_reduce_scatter"):
        raise UsageError(
            f"strategy=fsdp is not supported by this torch. Expected one with FSDPModule.set_custom_reduce_scatter, got "
            f"{torch.__version__}. Try: pip install 'torch>=2.13', or strategy=ddp"
        )
    parts = task.parts()
    modules = {name: part for name, part in parts.items() if isinstance(part, nn.Module) and _has_parameters(part)}
    inner = {id(one) for part in modules.values() for one in part.modules() if one is not part}
    modules = {name: part for name, part in modules.items() if id(part) not in inner}
    optimizers = {name: part for name, part in parts.items() if is_optimizer(part)}
    _check(modules, optimizers)
    _share(world, modules)
    before = {(name, key): one for name, module in modules.items() for key, one in _named(module)}
    mesh = task.shard() if task.shard is not None else _by_default(world, modules, device)
    mesh = mesh if mesh is not None else init_device_mesh(device, (world.size,))
    if not isinstance(mesh, DeviceMesh):
        raise UsageError(
            "shard() of the task returned the wrong type. Expected the DeviceMesh over which batches are divided, or None, "
            f"got a {type(mesh).__name__}"
        )
    after = {name: dict(_named(module)) for name, module in modules.items()}
    new = {id(one): after[name].get(key) for (name, key), one in before.items()}
    for name, optimizer in optimizers.items():
        for group in optimizer.param_groups:  # type: ignore[attr-defined]
            for index, one in enumerate(group["params"]):
                replaced = new.get(id(one), one)
                if replaced is None:
                    raise UsageError(
                        f"A parameter of the optimizer {name!r} has another name in the sharded model. Expected shard() to "
                        "keep all names. Try: fully_shard and parallelize_module, which work in place"
                    )
                group["params"][index] = replaced
                del replaced, one
    gone = {f"{name}.{key}": weakref.ref(one) for (name, key), one in before.items() if new[id(one)] is not one}
    del before, new
    _check_gone(gone)
    return Shards(world, mesh, modules)


def _by_default(world: World, modules: Mapping[str, nn.Module], device: str) -> DeviceMesh:
    mesh = init_device_mesh(device, (world.size,))
    for module in modules.values():
        lists = [one for one in module.modules() if isinstance(one, nn.ModuleList)]
        for block in (child for one in reversed(lists) for child in one):
            if _has_parameters(block) and not isinstance(block, (nn.ModuleList, nn.ModuleDict)):
                fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
    return mesh


def _share(world: World, modules: Mapping[str, nn.Module]) -> None:
    for module in modules.values():
        for tensor in (*module.parameters(), *module.buffers()):
            world.broadcast(tensor.detach())


def _check(modules: Mapping[str, nn.Module], optimizers: Mapping[str, Any]) -> None:
    if not modules:
        raise UsageError(
            "The task has no model to shard. Expected modules with parameters in parts() of the step or in Task(state=...). "
            "Try: strategy=ddp"
        )
    for name, module in modules.items():
        if any(is_sharded(one) for one in module.parameters()):
            raise UsageError(
                f"The part {name!r} is sharded by build(), which runs on one process after the other. Expected a whole model. "
                "Try: shard it in Task(shard=...), which runs on all processes at once"
            )
    for name, optimizer in optimizers.items():
        if getattr(optimizer, "state", None):
            raise UsageError(
                f"The optimizer {name!r} has a state before its model is sharded. Expected an optimizer without a step"
            )


def _check_gone(parameters: Mapping[str, Any]) -> None:
    """Check that nothing holds parameters of the unsharded model."""
    held = [name for name, one in parameters.items() if one() is not None]
    if held:
        gc.collect()
        held = [name for name, one in parameters.items() if one() is not None]
    if held:
        raise UsageError(
            f"Something holds on to parameters from before the model was sharded: {shortened(held)}. Expected the step and "
            "the loss to reach parameters through the model or an optimizer. Try: model.parameters() where they are used, in "
            "place of a list made in build()"
        )


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _named(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    yield from module.named_parameters(remove_duplicate=False)
