"""A training by hand whose every step is known beforehand; run in a process of its own, to be killed there.

``main(folder, kind, uri, attempt, epochs)`` continues to so many epochs with ``Latest(1) | Best(1)`` and says
``committed N`` after each. The state of epoch N is the same however often it was interrupted on the way.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mltrain.checkpoint.policies import Best, Latest
from mltrain.checkpoint.pruner import Removals
from mltrain.store.opening import open_artifacts
from tests.support.places import FolderFiles, Place
from tests.support.runs import FolderRun

POLICY = Latest(1) | Best(1)


class RecordingRun(FolderRun):
    """A run that keeps the removal record among its artifacts."""

    def record_removals(self, records: Sequence[Mapping[str, Any]]) -> None:
        Removals(self.artifacts).append(records)


def loss_at(epoch: int) -> float:
    """Return the loss of an epoch; the second is best."""
    return abs(epoch - 2.0)


def started() -> dict[str, Any]:
    return {"epoch": 0, "model": {"weight": torch.zeros(64)}, "seed": 7}


def trained(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state an epoch later."""
    chance = torch.Generator().manual_seed(state["seed"])
    weight = 0.9 * state["model"]["weight"] + torch.randn(64, generator=chance)
    seed = int(torch.randint(2**31, (1,), generator=chance))
    return {"epoch": state["epoch"] + 1, "model": {"weight": weight}, "seed": seed}


def kept(newest: int) -> set[int]:
    """Return the epochs that the policy keeps after ``newest``."""
    return {newest, min(range(1, newest + 1), key=loss_at)} if newest else set()


def opened(folder: Path, kind: str, uri: str, attempt: int) -> RecordingRun:
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "sqlite://")
    place = Place(kind, lambda: open_artifacts(uri, tracking), FolderFiles(folder), FolderFiles(folder), uri)
    return RecordingRun(folder, ordinal=attempt, place=place)


def main(words: Sequence[str]) -> None:
    folder, kind, uri, attempt, epochs = words
    run = opened(Path(folder), kind, uri, int(attempt))
    with run.manager(policy=POLICY) as manager:
        state = manager.load_latest_checkpoint() or started()
        while state["epoch"] < int(epochs):
            state = trained(state)
            manager.save_epoch_checkpoint(state, state["epoch"], {"val/loss": loss_at(state["epoch"])})
            if not manager.wait(60):
                sys.exit(5)
            print(f"committed {state['epoch']}", flush=True)
