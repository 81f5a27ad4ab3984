"""A small accelerate loop, in-process or as a killed command."""

import argparse
import os
import random
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from torch import nn

from mltrain import CheckpointManager
from mltrain.adapters.accelerate import MltrainTracker, load, save

EPOCHS, STEPS = 3, 30
LOADERS = {
    "plain": DataLoaderConfiguration,
    "generator": DataLoaderConfiguration,
    "seedable": lambda: DataLoaderConfiguration(use_seedable_sampler=True),
    "stateful": lambda: DataLoaderConfiguration(use_stateful_dataloader=True),
    "stream": lambda: DataLoaderConfiguration(use_stateful_dataloader=True),
}


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Numbers one after the other, which know where they are."""

    def __init__(self) -> None:
        self.place = 0

    def __iter__(self) -> Any:
        numbers = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
        while self.place < len(numbers):
            self.place += 1
            yield numbers[self.place - 1], (numbers[self.place - 1].sum() > 0).long()
        self.place = 0

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.place = state["place"]


def loader_of(kind: str) -> Any:
    if kind == "stream":
        return torch.utils.data.DataLoader(Stream(), 8)
    numbers = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(numbers, (numbers.sum(1) > 0).long())
    generator = torch.Generator().manual_seed(5) if kind == "generator" else None
    return torch.utils.data.DataLoader(data, 8, shuffle=True, generator=generator)


def evaluated(net: nn.Module) -> float:
    """Return the loss on numbers of its own; a resume may come after the last batch of an epoch."""
    numbers = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
    net.eval()
    with torch.no_grad():
        loss = nn.functional.cross_entropy(net(numbers), (numbers.sum(1) > 0).long()).item()
    net.train()
    return loss


def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)


def train(
    run: str | None,
    kind: str = "plain",
    after: Callable[[int], None] = lambda step: None,
    opened: Callable[[str], None] = lambda run_id: None,
    *,
    waiting: bool = True,
) -> str:
    """Train ten batches an epoch; return the run's id. It saves after every third batch and after each epoch.

    ``after`` is called with every step, when all that was saved before it is kept if it is ``waiting`` for that.
    """
    seeded()
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=40)
    with CheckpointManager(run) as manager:
        opened(manager.run.id)
        accelerator = Accelerator(
            cpu=True,
            log_with=MltrainTracker(manager),
            dataloader_config=LOADERS[kind](),
            gradient_accumulation_steps=2,
        )
        accelerator.init_trackers("tests", {"lr": 1e-2})
        net, optimizer, loader, schedule = accelerator.prepare(net, optimizer, loader_of(kind), schedule)
        position = load(accelerator, manager)
        while position.epoch < EPOCHS:
            for inputs, labels in position.batches(loader):
                with accelerator.accumulate(net):
                    loss = nn.functional.cross_entropy(net(inputs), labels)
                    accelerator.backward(loss)
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                accelerator.log({"loss": loss.item(), "epoch": position.epoch}, step=position.step)
                if accelerator.sync_gradients and position.step % 4 == 0:
                    save(accelerator, manager, position)
                    assert not waiting or manager.wait(60)
                after(position.step)
            save(accelerator, manager, position, metrics={"val/loss": evaluated(net)})
            assert not waiting or manager.wait(60)
        accelerator.end_training()
    return str(manager.run.id)


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run")
    parser.add_argument("--kind", default="plain")
    parser.add_argument("--kill-at", type=int, default=0)
    asked = parser.parse_args(words)

    def kill(step: int) -> None:
        if step == asked.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    train(asked.run, asked.kind, kill, lambda run_id: print(f"run_id={run_id}", flush=True))
