"""Guide 001: tool wear, with checkpoints in a file that is named, from the command line and in Python."""

from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from mltrain.checkpoint import checkpoint_file
from mltrain.errors import NoCheckpoint, UsageError
from projects.tool_wear import ToolWearClassifier
from tests.projects.tool_wear.waves import SMALL, TRAIN, VAL
from tests.support.equality import identical
from tests.support.pages import execute
from tests.support.shell import Shell


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)


@pytest.mark.slow
def test_the_command_line_trains_into_a_file_and_resumes_from_it(shell: Shell) -> None:
    """--device cpu|auto, --quick, --checkpoint-path, --resume"""
    line = (
        "train tool_wear --quick --device cpu --cuts 12 --batch-size 8 --checkpoint-path checkpoints/my_checkpoint.pth"
    )
    first = shell.type(f"{line} --epochs 2", interrupt_at=3, code=75)
    assert [file.name for file in (shell.folder / "checkpoints").iterdir()] == ["my_checkpoint.pth"]
    assert MlflowClient().get_run(shell.run_id(first)).data.params["windows_per_cut"] == "1"  # as --quick says
    again = shell.type(f"{line} --epochs 2 --resume")
    assert shell.run_id(again) == shell.run_id(first)
    state = checkpoint_file.read(shell.folder / "checkpoints" / "my_checkpoint.pth")
    assert state["progress"]["epoch"] == 2
    classifier = ToolWearClassifier()
    assert classifier.load_checkpoint(shell.folder / "checkpoints" / "my_checkpoint.pth").epoch == 2
    assert identical(state["model"], dict(classifier.model_.state_dict()))
    shell.type("train tool_wear --resume --device auto", code=2)
    if not torch.cuda.is_available():
        shell.type(f"{line} --device cuda", code=2)


def test_resume_from_checkpoint_true_means_the_file_if_it_is_there(tmp_path: Path) -> None:
    file = tmp_path / "my_checkpoint.pth"
    line = {"train_data": TRAIN, "val_data": VAL, "checkpoint_path": file, "resume_from_checkpoint": True}
    short = ToolWearClassifier(**{**SMALL, "epochs": 2})
    assert short.train(**line)["epoch"] == [1, 2]  # the file does not exist: training starts anew
    rest = ToolWearClassifier(**SMALL)
    history = rest.train(**line)
    whole = ToolWearClassifier(**SMALL)
    assert history == whole.train(TRAIN, VAL)
    assert identical(dict(rest.model_.state_dict()), dict(whole.model_.state_dict()))
    assert ToolWearClassifier(**SMALL).train(**{**line, "resume_from_checkpoint": False})["epoch"] == [1, 2, 3, 4]
    with pytest.raises(UsageError, match="checkpoint_path"):
        whole.train(TRAIN, VAL, resume_from_checkpoint=True)


def test_the_block_of_the_page_trains_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (inputs, classes), (more, others) = TRAIN, VAL
    names = {"X": inputs[:32], "y": classes[:32], "X_val": more[:16], "y_val": others[:16], "X_new": more[:4]}
    execute("tool_wear", 0, names)
    assert names["history"]["epoch"] == [*range(1, len(names["history"]["epoch"]) + 1)]
    assert (tmp_path / "wear.ckpt").is_file()
    assert names["classifier"].predict(names["X_new"]).shape == (4,)


def test_a_checkpoint_is_saved_and_loaded_by_hand(tmp_path: Path) -> None:
    """手动保存断点,手动加载断点"""
    classifier = ToolWearClassifier(**SMALL)
    classifier.train(TRAIN, VAL)
    file = tmp_path / "manual_checkpoint.pth"
    state = classifier.optimizer.state_dict()
    assert state["state"]
    state["param_groups"][0]["lr"] = 0.125
    classifier.save_checkpoint(file_path=str(file), optimizer_state=state, epoch=50)
    loaded = ToolWearClassifier(**SMALL)
    epoch, best_epoch, no_improve_epochs = loaded.load_checkpoint(str(file))
    assert epoch == 50
    assert best_epoch + no_improve_epochs == 4
    assert identical(loaded.optimizer.state_dict()["state"], state["state"])
    assert loaded.optimizer.param_groups[0]["lr"] == 0.125
    with pytest.raises(NoCheckpoint, match="There is no checkpoint"):
        loaded.load_checkpoint(tmp_path / "none.pth")


def test_the_best_model_after_a_resume_is_the_best_of_the_whole_training(tmp_path: Path) -> None:
    """最佳模型状态"""
    file = tmp_path / "my_checkpoint.pth"
    first = ToolWearClassifier(**{**SMALL, "patience": None})
    first.train(TRAIN, VAL, checkpoint_path=file)
    best = min(first.history_["val/loss"])
    worse = ToolWearClassifier(**{**SMALL, "patience": None, "epochs": 6, "lr": 3.0})  # what follows can only be worse
    worse.train(TRAIN, VAL, checkpoint_path=file, resume_from_checkpoint=True)
    assert min(worse.history_["val/loss"][4:]) > best
    assert identical(dict(worse.model_.state_dict()), dict(first.model_.state_dict()))
