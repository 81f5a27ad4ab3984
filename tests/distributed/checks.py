"""What two ranks check of the parts of mltrain.distributed; ``python -m tests.distributed.checks NAME``, once a rank."""

import os
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassAUROC

from mltrain.data import ResumableLoader
from mltrain.distributed.gradients import Gradients
from mltrain.distributed.replicas import digests, own_parts
from mltrain.distributed.step import AgreedStop, synchronized
from mltrain.distributed.together import Together
from mltrain.distributed.world import World
from mltrain.errors import PeerLost, StateMismatch, UsageError
from mltrain.rng import Rng
from mltrain.signals import Terminated
from mltrain.steps import Supervised
from mltrain.trainer.ports import NeverStop


def gradients(world: World) -> None:
    """Uneven parts, a branch on one rank, two backwards, buffers."""
    torch.manual_seed(0)
    net, alone, never = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
    norm = nn.BatchNorm1d(3)
    inputs = torch.randn(5, 3)
    averaged = Gradients(world, [net, alone, never, norm, torch.optim.SGD(net.parameters())])
    part = inputs[:2] if world.rank == 0 else inputs[2:]
    averaged.weigh(len(part) / len(inputs))
    averaged.expect()
    averaged.expect()
    for half in (1.0, 2.0):
        loss = half * (net(part) ** 2).mean()
        if world.rank == 1 and half == 2.0:
            loss = loss + alone(part).sum()
        loss.backward()
    whole = nn.Linear(3, 2)
    whole.load_state_dict(net.state_dict())
    (3.0 * (whole(inputs) ** 2).mean()).backward()
    assert net.weight.grad is not None and whole.weight.grad is not None
    torch.testing.assert_close(net.weight.grad, whole.weight.grad)
    assert alone.weight.grad is not None and alone.weight.grad.abs().sum() > 0
    assert never.weight.grad is None
    kept = world.gather([one.grad.tolist() for one in (*net.parameters(), *alone.parameters()) if one.grad is not None])
    assert kept[0] == kept[1]
    norm(inputs[world.rank : world.rank + 3])
    averaged.share_buffers()
    means = world.gather(norm.running_mean.tolist() if norm.running_mean is not None else None)
    assert means[0] == means[1]


def passes(world: World) -> None:
    """One rank does a backward pass more than the other: both raise instead of waiting for each other."""
    net = nn.Linear(3, 2)
    averaged = Gradients(world, [net])
    averaged.expect()
    net(torch.randn(2, 3)).sum().backward()
    with pytest.raises(UsageError, match="different numbers of backward passes"):
        if world.rank == 1:
            net(torch.randn(2, 3)).sum().backward()
        averaged.end_step()


def parts(world: World) -> None:
    """Common parts are verified, local parts collected, differing models refused."""
    net = nn.Linear(3, 2)
    net.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.zeros(2)})

    class Counter:
        def __init__(self) -> None:
            self.count = world.rank

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count, "seen": torch.arange(self.count)}

    class Accumulator(Counter):
        rank_local = True

        def __init__(self) -> None:
            self.count = 7  # the same on both ranks, and yet of different batches

    trained: dict[str, Any] = {"model": net, "counter": Counter(), "accumulator": Accumulator()}
    torch.manual_seed(world.rank)
    state = {name: part.state_dict() for name, part in trained.items()} | {"rng": Rng().state_dict()}
    own = own_parts(world, state, trained)
    assert [one["counter"]["count"] for one in own] == [0, 1]
    assert [sorted(one) for one in own] == [["accumulator", "counter", "rng"]] * 2
    assert not own[0]["rng"]["torch"].equal(own[1]["rng"]["torch"])
    with torch.no_grad():
        net.weight[1, 2] += 1e-7 * world.rank
    with pytest.raises(StateMismatch, match=r"'model' is not the same on rank 1 as on rank 0 .*weight"):
        own_parts(world, {**state, "model": net.state_dict()}, trained)


def sharing(world: World) -> None:
    """Every rank holds the same state, whatever dtype and shape."""
    state = {
        "a": {"half": torch.ones(2, 3, dtype=torch.bfloat16), "none": torch.zeros(0, 4), "scalar": torch.tensor(3)},
        "b": [torch.tensor([True, False]), torch.tensor(1j), 4, "five", None, torch.arange(6).view(2, 3).t()],
    }
    got = world.share_state(state if world.rank == 0 else None)
    assert digests(got) == digests(state)
    assert world.share(world.rank) == 0
    assert world.gather(world.rank) == [0, 1]


def refusing(world: World) -> None:
    """One rank refuses, and all raise."""
    world.agree(None)
    if world.rank == 1:
        with pytest.raises(UsageError):
            world.agree(UsageError("mine"))
        with pytest.raises(Terminated):
            world.agree(Terminated("SIGTERM"))
    else:
        for text, code in (("UsageError: mine", 2), ("Terminated: SIGTERM", 143)):
            with pytest.raises(PeerLost, match=f"Rank 1 refuses: {text}") as lost:
                world.agree(None)
            assert (lost.value.rank, lost.value.exit_code) == (1, code)


def leaving(world: World) -> None:
    """One rank fails; the other raises its reason at once, before its own time-out ends."""
    if world.rank == 1:
        world.__exit__(StateMismatch, StateMismatch("this", advice="Do that."), None)
        return
    with pytest.raises(PeerLost) as lost:
        world.gather("anybody?")
    assert (lost.value.rank, lost.value.exit_code) == (1, 8)
    assert "Rank 1 ended: StateMismatch: The checkpoint does not fit this." in str(lost.value)


def vanishing(world: World) -> None:
    """One rank is gone without a word."""
    if world.rank == 1:
        os._exit(0)
    with pytest.raises(PeerLost, match="Another rank ended or did not answer within 60 s"):
        world.gather("anybody?")


def failing(world: World) -> None:
    """One rank fails: all raise, and may still talk."""
    values = [{"a": 1.0}, {"a": 3.0}]
    assert Together(world, lambda: values[world.rank], "It")() == values

    def fails() -> dict[str, float]:
        if world.rank == 1:
            raise KeyError("mine")
        return {}

    if world.rank == 1:
        with pytest.raises(KeyError):
            Together(world, fails, "It")()
    else:
        with pytest.raises(PeerLost, match="It on rank 1 failed: KeyError: 'mine'"):
            Together(world, fails, "It")()
    assert world.gather(world.rank) == [0, 1]


def waiting(world: World) -> None:
    """A failure ends the other rank's wait in a collective."""

    def fails() -> dict[str, float]:
        if world.rank == 1:
            raise KeyError("mine")
        world.sum(torch.ones(1))
        return {}

    if world.rank == 1:
        with pytest.raises(KeyError) as failed:
            Together(world, fails, "It")()
        world.__exit__(KeyError, failed.value, None)
        return
    with pytest.raises(PeerLost, match="Rank 1 ended: KeyError: 'mine'"):
        Together(world, fails, "It")()


def supervised(world: World, items: int, loss: Any, **metrics: Any) -> tuple[Any, ResumableLoader, nn.Module]:
    """Return a shared step, its loader, and its model."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    step = Supervised(net, loss, torch.optim.SGD(net.parameters(), lr=0.1), metrics=metrics)
    loader = ResumableLoader(torch.utils.data.TensorDataset(torch.randn(items, 3), torch.arange(items) % 2), 4)
    loader.divide(world.rank, world.size)
    gradients = Gradients(world, step.parts().values())
    return synchronized(step, world, loader, gradients, AgreedStop(NeverStop())), loader, net


def unequal(world: World) -> None:
    """Rank 0 gets no item; both compute the metrics."""
    metrics = {"accuracy": MulticlassAccuracy(2), "auroc": MulticlassAUROC(2)}
    step, loader, _ = supervised(world, 1, nn.functional.cross_entropy, **metrics)
    for _ in range(2):
        for batch in loader:
            step(batch)
            assert loader.weight == world.rank
        measured = step.epoch_metrics()
        assert measured.keys() == metrics.keys()
        assert set(world.gather(measured["accuracy"])) <= {0.0, 1.0}


def infinite(world: World) -> None:
    """An infinite loss on one rank trains neither."""

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, labels) + (torch.inf if world.rank == 1 else 0.0)

    step, loader, net = supervised(world, 4, loss)
    before = net.weight.detach().clone()
    for batch in loader:
        assert step(batch)["loss"] == torch.inf
    assert net.weight.equal(before)


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    for name in arguments:
        world = World(grace=1.0)
        globals()[name](world)
        if name not in ("leaving", "vanishing", "waiting"):
            world.__exit__(None, None, None)
    sys.exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
