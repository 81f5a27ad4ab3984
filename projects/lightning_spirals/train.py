"""A training with Lightning: two spirals, a small network. The line marked ``# +`` is all that mltrain adds.

Run it, interrupt it with Ctrl+C or kill it, and continue the run whose id it printed::

    python projects/lightning_spirals/train.py
    python projects/lightning_spirals/train.py mltrain:<run id>
"""

import sys
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mltrain import ResumableLoader
from mltrain.adapters.lightning import MltrainCheckpoint


def spirals(points: int = 400) -> TensorDataset:
    """Return two interleaved spirals: points (N, 2) float32 and their class (N,) int64."""
    turn = torch.linspace(0.5, 3.5, points // 2) * torch.pi
    arm = torch.stack([turn.cos(), turn.sin()], 1) * turn[:, None] / 10
    return TensorDataset(torch.cat([arm, -arm]), torch.arange(2).repeat_interleave(points // 2))


class Classifier(pl.LightningModule):  # type: ignore[misc] # Lightning is not read by mypy here
    """Classifies points by their spiral."""

    def __init__(self, width: int = 64, lr: float = 3e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(2, width), nn.Tanh(), nn.Dropout(0.1), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2)
        )

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        """Return the loss of a batch."""
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, index: int) -> None:
        """Measure the share of points with the right class."""
        self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


def main(ckpt_path: str | None = None, epochs: int = 100) -> str | None:
    """Train, or continue the run of an address; return the run's id."""
    pl.seed_everything(0)
    data = spirals()
    checkpoints = MltrainCheckpoint(every_n_train_steps=20, monitor="accuracy", mode="max")  # +
    trainer = pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, log_every_n_steps=8, callbacks=[checkpoints]
    )
    trainer.fit(Classifier(), ResumableLoader(data, 50), DataLoader(data, 400), ckpt_path=ckpt_path)
    return checkpoints.run_id


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
