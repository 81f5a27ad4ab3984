"""A folder of checkpoints in place of a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mltrain.errors import RunHeld, UsageError
from mltrain.manager import CheckpointManager
from mltrain.run.untracked import UntrackedRun
from tests.support.runs import state_at, train


def test_each_process_that_saves_is_an_attempt_and_one_that_reads_is_none(tmp_path: Path) -> None:
    assert UntrackedRun(tmp_path).ordinal == 1
    with CheckpointManager(save_dir=tmp_path) as manager:
        train(manager, 1, 1)
    with CheckpointManager(save_dir=tmp_path) as manager:
        manager.load_latest_checkpoint()
    with CheckpointManager(save_dir=tmp_path) as manager:
        manager.load_latest_checkpoint()
        train(manager, 2, 2)
        assert [manifest.name for manifest in manager.checkpoints()] == ["step-000000001-a01", "step-000000002-a02"]


def test_another_process_may_read_and_is_refused_when_it_saves(tmp_path: Path) -> None:
    manager = CheckpointManager(save_dir=tmp_path)
    train(manager, 1, 1)
    other = UntrackedRun(tmp_path)
    assert other.artifacts.entries("checkpoints")
    with pytest.raises(RunHeld, match=r"Another process saves checkpoints to .*another save_dir"):
        other.begin_attempt(None)
    manager.close()
    assert other.ordinal == 2
    other.detach("FINISHED")


def test_in_one_process_the_newest_manager_of_a_folder_takes_over(tmp_path: Path) -> None:
    first = CheckpointManager(save_dir=tmp_path)
    first.save_epoch_checkpoint(state_at(1), 1)
    second = CheckpointManager(save_dir=tmp_path)
    assert second.load_latest_checkpoint()["epoch"] == 1  # type: ignore[index]
    with pytest.raises(UsageError, match=f"The manager of folder {tmp_path} is closed"):
        first.save_epoch_checkpoint(state_at(2), 2)
    second.close()


def test_removals_are_recorded_once_however_fast_they_follow(tmp_path: Path) -> None:
    script = (
        "import sys, torch; from mltrain import CheckpointManager\n"
        "manager = CheckpointManager(save_dir=sys.argv[1], max_to_keep=2)\n"
        "for epoch in range(1, 31): manager.save_epoch_checkpoint({'model': {'weight': torch.ones(2)}}, epoch)\n"
        "print('mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "False\n"
    removed = [
        json.loads(line)["checkpoint"] for line in (tmp_path / ".mltrain/retention.jsonl").read_text().splitlines()
    ]
    assert removed == [f"step-{epoch:09d}-a01" for epoch in range(1, 29)]
