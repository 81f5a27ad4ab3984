"""Trainings of the tiny project in memory."""

from dataclasses import replace
from typing import Any

import torch

from mltrain.rng import seed_everything
from mltrain.steps import Supervised
from mltrain.task import Task
from mltrain.testing import MemorySaver, MemoryTracker, StopAt
from mltrain.trainer.loop import Trainer
from tests.support import tiny


def trained(build: Any = tiny.build, **keys: Any) -> tuple[Trainer, MemoryTracker, MemorySaver]:
    config, tracker, saver = tiny.Config(**keys), MemoryTracker(), MemorySaver()
    seed_everything(config.seed)
    trainer = Trainer(build(config), config, tracker, saver, StopAt())
    seed_everything(config.seed)
    for _ in trainer.steps():
        pass
    return trainer, tracker, saver


def steps_saved(saver: MemorySaver) -> dict[int, str]:
    return {kept.step: kept.kind for kept in saver.checkpoints}


def resumed(saver: MemorySaver, tracker: MemoryTracker, build: Any = tiny.build, **keys: Any) -> Trainer:
    config = tiny.Config(**keys)
    trainer = Trainer(build(config), config, tracker, saver, StopAt())
    seed_everything(999)
    trainer.restore(saver.checkpoints[-1].parts())
    for _ in trainer.steps():
        pass
    return trainer


def on_a_plateau(config: tiny.Config, **options: Any) -> Task:
    task = tiny.build(config)
    inner = task.step.inner  # type: ignore[attr-defined]
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        inner.optimizer, factor=0.5, patience=0, threshold=10, threshold_mode="abs", **options
    )
    return replace(task, step=Supervised(inner.model, inner.loss, inner.optimizer, scheduler=schedule))
