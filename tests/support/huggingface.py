"""A small transformers Trainer, in-process or as a killed command."""

import argparse
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from mltrain.adapters.huggingface import MltrainCallback, restore
from mltrain.run.checkpoints import open_checkpoints
from tests.support.recorded import points

STEPS = 24


class Numbers(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, count: int, seed: int) -> None:
        self.inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"inputs": self.inputs[index], "labels": (self.inputs[index].sum() > 0).long()}


class Net(nn.Module):
    """Dropout makes a training depend on its random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.layers(inputs)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class At(TrainerCallback):  # type: ignore[misc]
    """Does something after a step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.action()


class Settled(TrainerCallback):  # type: ignore[misc]
    """Waits for each checkpoint, so a kill finds them."""

    def __init__(self, callback: MltrainCallback) -> None:
        self.callback = callback

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self.callback._training is not None
        assert self.callback._training.manager.wait(60)


def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)


def trainer(folder: Path, *callbacks: Any, net: nn.Module | None = None, data: Any = None, **options: Any) -> Trainer:
    """24 steps of 8 numbers in three epochs; logs every 2nd, saves every 3rd and evaluates every 5th of them."""
    seeded()
    chosen = {
        "num_train_epochs": 3,
        "logging_steps": 2,
        "save_steps": 3,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "seed": 7,
    }
    arguments = TrainingArguments(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=8,
        disable_tqdm=True,
        use_cpu=True,
        **{"report_to": "none", **chosen, **options},
    )
    return Trainer(
        net or Net(),
        arguments,
        train_dataset=data or Numbers(64, 0),
        eval_dataset=Numbers(32, 1),
        callbacks=list(callbacks),
    )


def history(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All points of what does not tell the time."""
    clock = ("runtime", "_per_second", "total_flos", "train_loss")
    return {key: found for key, found in points(run_id).items() if not key.endswith(clock)}


def steps(run_id: str | None) -> list[tuple[int, str]]:
    return [(one.step, one.kind) for one in open_checkpoints(str(run_id)).all()]


def raising(error: BaseException) -> Any:
    def action() -> None:
        raise error

    return action


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run")
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--signal", default="SIGKILL")
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--option", action="append", default=[])
    asked = parser.parse_args(words)
    options = {
        name: int(value) if value.isdigit() else value for name, value in (one.split("=") for one in asked.option)
    }
    callback = MltrainCallback()
    kill = At(asked.kill_at, lambda: os.kill(os.getpid(), getattr(signal, asked.signal)))
    training = trainer(Path.cwd(), callback, Settled(callback), kill, **options)
    training.train(resume_from_checkpoint=True if asked.local else restore(asked.run))
