"""Checkpoints opened for reading, by what a person calls them."""

import json
from pathlib import Path

import pytest
import torch

from mltrain.errors import NoCheckpoint, RunNotFound, UsageError
from mltrain.manager import CheckpointManager
from mltrain.run.checkpoints import open_checkpoints, trained_config
from mltrain.tracking.client import TrackingClient

STATE = {"model": {"weight": torch.ones(2)}}


def saved(*params: dict[str, int] | None, folder: Path | None = None) -> str:
    """Save a checkpoint for each configuration; return the run's id. ``None`` saves one without a configuration."""
    with CheckpointManager(save_dir=folder, max_to_keep=9) as manager:
        for step, values in enumerate(params, 1):
            extra = {"params.json": json.dumps(values).encode()} if values is not None else {}
            manager.save(STATE, step=step, extra=extra)
        manager.wait()
        return manager.run.id


def test_a_run_is_named_by_its_first_digits(server: TrackingClient) -> None:
    run_id = saved({"lr": 1}, {"lr": 2})
    found = open_checkpoints(run_id[:8], server)
    assert found.store.run_id == run_id
    assert [manifest.step for manifest in found.all()] == [1, 2]


def test_the_configuration_is_that_of_the_checkpoint_and_else_of_one_before_it(server: TrackingClient) -> None:
    found = open_checkpoints(saved({"lr": 1}, {"lr": 2}, None), server)
    assert trained_config(found) == {"lr": 2}
    assert trained_config(found, "step:1") == {"lr": 1}
    with pytest.raises(RunNotFound):
        trained_config(found, "step:3")


def test_a_folder_and_one_file_of_it_are_opened_without_a_server(tmp_path: Path) -> None:
    saved({"lr": 1}, folder=tmp_path / "kept")
    (file,) = (tmp_path / "kept").glob("checkpoint_*.pth")
    for place in (file.parent, file):
        assert [manifest.step for manifest in open_checkpoints(str(place)).all()] == [1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoCheckpoint, match="holds no checkpoint"):
        open_checkpoints(str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="no file and no folder"):
        open_checkpoints(str(tmp_path / "none"))
