"""What guide 004 does not show: the same calls in a run, how a run ends, and the commands on a folder."""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from mltrain import CheckpointManager
from tests.support import tiny
from tests.support.guide_004 import basic_usage
from tests.support.shell import Shell

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_with_an_active_run_the_same_calls_work_on_the_run(uri: str) -> None:
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run() as run:
        manager = CheckpointManager(device="cpu", max_to_keep=5)
        assert manager.run.id == run.info.run_id
        basic_usage(manager, 10)
        assert manager.load_best_model()["val_acc"] == 53.0  # type: ignore[index]
        manager.close()
    assert not Path("checkpoints").exists()
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"


ENDINGS = {"": "FINISHED", "raise ValueError('boom')": "FAILED", "raise KeyboardInterrupt": "KILLED"}


def test_a_script_that_never_calls_close_ends_as_it_ended(uri: str) -> None:
    """Three processes at once, because each takes seconds.

    Each waits until its run is created, which a busy machine may do later: until then the id is provisional.
    """
    script = (
        "import threading, torch; from mltrain import CheckpointManager\n"
        "manager = CheckpointManager(); created = threading.Event(); manager.run.when_known(created.set)\n"
        "assert created.wait(100); print(manager.run.id)\n"
        "manager.save_epoch_checkpoint({'model': {'weight': torch.ones(2)}}, 1)\n"
    )
    started = {
        ending: subprocess.Popen(
            [sys.executable, "-c", script + ending],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for ending in ENDINGS
    }
    ids = {ending: process.communicate(timeout=120)[0].strip() for ending, process in started.items()}
    client = mlflow.MlflowClient(uri)
    assert {ending: client.get_run(run_id).info.status for ending, run_id in ids.items()} == ENDINGS


def test_the_commands_read_the_folder_and_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(tmp_path, monkeypatch, capsys)
    with CheckpointManager(save_dir="./my checkpoints", device="cpu", max_to_keep=5) as ckpt_mgr:
        training = basic_usage(ckpt_mgr, 4)
        ckpt_mgr.save_interrupt_checkpoint(training.state(4, best_acc=53.0))
    Path("my checkpoints").rename("checkpoints")  # a folder may be moved
    listed = shell.type("checkpoints ./checkpoints")
    assert "Checkpoints of folder checkpoints" in listed
    assert json.loads(shell.type("checkpoints checkpoints --json"))[-1]["kind"] == "interrupted"
    assert "5 intact, 0 damaged" in shell.type("verify checkpoints")
    assert "1 intact, 0 damaged" in shell.type("verify ./checkpoints/best_model.pth")
    assert "of file checkpoints/best_model.pth: epoch 3" in shell.type("inspect checkpoints/best_model.pth")
    facts = json.loads(shell.type("inspect checkpoints/checkpoint_epoch_2.pth --json"))
    assert {part["part"] for part in facts["parts"]} >= {"model", "optimizer", "scheduler", "best_acc"}
    imported = shell.type("import checkpoints/best_model.pth")
    assert "taken  optimizer" in imported
    content = bytearray(Path("checkpoints/checkpoint_epoch_1.pth").read_bytes())
    content[content.index(b"weight") + 400] ^= 1
    Path("checkpoints/checkpoint_epoch_1.pth").write_bytes(content)
    assert "4 intact, 1 damaged" in shell.type("verify checkpoints", code=3)
    assert "There is no file and no folder" in shell.type("verify ./chekpoints", code=2)
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in shell.type("checkpoints empty", code=3)


def test_a_training_goes_on_from_a_file_of_the_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell = Shell(tmp_path, monkeypatch, capsys)
    task = tiny.build(tiny.Config())
    parts = {
        name: part.state_dict() for name, part in task.parts().items() if name in ("model", "optimizer", "scheduler")
    }
    with CheckpointManager(save_dir="checkpoints") as ckpt_mgr:
        ckpt_mgr.save_epoch_checkpoint({"epoch": 2, **parts}, 2)
    begun = shell.type(f"train {tiny.__file__} --epochs 3 --resume checkpoints/checkpoint_epoch_2.pth")
    assert "epoch 3 of 3" in begun
