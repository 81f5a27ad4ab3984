"""Pruning runs that have ended: what goes, and how many requests that takes."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient

from mltrain.checkpoint.policies import Latest
from mltrain.commands.prune import carry_out, plan_run
from mltrain.manager import CheckpointManager
from mltrain.tracking.client import TrackingClient
from mltrain.tracking.tags import PIN_PREFIX


@dataclass(frozen=True)
class Counting(TrackingClient):
    """Counts the requests to the tracking store by their names."""

    requests: Counter[str] = field(default_factory=Counter)

    def tried(self, call: Any, *arguments: Any, **named: Any) -> Any:
        self.requests[call.__name__] += 1
        return super().tried(call, *arguments, **named)


def ended_run() -> tuple[str, Path]:
    """Return a run with four checkpoints, and their folder."""
    with CheckpointManager(max_to_keep=9) as manager:
        for epoch in range(1, 5):
            manager.save_epoch_checkpoint({"model": {"weight": torch.ones(2)}, "epoch": epoch}, epoch)
        manager.wait()
        root = manager.run.artifacts.local_root
        assert root is not None
        return manager.run.id, root / "checkpoints"


def test_a_run_is_described_twice_and_what_uses_it_is_looked_up_once(server: TrackingClient) -> None:
    run_id, folder = ended_run()
    counting = Counting(server.uri, MlflowClient(server.uri))
    plan = plan_run(counting, run_id, Latest(1))
    assert counting.requests == {"get_run": 1, "search_model_versions": 2, "search_logged_models": 1}
    assert carry_out(counting, plan) > 0
    assert counting.requests["get_run"] == 2, "once more right before something goes"
    assert sum(counting.requests.values()) == 6
    assert len(list(folder.iterdir())) == 1


def test_a_checkpoint_that_was_pinned_after_the_plan_stays(server: TrackingClient) -> None:
    run_id, folder = ended_run()
    plan = plan_run(server, run_id, Latest(1))
    pinned = plan.removals[0].manifest.name
    MlflowClient(server.uri).set_tag(run_id, f"{PIN_PREFIX}{pinned}", "for the paper")
    carry_out(server, plan)
    assert len(plan.removals) == 3
    assert sorted(one.name for one in folder.iterdir())[0] == pinned
    assert len(list(folder.iterdir())) == 2
