"""What ranks check of sharded models; ``python -m tests.distributed.sharded_checks NAME``, once a rank."""

import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import mltrain
from mltrain.distributed.gradients import Gradients
from mltrain.distributed.pieces import gathered, placed
from mltrain.distributed.sharding import shard
from mltrain.distributed.world import World
from mltrain.errors import UsageError
from mltrain.gradient_norm import clip
from mltrain.state import TrainState


class Blocks(nn.Module):
    """A model with a list of blocks, a tied weight and sizes that no number of ranks divides."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(6, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.norm = nn.BatchNorm1d(width)
        self.last = nn.Linear(width, 6)
        self.tied = nn.Linear(width, 6)
        self.tied.weight = self.last.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = block(hidden).tanh()
        hidden = self.norm(hidden)
        return self.last(hidden) + self.tied(hidden)  # type: ignore[no-any-return]


def task_of(net: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> mltrain.Task:
    data = torch.utils.data.TensorDataset(torch.zeros(8, 6), torch.zeros(8, 6))
    step = mltrain.Supervised(net, nn.MSELoss(), optimizer)
    return mltrain.Task(step, mltrain.ResumableLoader(data, 4), **more)


def built(seed: int, width: int = 5) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    net = Blocks(width)
    return net, torch.optim.AdamW(net.parameters(), lr=0.1)


def _compare(world: World, net: nn.Module, optimizer: torch.optim.Optimizer, layout: Any, inputs: torch.Tensor) -> None:
    """Train three steps on parts of unequal weight beside a whole model, and compare weights and norms."""
    whole, other = built(0, net.norm.num_features)
    whole.load_state_dict(gathered(dict(net.state_dict())))
    averaged = Gradients(world, [net, optimizer], layout)
    net.eval(), whole.eval()
    for _ in range(3):
        part = inputs[:1] if layout.rank == 0 else inputs[1:]
        averaged.weigh(len(part) / len(inputs))
        for model, its, batch in ((net, optimizer, part), (whole, other, inputs)):
            its.zero_grad()
            (model(batch) ** 2).mean().backward()
        norms = [clip(model.parameters(), 0.3) for model in (net, whole)]
        torch.testing.assert_close(norms[0], norms[1])
        optimizer.step(), other.step()
    ours, theirs = gathered(dict(net.state_dict())), whole.state_dict()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=1e-5)


def training(world: World) -> None:
    """Weights are rank 0's; gradients, clipping and AdamW are those of one process; a state goes back bit by bit."""
    net, optimizer = built(seed=world.rank)
    layout = shard(world, task_of(net, optimizer), "cpu")
    assert (layout.rank, layout.ranks, layout.share) == (world.rank, world.size, 1.0)
    assert type(net.blocks[0]).__name__ == "FSDPLinear"  # each block by itself
    expected, _ = built(seed=0)
    assert all(map(torch.equal, gathered(dict(net.state_dict())).values(), expected.state_dict().values()))
    _compare(world, net, optimizer, layout, torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))
    state = TrainState({"model": net, "optimizer": optimizer})
    kept = gathered(state.state_dict())
    other, second = built(seed=7)
    shard(world, task_of(other, second), "cpu")
    parts: dict[str, Any] = {"model": other, "optimizer": second}
    TrainState(parts).restore(placed(kept, parts))
    again = gathered(TrainState(parts).state_dict())
    assert again["optimizer"]["state"].keys() == kept["optimizer"]["state"].keys()
    for number, own in kept["optimizer"]["state"].items():
        assert all(torch.equal(again["optimizer"]["state"][number][key], value) for key, value in own.items())
    assert all(map(torch.equal, again["model"].values(), kept["model"].values()))


def tensor_parallel(world: World) -> None:
    """Two by two: FSDP over batches, tensor parallel within; the project wraps its model itself."""
    net, optimizer = built(seed=world.rank, width=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("batches", "tensors"))

    def wrap() -> Any:
        plan: Any = {"blocks.0": ColwiseParallel(), "blocks.1": RowwiseParallel()}
        parallelize_module(net, mesh["tensors"], plan)
        fully_shard(net, mesh=mesh["batches"])
        return mesh["batches"]

    layout = shard(world, task_of(net, optimizer, shard=wrap), "cpu")
    assert (layout.rank, layout.ranks, layout.share) == (world.rank // 2, 2, 0.5)
    _compare(world, net, optimizer, layout, torch.randn(5, 6, generator=torch.Generator().manual_seed(1)))


def refusals(world: World) -> None:
    """What would silently not be trained is refused on all ranks."""
    net, optimizer = built(0)
    held = list(net.parameters())
    with pytest.raises(UsageError, match=r"holds on to parameters from before .*model\.first\.weight"):
        shard(world, task_of(net, optimizer), "cpu")
    del held
    net, optimizer = built(0)
    net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    with pytest.raises(UsageError, match="'optimizer' has a state before its model is sharded"):
        shard(world, task_of(net, optimizer), "cpu")
    net, optimizer = built(0)
    fully_shard(net)
    with pytest.raises(UsageError, match=r"'model' is sharded by build\(\)"):
        shard(world, task_of(net, optimizer), "cpu")
    net, optimizer = built(0)
    plan: Any = {"blocks.0": ColwiseParallel(), "blocks.1": RowwiseParallel()}
    task = task_of(net, optimizer, shard=lambda: parallelize_module(net, init_device_mesh("cpu", (2,)), plan) and None)
    with pytest.raises(UsageError, match="sharded without fully_shard"):
        shard(world, task, "cpu")
    net, optimizer = built(0)
    with pytest.raises(UsageError, match="returned a str"):
        shard(world, task_of(net, optimizer, shard=lambda: "mesh"), "cpu")


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    for name in arguments:
        world = World(60)
        globals()[name](world)
        world.__exit__(None, None, None)
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
