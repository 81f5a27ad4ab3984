"""A project whose loader has worker processes, and that sends a signal to its whole process group.

At step 3, or in the first evaluation, by when workers have batches under way. ``start`` is how they are started, ``loader``
who has them: the training's loader (``resumable`` or ``stateful``), a plain ``DataLoader`` in the evaluation, or a pool.
"""

import multiprocessing
import os
import signal
import time
from typing import Any

import torch
import torch.multiprocessing
from torch import nn
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import mltrain


class Config(mltrain.Config):
    epochs: int = 2
    device: str = "cpu"
    num_threads: int | None = 1
    loader: str = "resumable"
    start: str = "fork"


class Slow(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        time.sleep(0.02)
        return torch.full((4,), index / 32.0), torch.ones(1)


def squared(number: int) -> int:
    time.sleep(0.05)
    return number * number


def send() -> None:
    """As ``scancel`` and a terminal do; ``EACH``: to one process after the other, children first, as systemd does."""
    if "SIGNAL" not in os.environ:
        return
    number = getattr(signal, os.environ["SIGNAL"])
    if "EACH" not in os.environ:
        os.killpg(0, number)
        return
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, number)
    os.kill(os.getpid(), number)


class Step(mltrain.Supervised):
    config: Config
    done = 0

    def __call__(self, batch: Any) -> Any:
        result = super().__call__(batch)
        self.done += 1
        if self.config.loader in ("resumable", "stateful") and self.done == 3:
            send()
        return result


def build(config: Config) -> mltrain.Task:
    torch.multiprocessing.set_start_method(config.start, force=True)
    net = nn.Linear(4, 1)
    step = Step(net, nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.01))
    step.config = config
    if config.loader == "stateful":
        loader: Any = StatefulDataLoader(Slow(), batch_size=4, num_workers=2)
    else:
        loader = mltrain.ResumableLoader(Slow(), 4, num_workers=2 if config.loader == "resumable" else 0)

    def evaluate() -> dict[str, float]:
        total = 0.0
        if config.loader == "evaluation":
            for number, (inputs, _) in enumerate(DataLoader(Slow(), batch_size=4, num_workers=2)):
                total += float(net(inputs).sum())
                if number == 1:
                    send()
        elif config.loader == "pool":
            with multiprocessing.Pool(2) as pool:
                results = pool.map_async(squared, range(8), chunksize=1)
                send()
                total = float(sum(results.get()))
        return {"val/loss": total}

    return mltrain.Task(step, loader, evaluate=evaluate)
