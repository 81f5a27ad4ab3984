"""Guide 003: style transfer, with a configuration file, pictures of each evaluation, and other weights on a resume."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from tests.support.shell import Shell

SMALL = {"steps_per_epoch": 2, "anchor_epochs": 0, "batch_size": 2, "image_size": 32, "short_side": 32, "width": 8} | {
    "num_steps": 2,
    "eval_crops": 2,
    "classifier_steps": 2,
    "ode_integration_steps": 1,
}


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    random = np.random.default_rng(0)
    for folder in ("monet2photo", "monet2photo_test"):
        for style in ("trainA", "trainB"):
            (tmp_path / folder / style).mkdir(parents=True)
            for number in range(3):
                pixels = random.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / folder / style / f"{folder}_{number}.png")
    return Shell(tmp_path, monkeypatch, capsys)


def configured(shell: Shell, name: str, **keys: Any) -> None:
    """Write a configuration of the guide: everything in a section ``training``."""
    training = {
        **SMALL,
        "image_dir": "monet2photo",
        "num_epochs": 2,
        "save_interval": 1,
        "eval_interval": 1,
        "test_image_dir": "monet2photo_test",
        "resume_checkpoint": None,
        "model_save_path": "checkpoints",
        "export": "full",
    }
    (shell.folder / name).write_text(json.dumps({"training": {**training, **keys}}))


def run_of(shell: Shell, printed: str) -> Any:
    return MlflowClient().get_run(shell.run_id(printed))


@pytest.mark.slow
def test_train_look_adjust_and_continue(shell: Shell) -> None:
    """案例1:训练-推理-调参循环;监控训练进度"""
    configured(shell, "config_v1.json")
    first = shell.type("train style_transfer --config config_v1.json")
    artifacts = Path(run_of(shell, first).info.artifact_uri)
    for epoch in (1, 2):
        assert {file.name for file in (artifacts / "inference" / f"epoch_{epoch:04d}").iterdir()} >= {
            "A_to_B.jpg",
            "B_to_A.jpg",
        }

    log_file = next(line for line in first.splitlines() if line.startswith("The log is ")).removeprefix("The log is ")
    df = pd.read_csv(log_file)  # from here on as the guide has it
    print(df.tail(10))
    print(f"最小loss: {df['loss_total'].min():.6f} (epoch {df.loc[df['loss_total'].idxmin(), 'epoch']})")
    assert df["epoch"].tolist() == [1, 2]

    configured(shell, "config_v2.json", num_epochs=3, w_style=2.0, w_content=0.5)
    again = shell.type("train style_transfer --config config_v2.json --resume checkpoints/checkpoint_epoch_2.pth")
    assert "epoch 3 of 3" in again
    assert shell.run_id(again) == shell.run_id(first)
    tags = run_of(shell, again).data.tags
    assert {name for name in tags if name.startswith("mltrain.rewound")}  # other weights: the step is on record
    assert pd.read_csv(log_file)["epoch"].tolist() == [1, 2, 3]


@pytest.mark.slow
def test_a_checkpoint_named_in_the_configuration_is_continued(shell: Shell) -> None:
    """方法1:在config中指定;方法3:从最新检查点恢复"""
    configured(shell, "config.json")
    first = shell.type("train style_transfer --config config.json", interrupt_at=3, code=75)
    configured(shell, "config.json", resume_checkpoint="checkpoints/latest_checkpoint.pth")
    again = shell.type("train style_transfer --config config.json")
    assert shell.run_id(again) == shell.run_id(first)
    assert run_of(shell, again).data.metrics["epoch"] == 2
    copy = shell.folder / "backups" / "v1.0_epoch_0002.pth"  # 版本管理
    copy.parent.mkdir()
    (shell.folder / "checkpoints" / "latest_checkpoint.pth").rename(copy)
    back = shell.type(f"train style_transfer --resume {copy.relative_to(shell.folder)}")
    assert "2 of 2 epochs are done" in back
    missing = shell.type("train style_transfer --resume checkpoints/epoch_0050.pt", code=3)
    assert "checkpoint_epoch_1.pth" in missing
