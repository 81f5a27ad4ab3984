"""A training with each schedule of torch. A resume changes its hyper-parameters."""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as schedules

import mltrain
from mltrain.testing import MemorySaver, MemoryTracker, StopAt

STEPS, THEN = 14, 6


class Config(mltrain.Config):
    epochs: int = 1
    device: str = "cpu"
    num_threads: int | None = 1
    lr: float = 0.1
    weight_decay: float = 0.0
    momentum: float = 0.9
    gamma: float = 0.5
    horizon: int = 20
    decay: float = 0.99
    loss_weight: float = 1.0
    warmup_steps: int = 3


class Averaged:
    """An average whose state contains its decay, as many do."""

    def __init__(self, decay: float) -> None:
        self.decay, self.shadow, self.updates = decay, torch.zeros(2), 0

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "shadow": self.shadow, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.decay, self.shadow, self.updates = state["decay"], state["shadow"], state["updates"]


Make = Callable[[Optimizer, Config], Any]

MADE: dict[str, Make] = {
    "step": lambda o, c: schedules.StepLR(o, 4, c.gamma),
    "multi-step": lambda o, c: schedules.MultiStepLR(o, [3, c.horizon // 3, 12], c.gamma),
    "exponential": lambda o, c: schedules.ExponentialLR(o, c.gamma),
    "cosine": lambda o, c: schedules.CosineAnnealingLR(o, c.horizon),
    "warm restarts": lambda o, c: schedules.CosineAnnealingWarmRestarts(o, c.horizon // 4, 2),
    "one cycle": lambda o, c: schedules.OneCycleLR(o, c.lr, total_steps=c.horizon),
    "linear": lambda o, c: schedules.LinearLR(o, c.gamma, 1.0, c.horizon // 2),
    "polynomial": lambda o, c: schedules.PolynomialLR(o, c.horizon, 2.0),
    "constant": lambda o, c: schedules.ConstantLR(o, c.gamma, c.horizon // 2),
    "cyclic": lambda o, c: schedules.CyclicLR(o, c.lr / 10, c.lr, c.horizon // 4),
    "lambda": lambda o, c: schedules.LambdaLR(o, lambda step: 1 / (1 + step / c.horizon)),
    "multiplicative": lambda o, c: schedules.MultiplicativeLR(o, lambda step: 0.5 + step / (4 * c.horizon)),
    "sequential": lambda o, c: schedules.SequentialLR(
        o,
        [schedules.LinearLR(o, 0.1, 1.0, c.warmup_steps), schedules.CosineAnnealingLR(o, c.horizon)],
        [c.warmup_steps],
    ),
    "chained": lambda o, c: schedules.ChainedScheduler(
        [schedules.ConstantLR(o, c.gamma, c.warmup_steps), schedules.ExponentialLR(o, 0.9)]
    ),
    "none": lambda o, c: None,
}
"""Every schedule of torch whose rate follows from the number of steps."""


def trained(config: Config, make: Make, until: int, parts: Any = None) -> tuple[list[Any], Any, mltrain.Trainer]:
    """Train until a step, from the start or from parts; return rates and settings a step, the state, and the trainer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    groups = [{"params": net[0].parameters()}, {"params": net[1].parameters(), "lr": config.lr / 10}]
    optimizer = SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    schedule = make(optimizer, config)
    x = torch.randn(STEPS, 2)
    step = mltrain.Supervised(
        net, lambda a, b: config.loss_weight * (a - b).square().mean(), optimizer, scheduler=schedule
    )
    loader = mltrain.ResumableLoader(torch.utils.data.TensorDataset(x, x[:, :1]), 1)
    saver = MemorySaver()
    state = {"average": Averaged(config.decay)}
    stop = StopAt(until)
    trainer = mltrain.Trainer(mltrain.Task(step, loader, state=state), config, MemoryTracker(), saver, stop)
    if parts is not None:
        trainer.restore(copy.deepcopy(parts), changed=config.changes_from(Config().resolved()))
    stop.progress = trainer.progress
    rates = [settings(optimizer), *(settings(optimizer) for _ in trainer.steps())]
    return rates, saver.checkpoints[-1].parts() if saver.checkpoints else None, trainer


def settings(optimizer: Optimizer) -> list[dict[str, float]]:
    return [{k: v for k, v in g.items() if isinstance(v, float)} for g in optimizer.param_groups]


def close(got: list[list[dict[str, float]]], expected: list[list[dict[str, float]]]) -> bool:
    return all(
        g.keys() == e.keys() and all(math.isclose(g[k], e[k], rel_tol=1e-9, abs_tol=1e-15) for k in g)
        for one, other in zip(got, expected, strict=True)
        for g, e in zip(one, other, strict=True)
    )
