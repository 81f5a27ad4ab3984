"""What ranks check of sharded models; ``python -m tests.distributed.sharded_checks NAME``, once a rank."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from mltrain.distributed.gradients import Gradients
from mltrain.distributed.loading import verified, with_pieces, without_pieces
from mltrain.distributed.pieces import gathered, placed
from mltrain.distributed.sharding import shard
from mltrain.distributed.world import World
from mltrain.errors import DamagedCheckpoint, NonFiniteLoss, StateMismatch, StorageError, UsageError
from mltrain.gradient_norm import clip
from mltrain.state import TrainState
from mltrain.testing import differences
from tests.distributed.blocks import ID, Keeper, built, restored, save, store_of, task_of
from tests.support.folders import flip


def _compare(world: World, net: nn.Module, optimizer: torch.optim.Optimizer, layout: Any, inputs: torch.Tensor) -> None:
    """Train shards beside a whole model; compare weights and norms. Three steps, on parts of unequal weight."""
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
    assert save(world, "two", state.parts) is None
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


def resharding(world: World) -> None:
    """Three ranks load the checkpoints of two and four ranks. As shards and as replicas."""
    for name, width in (("two", 5), ("four", 4)):
        for seed, shards in ((8, True), (9, False)):
            net, optimizer = built(seed, width)
            if shards:
                shard(world, task_of(net, optimizer), "cpu")
            restored(world, name, {"model": net, "optimizer": optimizer})


def there_and_back(world: World) -> None:
    """Shards load what replicas save, and the other way round. Bit by bit, batch norm included."""
    net, optimizer = built(0)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(5, 6)).square().mean().backward()
        optimizer.step()
    before = TrainState({"model": net, "optimizer": optimizer}).state_dict()
    if world.rank == 0:
        keeper = Keeper("replicas", {})
        keeper.save(before)
        keeper.disk.wait()
        assert keeper.failure is None
    world.gather(None)
    manifest = store_of("replicas").manifest(ID)
    assert manifest is not None and not manifest.shards  # the format of a single process
    other, second = built(7)
    shard(world, task_of(other, second), "cpu")
    sharded: dict[str, Any] = {"model": other, "optimizer": second}
    TrainState(sharded).restore(placed(store_of("replicas").load(manifest), sharded))
    assert save(world, "back", sharded) is None
    world.gather(None)
    third, last = built(9)
    replicas: dict[str, Any] = {"model": third, "optimizer": last}
    restored(world, "back", replicas)
    after = TrainState(replicas).state_dict()
    assert int(after["model"]["norm.num_batches_tracked"]) == 3
    assert list(differences(before, after)) == []


def failing(world: World) -> None:
    """One rank cannot write, or holds NaN: nothing is committed, all go on, and the next save is complete."""
    net, optimizer = built(0)
    shard(world, task_of(net, optimizer), "cpu")
    net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    parts = {"model": net, "optimizer": optimizer}
    if world.rank == 1:
        import mltrain.checkpoint.shards as module

        real = module.write_file

        def full(file: Path, content: Any) -> Any:
            real(file, content)
            raise StorageError("No space left on device")

        module.write_file = full
    failure = save(world, "failing", parts)
    if world.rank == 1:
        module.write_file = real
    else:
        assert isinstance(failure, StorageError)
        assert "Rank 1: No space left on device" in str(failure)
        assert store_of("failing").names() == []
        assert list((Path(os.environ["FOLDER"]) / "failing" / "checkpoints").iterdir()) == []
    with torch.no_grad():
        kept = net.last.weight.detach().to_local().clone()
        net.last.weight.detach().to_local()[0, 0] = float("nan") if world.rank == 1 else 0.0
    failure = save(world, "failing", parts)
    assert world.rank == 1 or isinstance(failure, NonFiniteLoss)
    assert store_of("failing").names() == []
    net.last.weight.detach().to_local().copy_(kept)
    assert save(world, "failing", parts) is None
    world.gather(None)
    assert store_of("failing").names() == [ID]
    restored(world, "failing", parts)
    if world.rank == 0:
        (folder,) = (Path(os.environ["FOLDER"]) / "failing" / "checkpoints").iterdir()
        flip(folder / "model-r00001.safetensors")
    world.gather(None)
    store = store_of("failing")
    manifest = store.manifest(ID)
    assert manifest is not None
    with pytest.raises(DamagedCheckpoint, match=r"model-r00001\.safetensors of .* has another SHA-256"):
        verified(world, lambda: store, manifest)
    with pytest.raises(DamagedCheckpoint, match="has another SHA-256"):  # where the first look came before the damage
        with_pieces(without_pieces(store, manifest)[0], parts, store.assembly(manifest), world.channel)  # type: ignore[arg-type]


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
    assert save(world, "four", {"model": net, "optimizer": optimizer}) is None
    if world.rank == 1:  # which holds what rank 0 holds of all that is not tensor parallel
        net.first.weight.detach().to_local().add_(1)
    with pytest.raises(StateMismatch, match=r"several hold the same piece of model\.first\.weight"):
        save(world, "unequal", {"model": net, "optimizer": optimizer})


def refusals(world: World) -> None:
    """All ranks refuse parts that would silently stay untrained."""
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
    with pytest.raises(UsageError, match="got a str"):
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
