"""A pipeline of three stages that trains in a second: numbers are made, and two networks are trained one after the other.

The second network is trained on what the first makes of the numbers, so that nothing can be left out or exchanged unseen.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mltrain


class NumbersConfig(mltrain.Config):
    items: int = 44
    scale: float = 1.0
    source: Path | None = None
    kill: str = "never"
    sleep: float = 0.0

    execution_fields = mltrain.Config.execution_fields | {"kill", "sleep"}


class NetConfig(mltrain.Config):
    epochs: int = 3
    device: str = "cpu"
    num_threads: int | None = 1
    log_interval: int = 1
    lr: float = 1e-2
    numbers: Path | None = None
    kill: str = "never"
    kill_at: int = 0
    signal_at: int = 0
    raise_at: int = 0
    sleep: float = 0.0

    execution_fields = mltrain.Config.execution_fields | {"kill", "kill_at", "signal_at", "raise_at", "sleep"}


class HeadConfig(NetConfig):
    weights: Path | None = None


def die(wanted: str, here: str) -> None:
    if wanted == here:
        os.kill(os.getpid(), signal.SIGKILL)


def make_numbers(config: NumbersConfig, folder: Path) -> dict[str, float]:
    die(config.kill, "before")
    time.sleep(config.sleep)
    generator = torch.Generator().manual_seed(config.seed)
    inputs = torch.randn(config.items, 6, generator=generator) * config.scale
    (folder / "parts").mkdir()
    save_file({"inputs": inputs}, folder / "parts" / "numbers.safetensors")
    die(config.kill, "inside")
    (folder / "about.json").write_text("{}\n")
    return {"items": float(config.items)}


class Meeting:
    """A step that fails at a given step, as configured."""

    def __init__(self, inner: mltrain.Supervised, config: NetConfig) -> None:
        self.inner = inner
        self.config = config
        self.done = 0

    def parts(self) -> Any:
        return {**self.inner.parts(), "counter": self}

    def prepare(self, device: torch.device, amp: str) -> None:
        self.inner.prepare(device, amp)

    def state_dict(self) -> Any:
        return {"done": self.done}

    def load_state_dict(self, state: Any) -> None:
        self.done = state["done"]

    def __call__(self, batch: Any) -> Any:
        time.sleep(self.config.sleep)
        self.done += 1
        if self.done == self.config.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.done == self.config.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.done == self.config.raise_at:
            raise RuntimeError("the user's own mistake")
        draw = random.random() + float(np.random.rand()) + float(torch.rand(()))
        return {**self.inner(batch), "draw": draw}


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))


def task(config: NetConfig, inputs: torch.Tensor) -> mltrain.Task:
    die(config.kill, "build")
    labels = (inputs.sum(1) > 0).long()
    model = net()
    step = mltrain.Supervised(model, nn.CrossEntropyLoss(), torch.optim.AdamW(model.parameters(), lr=config.lr))
    loader = mltrain.ResumableLoader(torch.utils.data.TensorDataset(inputs, labels), 8)

    def evaluate() -> dict[str, float]:
        model.eval()
        return {"val/loss": float(nn.functional.cross_entropy(model(inputs), labels))}

    return mltrain.Task(Meeting(step, config), loader, evaluate=evaluate)


def numbers(config: NetConfig) -> torch.Tensor:
    assert config.numbers is not None
    return load_file(config.numbers / "parts" / "numbers.safetensors")["inputs"]


def build_first(config: NetConfig) -> mltrain.Task:
    return task(config, numbers(config))


def build_second(config: HeadConfig) -> mltrain.Task:
    first = net().eval()
    assert config.weights is not None
    first.load_state_dict(load_file(config.weights / "model.safetensors"))
    with torch.no_grad():
        changed = numbers(config) + first(numbers(config)).sum(1, keepdim=True)
    return task(config, changed)


PIPELINE = mltrain.Pipeline(
    "tiny",
    [
        mltrain.Stage("numbers", NumbersConfig, make=make_numbers),
        mltrain.Stage("first", NetConfig, build=build_first, needs={"numbers": "numbers"}, hands_on="latest"),
        mltrain.Stage(
            "second",
            HeadConfig,
            build=build_second,
            needs={"numbers": "numbers", "weights": "first"},
            hands_on="latest",
        ),
    ],
)
