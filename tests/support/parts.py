"""Parts of a training, and states made of them."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from mltrain.state import TrainState


def draws() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.randn()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


class Part:
    """A stateful part that holds given values and refuses others."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def state_dict(self) -> dict[str, Any]:
        return self.values

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.values = {name: state_dict[name] for name in self.values}


def trained() -> tuple[TrainState, nn.Module, Part]:
    net, part, state = nn.Linear(2, 3), Part(a=1, b=torch.zeros(2)), TrainState()
    state.add("model", net)
    state.add("part", part)
    return state, net, part


def stepped(state: TrainState) -> dict[str, Any]:
    """Train ``model`` a step with ``optimizer``; return the state's copy."""
    net, optimizer = state.parts["model"], state.parts["optimizer"]
    assert isinstance(net, nn.Module)
    assert isinstance(optimizer, torch.optim.Optimizer)
    optimizer.zero_grad()
    net(torch.randn(4, 2)).square().sum().backward()
    optimizer.step()
    return copy.deepcopy(state.state_dict())


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(2, 2)
        self.decoder = nn.Linear(2, 2)
        self.unused = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.encoder(x))


def two(groups: Callable[[Two], Any], *, wrap: Callable[[Two], nn.Module] = lambda net: net) -> TrainState:
    torch.manual_seed(0)
    net = Two()
    optimizer = torch.optim.AdamW(groups(net), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda step: 0.9**step] * len(optimizer.param_groups))
    return TrainState({"model": wrap(net), "optimizer": optimizer, "scheduler": schedule})


def in_two(net: Two) -> list[dict[str, Any]]:
    return [
        {"params": list(net.encoder.parameters()), "lr": 1e-2},
        {"params": list(net.decoder.parameters()), "lr": 1e-4},
    ]


def swapped(net: Two) -> list[dict[str, Any]]:
    return in_two(net)[::-1]


def turned(net: Two) -> list[dict[str, Any]]:
    return [{**group, "params": group["params"][::-1]} for group in in_two(net)]


def moments(state: TrainState) -> dict[str, Any]:
    """Moments and rate of every parameter by name."""
    optimizer, net = state.parts["optimizer"], state.parts["model"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert isinstance(net, nn.Module)
    names = {id(parameter): name.replace("_orig_mod.", "") for name, parameter in net.named_parameters()}
    found = {
        names[id(one)]: {"lr": group["lr"], "initial_lr": group["initial_lr"], **optimizer.state[one]}
        for group in optimizer.param_groups
        for one in group["params"]
    }
    return dict(sorted(found.items()))


class Renames(nn.Module):
    """Takes old weights, whose layer was called ``old``."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.Linear(2, 3)
        self.register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(module: nn.Module, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for key in list(state_dict):
            if key.startswith(f"{prefix}old."):
                state_dict[key.replace(f"{prefix}old.", f"{prefix}new.")] = state_dict.pop(key)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.new(x)
