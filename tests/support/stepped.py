"""A small network, a batch, and a supervised step."""

from typing import Any

import torch
from torch import Tensor, nn

from mltrain.steps import Supervised


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, 3, generator=generator)
    return inputs, (inputs.sum(1) > 0).long()


def network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def step_of(net: nn.Module, **options: Any) -> Supervised:
    return Supervised(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1), **options)
