"""A project that trains in milliseconds and exercises every resume.

Dropout and augmentation draw from Python, NumPy and torch; batch norm has buffers; AdamW has moments; the schedule,
the torchmetrics accumulator and the mean loss are in the middle of something at every step.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchmetrics
from PIL import Image
from torch import nn

import mltrain


class Config(mltrain.Config):
    epochs: int = 4
    device: str = "cpu"
    num_threads: int | None = 1
    log_interval: int = 1
    lr: float = 1e-2
    batch_size: int = 8
    items: int = 44
    hidden: int = 16
    num_workers: int = 0
    data: Path | None = None
    kill_at: int = 0
    raise_at: int = 0
    signal_at: int = 0
    nan_at: int = 0
    sleep: float = 0.0
    evaluation_sleep: float = 0.0

    presets: ClassVar[dict[str, Any]] = {"quick": {"epochs": 1}}
    execution_fields: ClassVar[frozenset[str]] = mltrain.Config.execution_fields | {
        "kill_at",
        "raise_at",
        "signal_at",
        "nan_at",
        "sleep",
        "evaluation_sleep",
        "num_workers",
    }


class Noisy(torch.utils.data.Dataset[Any]):
    def __init__(self, items: int) -> None:
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(items, 6, generator=generator)
        self.labels = (self.inputs.sum(1) > 0).long()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(6) * 0.1 + random.random() * 0.1 + float(np.random.randn()) * 0.1
        return self.inputs[index] + noise, self.labels[index]


class Faulty:
    """A step that fails at a given step, as configured."""

    def __init__(self, inner: mltrain.Supervised, config: Config) -> None:
        self.inner = inner
        self.config = config
        self.done = 0

    def parts(self) -> Any:
        return {**self.inner.parts(), "counter": self}

    def prepare(self, device: torch.device, amp: str) -> None:
        self.inner.prepare(device, amp)

    def epoch_metrics(self) -> Any:
        return self.inner.epoch_metrics()

    @property
    def learning_rate(self) -> float:
        return self.inner.learning_rate

    def state_dict(self) -> Any:
        return {"done": self.done}

    def load_state_dict(self, state: Any) -> None:
        self.done = state["done"]

    def __call__(self, batch: Any) -> Any:
        time.sleep(self.config.sleep)
        self.done += 1
        if self.done == self.config.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.done == self.config.raise_at:
            raise RuntimeError("the user's own mistake")
        if self.done == self.config.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        result = dict(self.inner(batch))
        if self.done == self.config.nan_at:
            result["loss"] = torch.tensor(float("nan"))
        result["draw"] = random.random() + float(np.random.randn())
        return result


def build(config: Config) -> mltrain.Task:
    net = nn.Sequential(
        nn.Linear(6, config.hidden),
        nn.BatchNorm1d(config.hidden),
        nn.Dropout(0.2),
        nn.ReLU(),
        nn.Linear(config.hidden, 2),
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.9)
    metrics = {"accuracy": torchmetrics.classification.MulticlassAccuracy(2, average="micro")}
    step = mltrain.Supervised(net, nn.CrossEntropyLoss(), optimizer, scheduler=scheduler, clip=1.0, metrics=metrics)
    loader = mltrain.ResumableLoader(Noisy(config.items), config.batch_size, num_workers=config.num_workers)
    held_out = Noisy(32)

    def evaluate() -> dict[str, float]:
        time.sleep(config.evaluation_sleep)
        net.eval()
        outputs = net(held_out.inputs)
        random.random()  # draws of an evaluation must not change the training
        torch.rand(3)
        return {
            "val/loss": float(nn.functional.cross_entropy(outputs, held_out.labels)),
            "val/accuracy": float((outputs.argmax(1) == held_out.labels).float().mean()),
        }

    def images() -> dict[str, Any]:
        weights: Any = net[0].weight.detach()
        whole = weights.full_tensor() if hasattr(weights, "full_tensor") else weights
        return {"val/weights": Image.fromarray((whole.sigmoid() * 255).byte().numpy()).resize((60, 160))}

    return mltrain.Task(
        Faulty(step, config),
        loader,
        evaluate=evaluate,
        images=images,
        predictor=lambda: (net, held_out.inputs[:2]),
    )
