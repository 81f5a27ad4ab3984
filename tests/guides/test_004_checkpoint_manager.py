"""Guide 004, the checkpoint manager (检查点管理模块使用指南): its examples as they are written, in a folder and in a run."""

import inspect
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pytest
import torch

from mltrain import CheckpointManager
from tests.support.guide_004 import Training, basic_usage, create_model, visible

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def test_the_constructor_the_constants_and_the_methods() -> None:
    """初始化, 类常量, 方法."""
    ckpt_mgr = CheckpointManager(save_dir="./checkpoints", device="cpu", max_to_keep=5)
    assert CheckpointManager.BEST_MODEL_NAME == "best_model.pth"
    assert CheckpointManager.EPOCH_CKPT_PREFIX == "checkpoint_epoch_"
    assert CheckpointManager.INTERRUPT_CKPT_NAME == "interrupt_checkpoint.pth"
    expected = {
        "save_best_model": ["state", "metric"],
        "load_best_model": [],
        "save_epoch_checkpoint": ["state", "epoch"],
        "load_latest_checkpoint": [],
        "save_interrupt_checkpoint": ["state"],
    }
    for method, names in expected.items():
        parameters = inspect.signature(getattr(ckpt_mgr, method)).parameters.values()
        assert [one.name for one in parameters if one.default is one.empty] == names
    positional = CheckpointManager("./elsewhere", "cpu", 3)
    assert positional.load_latest_checkpoint() is None
    assert positional.load_best_model() is None
    positional.close()
    ckpt_mgr.close()


@pytest.fixture(scope="module")
def after_100_epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("basic") / "checkpoints"
    with CheckpointManager(save_dir=folder, device="cpu", max_to_keep=5) as manager:
        basic_usage(manager, 100)
    return folder


def test_basic_usage_leaves_the_folder_of_the_last_section(after_100_epochs: Path) -> None:
    """基础用法, 文件组织结构."""
    assert visible(after_100_epochs) == [
        "best_model.pth",
        *(f"checkpoint_epoch_{epoch}.pth" for epoch in range(95, 100)),
    ]
    lines = (after_100_epochs / ".mltrain" / "retention.jsonl").read_text().splitlines()
    older = [
        line for file in (after_100_epochs / ".mltrain/retention").glob("*") for line in file.read_text().splitlines()
    ]
    removed = [json.loads(line)["checkpoint"] for line in older + lines]
    assert sorted(removed) == sorted(set(removed))
    # 100 were saved, and 5 and the best are there. One that a newer one overtakes before it is stored is no removal.
    assert 0 < len(removed) <= 94


def test_the_best_model_is_loaded_to_be_tested(after_100_epochs: Path) -> None:
    """加载最佳模型进行测试."""
    ckpt_mgr = CheckpointManager(save_dir=str(after_100_epochs), device="cpu")
    checkpoint = ckpt_mgr.load_best_model()
    assert checkpoint is not None
    assert (checkpoint["epoch"], checkpoint["val_acc"]) == (94, 144.0)
    model = create_model()
    model.load_state_dict(checkpoint["model"])
    best = ckpt_mgr.best()
    assert best is not None
    assert list(best.metrics.values()) == [144.0], "save_best_model(state, metric) keeps its metric"
    assert CheckpointManager(save_dir="nothing").load_best_model() is None
    ckpt_mgr.close()


def test_a_state_of_ones_own_comes_back_as_it_was_saved() -> None:
    """自定义状态字典."""
    training = Training()
    training.one_epoch()
    state = training.state(
        3,
        global_step=120,
        best_acc=93.5,
        config={"lr": 1e-3, "layers": [4, 2]},
        experiment_name="resnet18_cifar10",
        timestamp=datetime.now().isoformat(),
    )
    with CheckpointManager(save_dir="./checkpoints", device="cpu") as ckpt_mgr:
        ckpt_mgr.save_epoch_checkpoint(state, 3)
    loaded = CheckpointManager(save_dir="./checkpoints", device="cpu").load_latest_checkpoint()
    assert loaded is not None
    assert list(loaded) == list(state)
    assert {k: v for k, v in loaded.items() if k not in ("model", "optimizer")} == {
        k: v for k, v in state.items() if k not in ("model", "optimizer")
    }
    assert all(torch.equal(loaded["model"][name], value) for name, value in state["model"].items())
    assert visible(Path("checkpoints")) == ["checkpoint_epoch_3.pth"]


def interruptible(interrupted_in: int | None, epochs: int = 8) -> Training:
    """The script of 中断恢复; its end closes the manager, as the interpreter's exit does."""
    ckpt_mgr = CheckpointManager(save_dir="./checkpoints", device="cpu")
    training, start_epoch, best_acc = Training(), 0, 0.0
    checkpoint = ckpt_mgr.load_latest_checkpoint()
    if checkpoint:
        training.model.load_state_dict(checkpoint["model"])
        training.optimizer.load_state_dict(checkpoint["optimizer"])
        training.scheduler.load_state_dict(checkpoint["scheduler"])
        start_epoch, best_acc = checkpoint["epoch"] + 1, checkpoint["best_acc"]
    epoch = start_epoch
    try:
        for epoch in range(start_epoch, epochs):
            training.one_epoch()
            if epoch == interrupted_in:
                raise KeyboardInterrupt
            ckpt_mgr.save_epoch_checkpoint(training.state(epoch, best_acc=best_acc), epoch)
    except KeyboardInterrupt:
        ckpt_mgr.save_interrupt_checkpoint(training.state(epoch, best_acc=best_acc))
    ckpt_mgr.wait()
    ckpt_mgr.close()
    return training


def test_an_interrupted_training_continues_bit_for_bit_and_uses_that_state_once() -> None:
    """中断恢复."""
    interruptible(interrupted_in=3)
    assert visible(Path("checkpoints")) == [
        *(f"checkpoint_epoch_{epoch}.pth" for epoch in range(3)),
        "interrupt_checkpoint.pth",
    ]
    looked_at = CheckpointManager(save_dir="./checkpoints", device="cpu")
    assert looked_at.load_latest_checkpoint()["epoch"] == 3  # type: ignore[index]
    assert Path("checkpoints/interrupt_checkpoint.pth").exists(), "loading alone destroys nothing"
    resumed = interruptible(interrupted_in=None)
    assert visible(Path("checkpoints")) == [f"checkpoint_epoch_{epoch}.pth" for epoch in (2, 4, 5, 6, 7)]
    undisturbed = Training()
    for _ in range(8):
        undisturbed.one_epoch()
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.model.parameters(), undisturbed.model.parameters(), strict=True)
    )


class Trainer:
    """The class of 在Trainer类中使用."""

    def __init__(self, device: str = "cpu") -> None:
        self.training = Training()
        self.ckpt_mgr = CheckpointManager(save_dir="./checkpoints", device=device, max_to_keep=5)
        self.start_epoch = 0
        self.best_metric = 0.0

    def resume_training(self) -> None:
        checkpoint = self.ckpt_mgr.load_latest_checkpoint()
        if checkpoint:
            self.training.model.load_state_dict(checkpoint["model"])
            self.training.optimizer.load_state_dict(checkpoint["optimizer"])
            self.training.scheduler.load_state_dict(checkpoint["scheduler"])
            self.start_epoch = checkpoint["epoch"] + 1
            self.best_metric = checkpoint["best_metric"]

    def save_checkpoint(self, epoch: int, metrics: Mapping[str, float]) -> None:
        state = self.training.state(epoch, best_metric=self.best_metric, metrics=metrics)
        self.ckpt_mgr.save_epoch_checkpoint(state, epoch)
        if metrics["val_acc"] > self.best_metric:
            self.best_metric = metrics["val_acc"]
            self.ckpt_mgr.save_best_model(state, metric=self.best_metric)

    def fit(self, epochs: int, interrupted_in: int | None = None) -> list[int]:
        self.resume_training()
        trained: list[int] = []
        epoch = self.start_epoch
        try:
            for epoch in range(self.start_epoch, epochs):
                loss = self.training.one_epoch()
                if epoch == interrupted_in:
                    raise KeyboardInterrupt
                trained.append(epoch)
                self.save_checkpoint(epoch, {"train_loss": loss, "val_acc": float(epoch % 5)})
        except KeyboardInterrupt:
            self.ckpt_mgr.save_interrupt_checkpoint(self.training.state(epoch, best_metric=self.best_metric))
        return trained


def test_in_a_trainer_class() -> None:
    """在Trainer类中使用."""
    assert Trainer().fit(20, interrupted_in=7) == [*range(7)]
    assert Trainer().fit(20) == [*range(8, 20)], "from the interrupted state on"
    again = Trainer()
    assert again.fit(20) == []
    assert again.best_metric == 4.0
    again.ckpt_mgr.close()
    assert visible(Path("checkpoints"))[0] == "best_model.pth"
