"""PyTorch training where the MLflow run is the training."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mltrain.checkpoint.late_copy import LateCopy as LateCopy
    from mltrain.checkpoint.manifest import CheckpointId as CheckpointId
    from mltrain.checkpoint.manifest import Manifest as Manifest
    from mltrain.checkpoint.policies import *  # noqa: F403 - exactly its __all__
    from mltrain.checkpoint.retention import Policy as Policy
    from mltrain.commands.pull import load_best as load_best
    from mltrain.commands.pull import pull as pull
    from mltrain.commands.train import train as train
    from mltrain.config import Config as Config
    from mltrain.data import ResumableLoader as ResumableLoader
    from mltrain.errors import MltrainError as MltrainError
    from mltrain.errors import RunHeld as RunHeld
    from mltrain.errors import StateMismatch as StateMismatch
    from mltrain.manager import CheckpointManager as CheckpointManager
    from mltrain.pipeline import Pipeline as Pipeline
    from mltrain.pipeline import Stage as Stage
    from mltrain.rng import Rng as Rng
    from mltrain.run.opening import open_run as open_run
    from mltrain.signals import StopRequest as StopRequest
    from mltrain.state import Stateful as Stateful
    from mltrain.state import TrainState as TrainState
    from mltrain.steps import Supervised as Supervised
    from mltrain.stopping import EarlyStopping as EarlyStopping
    from mltrain.stream import StreamLoader as StreamLoader
    from mltrain.task import Task as Task
    from mltrain.trainer.loop import Trainer as Trainer
    from mltrain.trainer.ports import NullSaver as NullSaver
    from mltrain.trainer.ports import NullTracker as NullTracker

_HOMES = {
    "CheckpointManager": "manager",
    "Config": "config",
    "ResumableLoader": "data",
    "StreamLoader": "stream",
    "MltrainError": "errors",
    "RunHeld": "errors",
    "StateMismatch": "errors",
    "Rng": "rng",
    "StopRequest": "signals",
    "load_best": "commands.pull",
    "pull": "commands.pull",
    "LateCopy": "checkpoint.late_copy",
    "CheckpointId": "checkpoint.manifest",
    "Manifest": "checkpoint.manifest",
    "Policy": "checkpoint.retention",
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


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Importing torch and MLflow takes seconds, and ``mltrain --help`` needs neither.
    """
    if name in _HOMES:
        return getattr(importlib.import_module(f"mltrain.{_HOMES[name]}"), name)
    policies = importlib.import_module("mltrain.checkpoint.policies")  # every policy there is public
    if name == "__all__":
        return sorted([*_HOMES, *policies.__all__])
    if name in policies.__all__:
        return getattr(policies, name)
    raise AttributeError(f"module 'mltrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__getattr__("__all__")])
