"""Small Lightning trainings, one for each part of a resume."""

import logging
import os
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanSquaredError

from mltrain import ResumableLoader, StreamLoader
from mltrain.adapters.lightning import MltrainCheckpoint

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
DATA = TensorDataset(torch.randn(40, 4, generator=torch.Generator().manual_seed(0)))


class Net(pl.LightningModule):
    """A network with dropout; its schedule, if any, by name."""

    def __init__(self, schedule: str = "step", lr: float = 0.05) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.error = MeanSquaredError()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        inputs = torch.cat([part[0] for part in batch.values()]) if isinstance(batch, dict) else batch[0]
        found = self.net(inputs)
        loss = (found - 1).square().mean()
        self.error(found, torch.ones_like(found))
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("error", self.error, on_step=False, on_epoch=True)
        self.log("largest", found.max().detach(), on_step=False, on_epoch=True, reduce_fx="max")
        return loss

    def test_step(self, batch: Any, index: int) -> None:
        self.log("test_loss", (self.net(batch[0]) - 1).square().mean())

    def validation_step(self, batch: Any, index: int) -> None:
        self.log("val_loss", (self.net(batch[0]) - 1).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams["lr"])
        schedules: dict[str, Callable[[], Any]] = {
            "step": lambda: {"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4, 0.8), "interval": "step"},
            "epoch": lambda: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7),
            "plateau": lambda: {
                "scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau(
                    optimizer, factor=0.5, patience=0, threshold=0.9
                ),
                "monitor": "val_loss",
                "strict": False,
            },
        }
        return {"optimizer": optimizer, "lr_scheduler": schedules[self.hparams["schedule"]]()}


class Scheduler(GradientAccumulationScheduler):
    """Plans the accumulation in a hook with Lightning's usual arguments."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # type: ignore[override]
        super().on_train_epoch_start(trainer, pl_module)


class Manual(Net):
    """Two optimizers, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = super().training_step(batch, index)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.net[0].parameters(), lr=0.05), torch.optim.SGD(self.net[2].parameters(), lr=0.05)]


class Stream(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Items of unknown number that know their position."""

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self) -> Any:
        while self.given < len(DATA):
            self.given += 1
            yield DATA[self.given - 1]
        self.given = 0

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


def resumable(seed: int = 0) -> ResumableLoader:
    return ResumableLoader(DATA, 4, seed=seed)


def validation() -> DataLoader[Any]:
    return DataLoader(TensorDataset(DATA[:8][0]), 4)


def stateful() -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(DATA, batch_size=4, shuffle=True)


SCENARIOS: dict[str, tuple[Callable[[], pl.LightningModule], Callable[[], Any], Callable[[], dict[str, Any]]]] = {
    "epochs": (Net, resumable, lambda: {"val_check_interval": 4}),
    "an epoch's schedule": (lambda: Net("epoch"), resumable, dict),
    "steps": (Net, resumable, lambda: {"max_steps": 24, "max_epochs": None, "val_check_interval": 5}),
    "accumulated gradients": (Net, resumable, lambda: {"accumulate_grad_batches": 3, "val_check_interval": 3}),
    "gradients accumulated from the second epoch on": (
        Net,
        resumable,
        lambda: {"callbacks": [Scheduler({1: 2})]},
    ),
    "a plateau": (lambda: Net("plateau"), resumable, lambda: {"callbacks": [EarlyStopping("val_loss", patience=50)]}),
    "a plateau between validations": (
        lambda: Net("plateau"),
        resumable,
        lambda: {"check_val_every_n_epoch": 2, "max_epochs": 4},
    ),
    "mixed precision": (Net, resumable, lambda: {"precision": "bf16-mixed"}),
    "fewer batches": (
        Net,
        resumable,
        lambda: {"limit_train_batches": 7, "check_val_every_n_epoch": None, "val_check_interval": 5},
    ),
    "two loaders": (Net, lambda: {"one": resumable(), "two": resumable(1)}, dict),
    "a loader without a length": (Net, lambda: StreamLoader(Stream(), 4), dict),
    "a loader of torchdata": (Net, stateful, dict),
    "manual optimization": (Manual, resumable, dict),
    "averaged weights": (Net, resumable, lambda: {"callbacks": [StochasticWeightAveraging(0.05, swa_epoch_start=1)]}),
    "the rate as a curve": (Net, resumable, lambda: {"callbacks": [LearningRateMonitor()]}),
    "checkpoints of its own": (
        Net,
        resumable,
        lambda: {"callbacks": [ModelCheckpoint("files", monitor="val_loss", save_top_k=2, save_last=True)]},
    ),
}
"""Model, loader and options of the Trainer, of three epochs of ten batches, if they say nothing else."""


class Interruption(pl.Callback):
    """Sends this process a signal in a step. At an earlier step it waits for the commits."""

    def __init__(self, step: int, number: int, wait: int | None = None) -> None:
        self.step, self.number, self.wait, self.done = step, number, wait, False

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        now = trainer.fit_loop.epoch_loop._batches_that_stepped
        if now == self.wait:
            checkpoint_of(trainer)._training.manager.wait()
        if now == self.step and not self.done:
            self.done = True
            os.kill(os.getpid(), self.number)


def checkpoint_of(trainer: pl.Trainer) -> Any:
    return next(callback for callback in trainer.callbacks if isinstance(callback, MltrainCheckpoint))


def fit(
    scenario: str,
    ckpt_path: str | None = None,
    *,
    model: Callable[[], pl.LightningModule] | None = None,
    loader: Callable[[], Any] | None = None,
    interruption: Interruption | None = None,
    **options: Any,
) -> tuple[pl.Trainer, MltrainCheckpoint]:
    """Train, or continue, a scenario."""
    usual_model, usual_loader, given = SCENARIOS[scenario]
    pl.seed_everything(1, verbose=False)
    ours = MltrainCheckpoint(**{"every_n_train_steps": 2, **options.pop("ours", {})})
    arguments = {"max_epochs": 3, "logger": False, **given(), **options}
    callbacks = [*arguments.pop("callbacks", []), ours, *([interruption] if interruption is not None else [])]
    trainer = pl.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        callbacks=callbacks,
        **arguments,
    )
    trainer.fit((model or usual_model)(), (loader or usual_loader)(), validation(), ckpt_path=ckpt_path)
    return trainer, ours
