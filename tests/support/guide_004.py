"""The model, the loop and the folder of guide 004 (检查点管理模块使用指南)."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from mltrain import CheckpointManager


def create_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def visible(folder: Path) -> list[str]:
    """What ``ls`` shows, shorter names first."""
    return sorted((path.name for path in folder.iterdir() if not path.name.startswith(".")), key=lambda n: (len(n), n))


class Training:
    """The guide's model, optimizer, schedule and saved state."""

    def __init__(self) -> None:
        self.model = create_model()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 10)

    def one_epoch(self) -> float:
        self.optimizer.zero_grad()
        loss = self.model(torch.ones(3, 4)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.scheduler.step()
        return float(loss.detach())

    def state(self, epoch: int, **more: Any) -> dict[str, Any]:
        return {
            "epoch": epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            **more,
        }


def basic_usage(ckpt_mgr: CheckpointManager, epochs: int) -> Training:
    """The loop of 基础用法."""
    training, best_acc = Training(), 0.0
    for epoch in range(epochs):
        train_loss, val_acc = training.one_epoch(), 50.0 + (epoch if epoch % 7 == 3 else 0)
        state = training.state(epoch, best_acc=best_acc, train_loss=train_loss, val_acc=val_acc)
        ckpt_mgr.save_epoch_checkpoint(state, epoch)
        if val_acc > best_acc:
            best_acc = val_acc
            ckpt_mgr.save_best_model(state, metric=best_acc)
    return training
