"""Guide 000: training that is paused with Ctrl+C and resumed, on folders of images and masks."""

import json
from pathlib import Path

import pytest

from mltrain.checkpoint import checkpoint_file
from projects.segmentation.folders import FolderPair
from projects.segmentation.synthetic import Blobs
from tests.support.equality import identical
from tests.support.shell import Shell

TRAIN = (
    "train segmentation --image_path ./data/images --gt_path ./data/gt --image_size 16 --batch_size 2 --epochs 3 "
    "--model_save_path ./checkpoints --export full"
)
"""The command of the guide; ``--export full`` is what it takes here to have whole checkpoints as files."""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    Blobs(height=24, width=24).write(
        FolderPair(images=tmp_path / "data" / "images", masks=tmp_path / "data" / "gt"), 6, seed=3
    )
    return Shell(tmp_path, monkeypatch, capsys)


def files(shell: Shell) -> set[str]:
    return {file.name for file in (shell.folder / "checkpoints").iterdir()}


@pytest.mark.slow
def test_scene_1_resume_after_ctrl_c(shell: Shell) -> None:
    """场景1:从 Ctrl+C 暂停恢复"""
    stopped = shell.type(TRAIN, interrupt_at=4, code=75)
    assert "Resume:" in stopped
    assert files(shell) == {
        "best_model.pth",
        "checkpoint_epoch_1.pth",
        "interrupted_checkpoint.pth",
        "latest_checkpoint.pth",
    }
    resumed = shell.type(f"{TRAIN} --resume ./checkpoints/interrupted_checkpoint.pth")
    assert shell.run_id(resumed) == shell.run_id(stopped)
    assert files(shell) >= {"checkpoint_epoch_2.pth", "checkpoint_epoch_3.pth"}
    undisturbed = TRAIN.replace("./checkpoints", "./undisturbed")
    shell.type(undisturbed)
    once, twice = (
        checkpoint_file.read(shell.folder / folder / "latest_checkpoint.pth")
        for folder in ("undisturbed", "checkpoints")
    )
    assert identical(once, twice)  # weights, optimizer, schedule, history, counters


@pytest.mark.slow
def test_scenes_2_and_3_resume_from_an_epoch_and_from_the_newest(shell: Shell) -> None:
    """场景2:从特定 epoch 恢复;场景3:从最新 checkpoint 恢复;--epochs 是总 epoch 数"""
    first = shell.type(f"{TRAIN} --checkpoint_mode epochs")
    finished = checkpoint_file.read(shell.folder / "checkpoints" / "latest_checkpoint.pth")
    again = shell.type(f"{TRAIN} --resume ./checkpoints/checkpoint_epoch_1.pth")
    assert "epoch 2 of 3" in again
    assert shell.run_id(again) == shell.run_id(first)
    assert identical(checkpoint_file.read(shell.folder / "checkpoints" / "latest_checkpoint.pth"), finished)
    newest = shell.type(f"{TRAIN} --resume ./checkpoints/latest_checkpoint.pth")
    assert "3 of 3 epochs are done" in newest
    assert shell.run_id(newest) == shell.run_id(first)


def test_what_every_checkpoint_holds(shell: Shell) -> None:
    """保存的内容"""
    shell.type(TRAIN.replace("--epochs 3", "--num_epochs 1 --learning_rate 1e-3"))
    state = checkpoint_file.read(shell.folder / "checkpoints" / "best_model.pth")
    assert {"model", "optimizer", "scheduler", "history", "progress", "best"} <= state.keys()
    manifest = checkpoint_file.manifest_of(shell.folder / "checkpoints" / "best_model.pth")
    assert manifest is not None
    assert set(manifest.data) == {"image_path", "gt_path"}, "the folder that the training writes to is no data"
    (row,) = state["history"]["rows"]
    assert {"epoch", "train/loss", "val/loss", "val/iou", "val/precision", "val/recall", "val/f1"} <= row.keys()
    params = checkpoint_file.params_of(shell.folder / "checkpoints" / "best_model.pth")
    assert params is not None
    assert (params["epochs"], params["lr"]) == (1, 1e-3)
    (shell.folder / "config.json").write_text(json.dumps({"resume_checkpoint": "checkpoints/best_model.pth"}))
    done = shell.type(TRAIN.replace("--epochs 3", "--epochs 1") + " --config config.json")
    assert "1 of 1 epochs are done" in done


def test_troubles_1_and_2_a_missing_file_and_another_architecture(shell: Shell) -> None:
    """问题1:找不到 checkpoint 文件;问题2:模型架构不匹配"""
    shell.type(TRAIN.replace("--epochs 3", "--epochs 1"))
    missing = shell.type(f"{TRAIN} --resume ./checkpoints/interrupted_checkpoint.pth", code=3)
    assert "There is no file" in missing
    assert "latest_checkpoint.pth" in missing  # what there is
    other = shell.type(f"{TRAIN} --channels 3 --resume ./checkpoints/latest_checkpoint.pth", code=8)
    assert "does not fit" in other


@pytest.mark.slow
def test_weights_alone_lead_back_to_their_run(shell: Shell) -> None:
    """Without ``export=full`` the folder has weights only; resume by them, or by the first digits of the run's id."""
    line = TRAIN.removesuffix(" --export full")
    first = shell.type(line, interrupt_at=4, code=75)
    assert files(shell) == {"latest.safetensors", "best.safetensors"}
    missing = shell.type(f"{line} --resume ./checkpoints/interrupted_checkpoint.pth", code=3)
    assert "export=full" in missing
    assert "mltrain train --resume-run ID" in missing
    again = shell.type(f"{line} --epochs 2 --resume ./checkpoints/latest.safetensors")
    assert shell.run_id(again) == shell.run_id(first)
    last = shell.type(f"{line} --resume {shell.run_id(first)[:7]}")
    assert shell.run_id(last) == shell.run_id(first)
