"""A project with a worker that signals the whole training.

It does so while the training waits for more. ``start`` is how they are started, ``loader`` who has them: the training's
loader (``resumable`` or ``stateful``), a plain ``DataLoader`` in the evaluation, or a pool.
"""

import multiprocessing
import os
import signal
import time
from typing import Any

import psutil
import torch
import torch.multiprocessing
from torch import nn
from torch.utils.data import DataLoader, get_worker_info
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
        if index == 13 and get_worker_info() is not None:
            send()
            if "DEATH" in os.environ:
                os.kill(os.getpid(), int(os.environ["DEATH"]))
        return torch.full((4,), index / 32.0), torch.ones(1)


def squared(number: int) -> int:
    time.sleep(0.05)
    if number == 3:
        send()
    return number * number


def send() -> None:
    """As ``scancel`` and a terminal do; ``EACH``: to one process after the other, children first, as systemd does."""
    if "SIGNAL" not in os.environ:
        return
    number = getattr(signal, os.environ["SIGNAL"])
    if "EACH" not in os.environ:
        os.killpg(0, number)
        return
    training = next(process for process in psutil.Process().parents() if process.pid == os.getpgid(0))
    for process in [*training.children(recursive=True), training]:
        process.send_signal(number)


def build(config: Config) -> mltrain.Task:
    torch.multiprocessing.set_start_method(config.start, force=True)
    net = nn.Linear(4, 1)
    step = mltrain.Supervised(net, nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.01))
    if config.loader == "stateful":
        loader: Any = StatefulDataLoader(Slow(), batch_size=4, num_workers=2)
    else:
        loader = mltrain.ResumableLoader(Slow(), 4, shuffle=False, num_workers=2 if config.loader == "resumable" else 0)

    def evaluate() -> dict[str, float]:
        total = 0.0
        if config.loader == "evaluation":
            for inputs, _ in DataLoader(Slow(), batch_size=4, num_workers=2):
                total += float(net(inputs).sum())
        elif config.loader == "pool":
            with multiprocessing.Pool(2) as pool:
                total = float(sum(pool.map(squared, range(8), chunksize=1)))
        return {"val/loss": total}

    return mltrain.Task(step, loader, evaluate=evaluate)
