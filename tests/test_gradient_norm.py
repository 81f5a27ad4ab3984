"""The norm of gradients, and clipping to it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mltrain.steps import Supervised
from tests.support.stepped import batch, network, step_of


def test_a_gradient_is_clipped_and_its_norm_before_is_returned() -> None:
    net = network()
    before = copy.deepcopy(net.state_dict())
    got = step_of(net, clip=1e-3)((batch()[0] * 100, batch()[1]))
    moved_by = torch.sqrt(sum((net.state_dict()[name] - before[name]).square().sum() for name in before))
    assert got["grad_norm"] > 1
    assert torch.allclose(moved_by, torch.tensor(0.1 * 1e-3), rtol=1e-3)
    assert "grad_norm" not in step_of(network())(batch())


@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_gradient_of_everything_that_is_updated_counts(clip: float | None) -> None:
    net = network()
    frozen, other = net[0].weight.requires_grad_(False), nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([*net.parameters(), other], lr=0.1)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + other.square().sqrt()

    step = Supervised(net, loss, optimizer, clip=clip)
    assert not torch.isfinite(torch.as_tensor(step(batch())["grad_norm"]))
    assert frozen.grad is None
    assert other.item() == 0


def test_a_gradient_whose_norm_has_no_number_of_its_dtype_is_finite() -> None:
    net = nn.Linear(3, 2)
    step = Supervised(net, lambda output, _: output.sum() * 1e30, torch.optim.SGD(net.parameters(), lr=1e-30))
    before = net.bias.detach().clone()
    assert step(batch()).keys() == {"loss"}
    assert torch.allclose(net.bias, before - 8)


def test_sparse_gradients_are_looked_at_as_well() -> None:
    net = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Flatten(), nn.Linear(6, 2))
    step = Supervised(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1))
    words, targets = torch.tensor([[0, 1], [1, 1]]), torch.tensor([0, 1])
    assert step((words, targets)).keys() == {"loss"}
    with torch.no_grad():
        net[0].weight[2] = float("nan")
    assert not torch.isfinite(torch.as_tensor(step((words + 1, targets))["grad_norm"]))
