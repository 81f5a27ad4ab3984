"""PyTorch training where the MLflow run is the training."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mltrain.checkpoint.late_copy import LateCopy as LateCopy
    from mltrain.checkpoint.retention import Best as Best
    from mltrain.checkpoint.retention import Budget as Budget
    from mltrain.checkpoint.retention import EveryNth as EveryNth
    from mltrain.checkpoint.retention import Latest as Latest
    from mltrain.checkpoint.retention import Named as Named
    from mltrain.checkpoint.retention import Pinned as Pinned
    from mltrain.checkpoint.retention import Younger as Younger
    from mltrain.commands.evaluate import load_best as load_best
    from mltrain.commands.evaluate import pull as pull
    from mltrain.commands.train import train as train
    from mltrain.config import Config as Config
    from mltrain.data import ResumableLoader as ResumableLoader
    from mltrain.data import StreamLoader as StreamLoader
    from mltrain.errors import MltrainError as MltrainError
    from mltrain.manager import CheckpointManager as CheckpointManager
    from mltrain.pipeline import Pipeline as Pipeline
    from mltrain.pipeline import Stage as Stage
    from mltrain.run.opening import open_run as open_run
    from mltrain.state import Stateful as Stateful
    from mltrain.state import TrainState as TrainState
    from mltrain.steps import Supervised as Supervised
    from mltrain.stopping import EarlyStopping as EarlyStopping
    from mltrain.task import Task as Task
    from mltrain.trainer.loop import Trainer as Trainer
    from mltrain.trainer.ports import NullSaver as NullSaver
    from mltrain.trainer.ports import NullTracker as NullTracker

_HOMES = {
    "CheckpointManager": "manager",
    "Best": "checkpoint.retention",
    "Budget": "checkpoint.retention",
    "EveryNth": "checkpoint.retention",
    "Latest": "checkpoint.retention",
    "Named": "checkpoint.retention",
    "Pinned": "checkpoint.retention",
    "Younger": "checkpoint.retention",
    "Config": "config",
    "ResumableLoader": "data",
    "StreamLoader": "data",
    "MltrainError": "errors",
    "load_best": "commands.evaluate",
    "pull": "commands.evaluate",
    "LateCopy": "checkpoint.late_copy",
    "Pipeline": "pipeline",
    "Stage": "pipeline",
    "Stateful": "state",
    "TrainState": "state",
    "Supervised": "steps",
    "EarlyStopping": "stopping",
    "open_run": "run.opening",
    "Task": "task",
    "Trainer": "trainer.loop",
    "NullSaver": "trainer.ports",
    "NullTracker": "trainer.ports",
    "train": "commands.train",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: torch and MLflow take seconds, and ``mltrain --help`` needs neither."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mltrain' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mltrain.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
