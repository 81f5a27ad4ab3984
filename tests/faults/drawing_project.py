"""A training that draws from every global random generator. It draws in the training's thread, in its model and in its
step.

Between two steps, and while a step waits, nobody else may draw: the states of the generators are compared.
"""

import hashlib
import os
import random
import signal
import threading
import time
from typing import Any

import numpy as np
import torch
from torch import nn

import mltrain


class Config(mltrain.Config):
    epochs: int = 8
    device: str = "cpu"
    num_threads: int | None = 1
    log_interval: int = 1
    max_to_keep: int = 2


def digest() -> str:
    numpy = np.random.get_state(legacy=False)
    words = [repr(random.getstate()), repr(numpy["state"]["key"].tolist()), repr(numpy["state"]["pos"])]
    return hashlib.sha256("".join(words).encode() + torch.get_rng_state().numpy().tobytes()).hexdigest()


def drawn() -> float:
    return random.random() + float(np.random.rand()) + float(torch.rand(()))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(inputs * drawn() if self.training else inputs)
        return result


class Step(mltrain.Supervised):
    left: str | None = None
    done = 0

    def __call__(self, batch: Any) -> Any:
        found = digest()
        assert self.left in (None, found), "somebody drew between two steps"
        if "DRAW_ELSEWHERE" in os.environ:
            threading.Thread(target=random.random, name="a thread of somebody else's").start()
        time.sleep(0.03)  # in which other threads have their turn
        assert "DRAW_ELSEWHERE" in os.environ or digest() == found, "somebody drew during a step"
        result = {**super().__call__(batch), "draw": drawn()}
        self.done += 1
        if self.done == int(os.environ.get("KILL_AT", "0")):
            os.kill(os.getpid(), signal.SIGKILL)
        self.left = None if "DRAW_ELSEWHERE" in os.environ else digest()
        return result


def build(config: Config) -> mltrain.Task:
    inputs = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    labels = (inputs.sum(1) > 0).long()
    net = Net()
    step = Step(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), lr=0.1))
    loader = mltrain.ResumableLoader(torch.utils.data.TensorDataset(inputs, labels), 8)

    def evaluate() -> dict[str, float]:
        net.eval()
        drawn()
        return {"val/loss": float(nn.functional.cross_entropy(net(inputs), labels))}

    return mltrain.Task(step, loader, evaluate=evaluate)
